"""Risk: a block of docs/your-trainer.md is not what its trainer takes.

The blocks under `<!-- run by: tests/test_trainer_blocks.py -->` run as they stand in the page, each in a folder with a
small dataset, on a small thinker, and have to train it on all bins of each epoch. tests/test_adapters.py compares the
losses of the same calls.
"""

import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, SAMPLES
from test_adapter_contracts import write
from train_helpers import swift_model, thinker_of, word_tokenizer, write_dataset, write_model
from tutorial import blocks_of

from omniprep import PackedDataset

BINS = 3
TYPES = {"model_types": ["qwen2_5_omni", "qwen2_5_omni_thinker"]}
BLOCKS = {
    block.heading: block.text
    for block in blocks_of(ROOT / "docs" / "your-trainer.md")
    if block.runner == "tests/test_trainer_blocks.py"
}
# TRL asks for bfloat16, which it refuses without a GPU.
SWAPS = {
    "max_steps=1000": "max_steps=6",
    'SFTConfig("run/"': 'SFTConfig("run/", bf16=False',
    'GRPOConfig("run/"': 'GRPOConfig("run/", bf16=False, max_steps=1, max_completion_length=2',
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """Where the page's reader is."""
    write_dataset(tmp_path / "packed", bins=BINS, **TYPES)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(heading: str, **names) -> dict:
    text = BLOCKS[heading]
    for found, other in SWAPS.items():
        text = text.replace(found, other)
    names = {"__name__": "page", **names}
    exec(compile(text, f"docs/your-trainer.md, {heading}", "exec"), names)
    return names


def trained(heading: str, thinker, model=None, **names) -> int:
    """Forward passes of a block that trains `model`, whose thinker must change, and its towers must not."""
    passes, called = [], thinker if model is None else model
    called.register_forward_pre_hook(lambda *_: passes.append(called.training))
    before = {name: value.clone() for name, value in thinker.state_dict().items()}
    run(heading, model=called, **names)
    assert all(passes)
    changed = {name for name, value in thinker.state_dict().items() if not torch.equal(value, before[name])}
    towers = {name for name in before if "visual." in name or "audio_tower." in name}
    assert changed and not changed & towers
    return len(passes)


def test_hugging_face_trainer(folder, checkpoint):
    assert trained("Hugging Face Trainer", thinker_of(checkpoint)) == 3 * BINS  # three epochs by default


def test_accelerate(folder, checkpoint):
    from accelerate import Accelerator

    accelerator, model = Accelerator(cpu=True), thinker_of(checkpoint).train()
    model, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0))
    names = {"accelerator": accelerator, "optimizer": optimizer, "epochs": 2}
    assert trained("accelerate", model, **names) == 2 * BINS


def test_lightning(folder, checkpoint):
    pytest.importorskip("lightning", reason="lightning is of omniprep[adapters]")
    assert trained("Lightning", thinker_of(checkpoint)) == 6


def test_trl(folder, checkpoint):
    pytest.importorskip("trl", reason="trl is of omniprep[adapters]")
    assert trained("TRL's SFTTrainer", thinker_of(checkpoint), tokenizer=word_tokenizer()) == 3 * BINS


def test_torchdata(folder):
    pytest.importorskip("torchdata", reason="torchdata is of omniprep[adapters]")
    names = run("torchdata and torchtitan")
    assert names["state"] and names["step"] == 0


def test_llamafactory(folder, checkpoint):
    pytest.importorskip("llamafactory", reason="packages of its own: tests/other_trainers.sh FOLDER llamafactory")
    assert trained("LLaMA-Factory", thinker_of(checkpoint), processor=None, tokenizer=None) == 3 * BINS


def test_axolotl(folder, checkpoint):
    pytest.importorskip("axolotl", reason="packages of its own: tests/other_trainers.sh FOLDER axolotl")
    assert trained("Axolotl", thinker_of(checkpoint)) == 3 * BINS


def test_ms_swift(folder, checkpoint, model_dir):
    pytest.importorskip("swift.llm", reason="packages of its own: tests/other_trainers.sh FOLDER ms_swift")
    model, processor = swift_model(checkpoint, model_dir)
    assert trained("ms-swift", model.thinker, model, processor=processor) == 3 * BINS


