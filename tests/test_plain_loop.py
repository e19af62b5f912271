"""Risk: in the loop that README.md shows, with a model class of transformers as it is, rows of a bin see each other."""

import os
import sys
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import pytest
import torch
import transformers
import varlen_reference
from conftest import ROOT, SAMPLES
from torch.nn.functional import scaled_dot_product_attention
from tutorial import blocks_of

from omniprep import PackedDataset, collate, packed_attention
from omniprep.errors import OmniprepError
from omniprep.testing.init_model import init_model
from omniprep.train import own_loop

# Small pictures and bins: the logits of a bin of 2,048 tokens would take 1.2 GB.
PIXELS = ("--max-pixels", 28 * 28 * 60, "--video-max-pixels", 28 * 28 * 20, "--fps-max-frames", 4)
SMALL = ("--bin-length", 640, "--workers", 0)
WORDS = slice(None, None, 97)  # of the vocabulary, which logits are compared
PICTURES = ("images", "video", "grounding", "text")
INPUTS = {
    "qwen2_5_omni": ("images", "audio", "video", "text"),
    "qwen2_vl": PICTURES,
    "qwen2_5_vl": PICTURES,
    "qwen3_vl": PICTURES,
    "qwen3_omni": ("images", "audio", "video", "text"),
    "qwen2_audio": ("audio", "text"),
}


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=() if name == "qwen2_5_omni" else pytest.mark.slow) for name in INPUTS],
)
def family(request, model_dir, omniprep, tmp_path_factory):
    """Name and checkpoint of a family, and a folder with packed/, a dataset of it with several rows a bin."""
    given = os.environ.get("OMNIPREP_TEST_FAMILIES")  # a folder that has them, to save the 15 seconds of each
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "qwen2_5_omni":
        checkpoint = model_dir
    elif given:
        checkpoint = Path(given) / request.param
    else:
        checkpoint = init_model(folder / "model", request.param)
    inputs = [SAMPLES / f"{name}.jsonl" for name in INPUTS[request.param]]
    pixels = () if request.param == "qwen2_audio" else PIXELS
    done = omniprep("build", *inputs, "--model", checkpoint, *SMALL, *pixels, "--out", folder / "packed")
    assert done.code == 0, done.err
    return request.param, checkpoint, folder


def load(checkpoint, attention):
    """The class that the checkpoint names, or its thinker; nothing of ours around it."""
    config = transformers.AutoConfig.from_pretrained(checkpoint)
    cls = getattr(transformers, config.architectures[0])
    model = cls.from_pretrained(checkpoint, dtype=torch.float32, attn_implementation=attention).eval()
    model = getattr(model, "thinker", model)
    with torch.no_grad():
        for parameter in model.parameters():  # as they are drawn they are so small that attention hardly matters
            if parameter.ndim > 1:
                parameter.mul_(4)
    return model


def use_flash(model, monkeypatch):
    """Let all of a model attend by flash-attention's variable-length kernel: a stand-in with its arguments, since the
    kernel itself needs a GPU.
    """
    from transformers import modeling_flash_attention_utils as flash

    def varlen(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, softmax_scale=None, causal=False, **_):
        assert (
            torch.equal(cu_seqlens_q, cu_seqlens_k) and cu_seqlens_q[-1] == len(q) and cu_seqlens_q.dtype == torch.int32
        )
        parts = [[x[a:b].transpose(0, 1)[None] for x in (q, k, v)] for a, b in pairwise(cu_seqlens_q.tolist())]
        out = [
            scaled_dot_product_attention(*p, is_causal=causal, scale=softmax_scale, enable_gqa=True)[0] for p in parts
        ]
        return torch.cat(out, 1).transpose(0, 1)

    def whole(q, k, v, softmax_scale=None, causal=False, **_):
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        out = scaled_dot_product_attention(q, k, v, is_causal=causal, scale=softmax_scale, enable_gqa=True)
        return out.transpose(1, 2)

    monkeypatch.setattr(
        flash, "_lazy_imports", lambda *_, **__: (whole, varlen, None, flash._pad_input, flash._unpad_input)
    )
    monkeypatch.setattr(flash, "_loaded_implementation", None)
    for module in model.modules():
        if getattr(module, "config", None) is not None:
            module.config._attn_implementation = "flash_attention_2"


def use_ours(model, attention, monkeypatch):
    """Let all of a model attend as `omniprep train` does; its kernel for a GPU is a stand-in."""
    if attention == "varlen":
        module = ModuleType("torch.nn.attention.varlen")
        module.varlen_attn = varlen_reference.varlen_2_14
        monkeypatch.setitem(sys.modules, "torch.nn.attention.varlen", module)
        monkeypatch.setattr(own_loop, "choose_attention", lambda *_, **__: "varlen")
    assert packed_attention(model) == attention
    varlen_reference.CALLS.clear()


