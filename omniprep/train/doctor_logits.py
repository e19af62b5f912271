"""Logits of rows in one bin, by the model as `omniprep train` loads it, against transformers' own forward pass.

The latter runs on what the processor gives for each row alone, with eager attention, so it shares nothing with the
former but weights. Both in float32 on the CPU: only small models are compared, a large checkpoint's class with a small
random one of its type.
"""

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from omniprep.compiler.oracle import trial as oracle
from omniprep.compiler.oracle.chats import Chat, as_row, write_media
from omniprep.compiler.oracle.processor import one_line
from omniprep.config import BuildConfig
from omniprep.doctor.families import LogitTrial
from omniprep.errors import OmniprepError, Reject
from omniprep.families.context import FamilyContext, resolve

MOST_BYTES = 200 << 20
"""Of weights that are loaded twice without being asked for."""
TOLERANCE = 1e-3
"""Largest difference, as a part of the largest logit. Orders of float32 sums make 1e-5; a row that sees another, or
attention of another window, makes more than 0.01."""
LONG = Chat(
    "long text",
    (
        ("user", (("text", "One two three four five six seven. " * 40),)),
        ("assistant", (("text", "Eight nine ten. " * 30),)),
    ),
)
"""Some 500 tokens: longer than the sliding windows of small models."""


def compare_logits(ctx: FamilyContext, folder: Path, wanted: bool | None) -> tuple[list[LogitTrial], str]:
    """Compare the logits of rows of every kind.

    Args:
        ctx: The family on its checkpoint.
        folder: Where a small checkpoint may be written.
        wanted: Whether to; None: where the checkpoint has weights of at most `MOST_BYTES`.

    Returns:
        What came of each row; or none, and why.
    """
    if wanted is False:
        return [], "--no-logits"
    model, size = ctx.spec.model, _weight_bytes(ctx.spec.model)
    if not 0 < size <= MOST_BYTES:
        if not wanted:
            what = f"weights of {size >> 20} MB" if size else "no weights in a local folder"
            return [], f"{what}; --logits compares those of a small random model of the same type"
        model = str(_small_model(ctx, folder))
    try:
        spec = replace(ctx.spec, model=model)
        return _compare(oracle.family_without_options(resolve(spec)), Path(model)), ""
    except OmniprepError as error:
        return [], one_line(error)


def _weight_bytes(model: str) -> int:
    folder = Path(model)
    names = [path for pattern in ("*.safetensors", "pytorch_model*.bin") for path in folder.glob(pattern)]
    return sum(path.stat().st_size for path in names) if folder.is_dir() else 0


def _small_model(ctx: FamilyContext, folder: Path) -> Path:
    """A small random checkpoint of the checkpoint's type."""
    from omniprep.testing.init_model import init_model

    name = ctx.name if ctx.cls.init_model else str(ctx.config.get("model_type"))
    return init_model(tempfile.mkdtemp(dir=folder), name)


def _compare(ctx: FamilyContext, checkpoint: Path) -> list[LogitTrial]:
    import torch

    from omniprep.compiler.encode.rows import make_bin
    from omniprep.compiler.encode.single_row import as_batch, encode_bin

    judge = oracle.oracle_of(ctx)
    if judge.model_class is None:
        raise OmniprepError(f"transformers has no class {ctx.config.get('architectures')}")
    chats = [*oracle.chats_for(ctx, judge, quick=True), LONG]
    config = BuildConfig(model=ctx.spec.model, bin_length=oracle.BIN_LENGTH)
    with tempfile.TemporaryDirectory(prefix="omniprep-logits-") as name, torch.no_grad():
        folder = Path(name)
        write_media(chats, folder, judge.sampling_rate)
        rows, inputs = [], []
        for chat in chats:
            try:
                row, given = encode_bin(as_row(chat), ctx, config, name), judge.arguments(chat, folder)
            except Reject:
                continue  # the comparison of rows says so
            rows.append((chat, row))
            inputs.append(given)
        batch = as_batch(make_bin([row for _, row in rows], list(range(len(rows)))), ctx, config)
        ours = _packed_logits(ctx, checkpoint, batch)
        plain = judge.model_class.from_pretrained(checkpoint, dtype=torch.float32, attn_implementation="eager").eval()
        plain = getattr(plain, "thinker", plain)  # omni models have no forward of their own
        borders = batch["cu_seq_lens_q"].tolist()
        trials = []
        rounded = {column.name for column in ctx.columns if column.dtype == "bfloat16"}
        for number, (chat, _) in enumerate(rows):
            logits = ours[borders[number] : borders[number + 1]]
            given = {
                name: value.to(torch.bfloat16).to(value.dtype) if name in rounded else value
                for name, value in inputs[number].items()
            }
            try:
                trials.append(_judge(chat.name, logits, plain(**given).logits[0]))
            except (TypeError, ValueError, RuntimeError, KeyError, AttributeError, IndexError) as error:
                trials.append(LogitTrial(chat.name, fault=f"transformers' own forward pass: {one_line(error)}"))
    return trials


def _packed_logits(ctx: FamilyContext, checkpoint: Path, batch: Mapping[str, Any]) -> Any:
    """Logits (L, V) of a bin by the model as training loads it."""
    import torch

    from omniprep.train.attention_choice import choose_attention, use_attention
    from omniprep.train.freeze import resolve_parts
    from omniprep.train.model import load_base

    model = load_base(ctx, str(checkpoint), torch.float32, "sdpa", trust_remote_code=ctx.spec.trust_remote_code).eval()
    model.config.use_cache = False
    parts = resolve_parts(model, ctx.arch)
    use_attention(model, choose_attention("auto", model, torch.device("cpu"), half=False), parts.towers)
    return model(**{name: value for name, value in batch.items() if name != "labels"}).logits[0]


def _judge(what: str, ours: Any, theirs: Any) -> LogitTrial:
    """Compare the logits of a row; the processor's may have the template's tail behind them."""
    shared = theirs[: len(ours)]
    if len(shared) < len(ours):
        return LogitTrial(what, fault=f"{len(ours)} tokens, the processor has {len(theirs)}")
    largest, difference = float(shared.abs().max()), float((ours - shared).abs().max())
    text = f"{len(ours)} tokens; largest difference {difference:.1e} of {largest:.2g}"
    if difference <= TOLERANCE * largest:
        return LogitTrial(what, text=text)
    token = int((ours - shared).abs().amax(1).gt(TOLERANCE * largest).nonzero()[0])
    return LogitTrial(what, fault=f"logits differ by {difference:.2g} of {largest:.2g}, from token {token} on")
