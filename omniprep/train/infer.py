"""Answers for chat rows from a trained model or adapter, to see what a run has learned.

Rows are encoded exactly as for training: by the options of the dataset the run was trained on, up to where the last
answer begins. Batches are padded on the left; positions are our own (4, B, L), so that what a row gets does not depend
on its neighbors.
"""

import dataclasses
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch.nn.functional import pad

from omniprep import io
from omniprep.compiler.encode.single_row import encode_prompt, last_answer
from omniprep.compiler.options import family_of
from omniprep.config import BuildConfig, RowOptions, build_config
from omniprep.data.loss import LOSS_FIELDS
from omniprep.errors import OmniprepError, Reject, UsageError
from omniprep.families.context import FamilyContext
from omniprep.progress import Reporter
from omniprep.rows.columns import parse_columns
from omniprep.rows.inputs import find_inputs
from omniprep.rows.sources import find_splits, numbered
from omniprep.shards.manifest import TRUST_FLAGS, read_manifest
from omniprep.train.adapter import base_and_adapter
from omniprep.train.any_class import AnyPacked
from omniprep.train.arguments import quiet_libraries
from omniprep.train.config import InferConfig
from omniprep.train.facts import FACTS, RowFacts, facts_of_manifest, one_of, read_facts
from omniprep.train.model import load_base


def infer(config: InferConfig, reporter: Reporter, write: Any) -> int:
    """Answer every row of the inputs, in their order; the number of answers.

    `write` gets each line of JSON: source, line, response, label (the row's own last answer, if it has one); or source,
    line, error (a reject code) and message.
    """
    quiet_libraries()
    if config.device == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: torch sees no GPU here (omniprep doctor); --device auto takes the CPU")
    base, adapter = base_and_adapter(config.model, config.base_model)
    build = build_options(config, base, reporter)
    ctx = family_of(build)
    device = torch.device("cuda" if config.device != "cpu" and torch.cuda.is_available() else "cpu")
    wanted = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    dtype = wanted.get(config.dtype, torch.bfloat16 if device.type == "cuda" else torch.float32)
    model: Any = load_base(ctx, base, dtype, "sdpa", trust_remote_code=config.trust_remote_code)
    if adapter is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
    model.to(device).eval()
    torch.manual_seed(config.seed)
    reporter.start("infer", config.limit or None)
    done, rejected = 0, Counter[str]()
    for batch in batched(encoded_rows(config, build, ctx), config.batch_size):
        good = [row for row in batch if "kwargs" in row]
        texts = answer(model, [row["kwargs"] for row in good], ctx, config, dtype) if good else []
        answers = iter(texts)
        for row in batch:
            line = {"source": row["source"], "line": row["line"]}
            if "kwargs" in row:
                line |= {"response": next(answers), "label": row["label"]}
                done += 1
            else:
                line |= {"error": row["error"], "message": row["message"]}
                rejected[row["error"]] += 1
            write(json.dumps(line, ensure_ascii=False))
        reporter.advance("infer", len(batch), rejects=len(batch) - len(good))
    reporter.finish("infer")
    if rejected:
        codes = ", ".join(f"{code} {count}" for code, count in sorted(rejected.items()))
        text = f"{rejected.total()} of {done + rejected.total()} rows have no answer: {codes}"
        if not done:
            raise OmniprepError(f"{text}; each line says why")
        reporter.message(text)
    elif not done:
        raise OmniprepError(f"no row in {', '.join(config.inputs)}")
    return done


def build_options(config: InferConfig, base: str, reporter: Reporter) -> BuildConfig:
    """The options that encode rows as those of the run were encoded.

    What the run or a dataset says comes from a file; code, network and folders only from `config`.
    """
    facts = row_facts(config)
    if facts is None:
        reporter.message(f"--model {config.model} is no run of omniprep train: rows are encoded by default options")
        facts = RowFacts(dataset="", options=RowOptions())
    missing = [flag for name, flag in TRUST_FLAGS.items() if flag in facts.needed_flags and not getattr(config, name)]
    if missing:
        reporter.message(
            f"the run's dataset was built with {', '.join(missing)}: not taken from a file, give it here if needed"
        )
    # The split is that of the build's inputs; a plain checkpoint has no bins that a prompt must fit.
    options = dataclasses.replace(facts.options, split=None, bin_length=facts.options.bin_length or 32768)
    return build_config(options, config, model=base, inputs=config.inputs)


def row_facts(config: InferConfig) -> RowFacts | None:
    """How rows are to be encoded: as `--like` says, or as the run; None for a model that is no run."""
    if config.like is None:
        records = read_facts(config.model)
        return None if records is None else one_of(records)
    if not io.exists(io.join(config.like, "manifest.json")) and (Path(config.model) / FACTS).is_file():
        for facts in read_facts(config.model) or ():  # a dataset of the run, wherever it is now
            if facts.dataset == config.like.rstrip("/"):
                return facts
    return facts_of_manifest(config.like, read_manifest(config.like)[0])