def readme_loop(folder, monkeypatch, model):
    """Run the loop of README.md on a model, but for what changes its weights; the batches that it made."""
    [text] = [b.text for b in blocks_of(ROOT / "README.md") if b.language == "python" and "model(**batch)" in b.text]
    assert "use_cache" not in text, "it needs nothing that a reader would have to know"
    batches = []
    hook = model.register_forward_pre_hook(lambda module, args, batch: batches.append(batch), with_kwargs=True)
    monkeypatch.chdir(folder)
    loop = text[text.index("loader = ") : text.index("    loss.backward()")]
    exec(f"import omniprep\n{loop}", {"model": model})
    hook.remove()
    return batches


def apart(value, expected):
    """Largest difference, relative to the largest value."""
    return float((value - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize(
    "attention",
    [
        "sdpa",
        "ours",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("eager", "flash_attention_2", "varlen")),
    ],
)
def test_the_loop_of_the_readme_gives_each_row_what_it_gets_alone(family, attention, monkeypatch):
    name, checkpoint, folder = family
    varlen_reference.CALLS.clear()
    model = load(checkpoint, attention if attention == "eager" else "sdpa")
    alone_model = model if attention in ("sdpa", "eager") else load(checkpoint, "sdpa")
    if attention == "flash_attention_2":
        use_flash(model, monkeypatch)
    elif attention in ("ours", "varlen"):
        use_ours(model, "sdpa" if attention == "ours" else attention, monkeypatch)
    logits = []
    hook = model.register_forward_hook(lambda module, args, out: logits.append(out.logits[0, :, WORDS].clone()))
    with torch.no_grad():
        batches = readme_loop(folder, monkeypatch, model)
    hook.remove()
    ds = PackedDataset(folder / "packed")
    assert len(batches) == len(logits) == len(ds)
    rows = {(r["source"], r["line"]): r for r in ds.rows.to_pylist() if r["status"] == "packed"}
    assert all(sum(ds[b]["row_items"][:, m].sum() for b in range(len(ds))) for m in range(len(ds.layout.modalities)))
    numbers = {tuple(b["input_ids"][0].tolist()): n for n, b in enumerate(batches)}
    positions = 4 if name != "qwen2_audio" else 1
    seen = 0
    for (source, line), row in rows.items():
        alone = ds.row(source, line)
        assert alone["use_cache"] is False and len(alone["position_ids"]) == positions
        # As anyone would call the model on one chat: nothing about packing, and the m-rope rows alone.
        plain = {k: v for k, v in alone.items() if not k.startswith(("cu_seq", "max_length", "labels"))}
        plain["position_ids"] = alone["position_ids"][1:] if positions == 4 else alone["position_ids"]
        with torch.no_grad():
            expected = alone_model(**plain, attention_mask=torch.ones_like(alone["input_ids"])).logits[0, :, WORDS]
        batch = numbers[tuple(ds[row["bin"]]["input_ids"].tolist())]
        start, end = row["start"], row["start"] + row["length"]
        assert torch.equal(batches[batch]["input_ids"][:, start:end], alone["input_ids"])
        assert apart(logits[batch][start:end], expected) < 1e-5, (source, line)
        seen += 1
    assert seen == len(rows) > 2 * len(batches), "several rows a bin"
    assert (attention == "varlen") == bool(varlen_reference.CALLS)


def test_the_comparison_notices_rows_that_see_each_other(family):
    """With a cache transformers looks for no borders; this is what `use_cache` in the batch keeps off."""
    _, checkpoint, folder = family
    model, ds = load(checkpoint, "sdpa"), PackedDataset(folder / "packed")
    number = int(ds.index["rows"].argmax())
    batch = collate([ds[number]])
    with torch.no_grad():
        good = model(**batch).logits[0, :, WORDS].clone()
        mixed = model(**{**batch, "use_cache": True}).logits[0, :, WORDS].clone()
    first = int(batch["cu_seq_lens_q"][1])
    assert apart(mixed[:first], good[:first]) < 1e-5 and apart(mixed[first:], good[first:]) > 0.01


def test_a_model_whose_rows_see_each_other_otherwise_is_refused(tmp_path):
    """A layer that carries something from token to token beside its attention, as short convolutions do."""
    init_model(tmp_path / "m", "qwen2_vl")
    model = load(tmp_path / "m", "sdpa")
    with pytest.raises(OmniprepError, match="--attn varlen needs a GPU"):
        packed_attention(model, "varlen")
    with pytest.raises(OmniprepError, match="attn is 'fast'; auto, varlen"):
        packed_attention(model, "fast")
    assert packed_attention(model) == "sdpa"
    model.get_decoder().layers[0].register_forward_hook(lambda module, args, out: out + out.roll(1, 1))
    with pytest.raises(OmniprepError, match="rows of a bin see each other"):
        packed_attention(model)