def test_veomni(folder):
    pytest.importorskip("veomni", reason="veomni 0.1.12 needs transformers 5.9: packages of its own")
    from veomni.data.dataset import DATASET_REGISTRY

    run("VeOmni")
    assert len(DATASET_REGISTRY["omniprep"](train_path="packed/")) == BINS


def test_nemo_automodel(folder):
    """Its recipe reads `_target_` as a function and the other keys as its arguments."""
    import yaml

    from omniprep.adapters import automodel

    config = yaml.safe_load(BLOCKS["NeMo Automodel"])
    target = config["dataset"].pop("_target_")
    module, name = target.rsplit(".", 1)
    assert module == automodel.__name__ and len(getattr(automodel, name)(**config["dataset"])) == BINS
    collate = config["dataloader"]["collate_fn"]["_target_"]
    assert getattr(automodel, collate.rsplit(".", 1)[1]) is automodel.packed_collate


def test_megatron_bridge(tmp_path, monkeypatch):
    write(tmp_path / "packed", ("text", "image"), multiple=8, model_types=["qwen2_5_vl"])
    monkeypatch.chdir(tmp_path)
    names = run("Megatron-Bridge")
    batch = names["collate"]([names["dataset"][1]])
    assert not (batch["cu_seqlens_q"] % 8).any() and batch["visual_inputs"] is not None


def test_grpo(omniprep, tmp_path, monkeypatch):
    """Of a prompt the model gets the ids of the packed row, up to its answer, and its pixels but for rounding."""
    pytest.importorskip("trl", reason="trl is of omniprep[adapters]")
    pytest.importorskip("dashscope", reason="the Qwen vocabulary comes with dashscope (omniprep[demo])")
    from transformers import AutoModelForImageTextToText, AutoProcessor

    from omniprep.testing.init_model import init_model

    folder = init_model(tmp_path / "model", "qwen2_5_vl")
    options = ("--model", folder, "--bin-length", 2048, "--workers", 0, "--quiet")
    for command in (
        ("build", SAMPLES / "images.jsonl", *options, "--out", tmp_path / "packed"),
        ("export", tmp_path / "packed", "--prompts", "chats", "--out", tmp_path / "prompts.jsonl"),
    ):
        done = omniprep(*command)
        assert done.code == 0, done.err
    rows = PackedDataset(tmp_path / "packed")
    packed = [rows.row(row["source"], row["line"]) for row in rows.rows.to_pylist()]
    monkeypatch.chdir(tmp_path)
    model, steps = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32), []

    def note(_, __, batch):
        if "labels" in batch:
            steps.append({name: value for name, value in batch.items() if isinstance(value, torch.Tensor)})

    model.register_forward_pre_hook(note, with_kwargs=True)
    run("Prompts for reinforcement learning", model=model, processor=AutoProcessor.from_pretrained(folder))
    assert steps
    for batch in steps:
        completions = [
            ids[mask.bool()].tolist() for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
        ]
        (row,) = [row for row in packed if all(ids[: len(asked := asked_of(row))] == asked for ids in completions)]
        # The processor resizes by torchvision, the build as Pillow does: neighboring values of a byte are 0.015 apart.
        torch.testing.assert_close(batch["pixel_values"], torch.cat([row["pixel_values"]] * 2), rtol=0, atol=0.05)
        assert torch.equal(batch["image_grid_thw"], torch.cat([row["image_grid_thw"]] * 2))


def asked_of(row) -> list[int]:
    """Ids of a row up to its last answer, whose labels end the row."""
    labels = row["labels"][0]
    unlabeled = (labels == -100).nonzero()[:, 0]
    last = int((labels != -100).nonzero()[-1, 0])
    return row["input_ids"][0, : int(unlabeled[unlabeled < last][-1]) + 1].tolist()


def test_every_block_has_a_test():
    here = sys.modules[__name__]
    tests = {name.removeprefix("test_") for name in vars(here) if name.startswith("test_")}
    named = {
        "torchdata and torchtitan": "torchdata",
        "TRL's SFTTrainer": "trl",
        "Prompts for reinforcement learning": "grpo",
    }
    for heading in BLOCKS:
        name = named.get(heading, heading.lower().replace("-", "_").replace(" ", "_"))
        assert name in tests or name.replace("llama_factory", "llamafactory") in tests, heading
    assert isinstance(PackedDataset, type) and len(BLOCKS) >= 10