def encoded_rows(config: InferConfig, build: BuildConfig, ctx: FamilyContext) -> Iterator[dict[str, Any]]:
    """Each row's index with its forward arguments and label, or with why it was rejected."""
    splits = find_splits(find_inputs(config.inputs), split_bytes=1 << 62, seed=config.seed)
    for count, (split, line, raw) in enumerate(numbered(splits)):
        if config.limit and count >= config.limit:
            return
        row: dict[str, Any] = {"source": split.source, "line": line}
        try:
            if isinstance(raw.content, Reject):
                raise raw.content
            row["label"] = last_answer(raw.content, parse_columns(build.columns))
            row["kwargs"] = encode_prompt(raw.content, ctx, build, split.base)
        except Reject as reject:
            row |= {"error": str(reject.code), "message": reject.message}
        yield row


def batched(rows: Iterator[dict[str, Any]], size: int) -> Iterator[list[dict[str, Any]]]:
    """Lists of `size` rows, the last one shorter."""
    batch: list[dict[str, Any]] = []
    for row in rows:
        batch.append(row)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def left_padded(rows: Sequence[dict[str, torch.Tensor]], pad_id: int) -> dict[str, torch.Tensor]:
    """Rows of (1, L) arguments as one batch (B, L), padded on the left; media of all rows in row order."""
    longest = max(r["input_ids"].shape[1] for r in rows)
    gaps = [longest - r["input_ids"].shape[1] for r in rows]
    out = {
        "input_ids": torch.cat([pad(r["input_ids"], (g, 0), value=pad_id) for r, g in zip(rows, gaps, strict=True)]),
        "attention_mask": torch.cat(
            [pad(torch.ones_like(r["input_ids"]), (g, 0)) for r, g in zip(rows, gaps, strict=True)]
        ),
        "position_ids": torch.cat([pad(r["position_ids"], (g, 0)) for r, g in zip(rows, gaps, strict=True)], -2),
    }
    packing = {*LOSS_FIELDS, "cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "use_cache"}
    for name in dict.fromkeys(name for r in rows for name in r if name not in out and name not in packing):
        parts = [r[name] for r in rows if name in r]
        if parts[0].ndim > 1 and len({p.shape[1:] for p in parts}) > 1:  # spectrograms and masks of other lengths
            width = max(p.shape[-1] for p in parts)
            parts = [pad(p, (0, width - p.shape[-1])) for p in parts]
        out[name] = torch.cat(parts)
    return out


def answer(
    model: Any, rows: Sequence[dict[str, torch.Tensor]], ctx: FamilyContext, config: InferConfig, dtype: torch.dtype
) -> list[str]:
    """The model's answers to some encoded prompts.

    A model of any class answers them one after the other: what it makes of padding and of media of several rows is its
    own affair.
    """
    if isinstance(model, AnyPacked) and len(rows) > 1:
        return [text for row in rows for text in answer(model, [row], ctx, config, dtype)]
    tokenizer = ctx.tokenizer
    vocabulary = tokenizer.get_vocab()
    stops = ctx.stop_texts & vocabulary.keys()
    ends = {tokenizer.eos_token_id, *(vocabulary[token] for token in stops)}
    if isinstance(model, AnyPacked):  # what ends an answer of its own chat template is in generation_config.json
        own = cast(Any, model).generation_config.eos_token_id
        ends |= {*own} if isinstance(own, list) else {own}
    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    batch = {k: v.to(model.device) for k, v in left_padded(rows, pad_id).items()}
    batch = {k: v.to(dtype) if v.is_floating_point() else v for k, v in batch.items()}
    draw = {"do_sample": True, "temperature": config.temperature, "top_p": config.top_p} if config.temperature else {}
    with torch.no_grad():
        try:
            out = model.generate(
                **batch,
                **(draw or {"do_sample": False}),
                max_new_tokens=config.max_new_tokens,
                eos_token_id=sorted(e for e in ends if e is not None),
                pad_token_id=pad_id,
                # A generation_config.json may say otherwise; there is one answer a row.
                num_return_sequences=1,
                return_dict_in_generate=False,
            )
        except ValueError as error:  # options of generation_config.json that contradict, or want code of the Hub
            raise OmniprepError(f"--model {config.model}: {' '.join(str(error).split())[:300]}") from error
    new = out[:, batch["input_ids"].shape[1] :]
    return [str(text) for text in tokenizer.batch_decode(new, skip_special_tokens=True)]
