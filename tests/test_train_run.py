"""Risk: a run that learns something else than it says, or that a resume changes."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from train_helpers import small_family, write_dataset, write_model

from omniprep.progress import QuietReporter
from omniprep.train import run as run_module
from omniprep.train.config import TrainConfig


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data") / "d")


@pytest.fixture(autouse=True)
def _family(model, monkeypatch):
    monkeypatch.setattr(run_module, "resolve_family", lambda *_: small_family(model))


def train(model, data, out, **options):
    defaults = dict(max_steps=4, learning_rate=1e-3, num_workers=0, logging_steps=1, report_to=("none",), device="cpu")
    config = TrainConfig(model=str(model), data=(str(data),), out=str(out), **(defaults | options))
    run_module.train(config, QuietReporter())
    state = json.loads(
        (sorted(Path(out).glob("checkpoint-*"), key=lambda p: int(p.name[11:]))[-1] / "trainer_state.json").read_text()
    )
    return [x for x in state["log_history"] if "loss" in x]


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    found = {}
    for path in folder.glob("*.safetensors"):
        found |= load_file(path)
    return found


def test_training_lowers_the_loss_and_saves_a_whole_checkpoint(model, data, tmp_path):
    logs = train(model, data, tmp_path / "run", max_steps=8, epochs=1, save_steps=0)
    assert logs[-1]["loss"] < logs[0]["loss"]
    assert {"token_accuracy", "tokens_per_s", "data_wait_ms", "grad_norm", "learning_rate"} <= set(logs[-1])
    before, after = tensors(model), tensors(tmp_path / "run")
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all(name.startswith(("thinker.model.", "thinker.lm_head.")) for name in changed)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["enable_audio_output"] is True and config["architectures"] == ["Qwen2_5OmniForConditionalGeneration"]
    assert (tmp_path / "run" / "spk_dict.pt").exists() and (tmp_path / "run" / "preprocessor_config.json").exists()
    assert (tmp_path / "run" / "train_config.yaml").exists()


@pytest.mark.parametrize("lora", [False, True])
def test_resume_is_exact(model, data, tmp_path, lora):
    options = dict(
        max_steps=7, grad_accumulation=2, lora=lora, lora_dropout=0.1, freeze_vit=False, freeze_aligner=False
    )
    whole = train(model, data, tmp_path / "whole", save_steps=3, **options)
    first = tmp_path / "whole" / "checkpoint-3"
    rest = train(model, data, tmp_path / "rest", save_steps=0, resume=str(first), **options)
    same = [{k: x[k] for k in ("loss", "grad_norm", "learning_rate", "epoch", "step", "token_accuracy")} for x in whole]
    assert [{k: x[k] for k in same[0]} for x in rest] == same
    a, b = tensors(tmp_path / "whole"), tensors(tmp_path / "rest")
    assert a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        x, y = (torch.load(tmp_path / d / "checkpoint-7" / name, weights_only=False) for d in ("whole", "rest"))
        assert str(x) == str(y)


def test_checkpoint_is_loaded_by_transformers(model, data, tmp_path):
    from transformers import Qwen2_5OmniThinkerForConditionalGeneration

    train(model, data, tmp_path / "run", max_steps=2)
    loaded, info = Qwen2_5OmniThinkerForConditionalGeneration.from_pretrained(
        tmp_path / "run", output_loading_info=True
    )
    assert not info["missing_keys"]
    with safe_open(tmp_path / "run" / "model-thinker.safetensors", "pt") as file:
        assert torch.equal(file.get_tensor("thinker.model.norm.weight"), loaded.model.language_model.norm.weight)
