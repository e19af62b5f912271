"""Risk: padding that makes layers fast on a GPU changes what is learned, or is found in a checkpoint."""

from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from test_train_run import train
from train_helpers import ARCH, forward_kwargs, make_row, small_family, small_model, write_dataset, write_model

from omniprep.train import run as run_module
from omniprep.train import widths
from omniprep.train.attention_choice import use_attention
from omniprep.train.config import TrainConfig
from omniprep.train.freeze import freeze, resolve_parts
from omniprep.train.model import add_lora
from omniprep.train.widths import pad_widths, padded_parameters, with_padded_states, without_padding

WIDTH = 45  # of the MLPs of the vision tower: no multiple of 8; padded to 48
EVERYTHING = {"freeze_vit": False, "freeze_aligner": False}


@pytest.fixture
def odd(monkeypatch):
    """The small model with an odd width in its vision tower, and 63 in the audio tower's MLPs."""
    import train_helpers

    plain = train_helpers.small_config

    def config(**text):
        made = plain(**text)
        made.thinker_config.vision_config.intermediate_size = WIDTH
        made.thinker_config.audio_config.encoder_ffn_dim = 63
        return made

    monkeypatch.setattr(train_helpers, "small_config", config)


def padding(model) -> list[torch.Tensor]:
    weights = dict(model.named_parameters())
    return [
        weights[name].narrow(dim, size, weights[name].shape[dim] - size) for name, dim, size in padded_parameters(model)
    ]


def steps(model, count=4):
    """Some steps of AdamW with weight decay; the weights afterwards, and the optimizer."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2, weight_decay=0.1)
    for number in range(count):
        rows = [make_row(kind, np.random.default_rng(number)) for kind in ("image", "video", "audio", "text")]
        model(**forward_kwargs(rows)).logits.square().mean().backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return optimizer


@pytest.mark.parametrize("lora", [False, True])
def test_training_on_padded_widths_is_training_on_the_plain_ones(odd, lora):
    """Within rounding, and the padding is zero to the bit after steps with weight decay and clipping.

    In float64: gradients that are zero but for rounding (of biases of keys) AdamW would make as large as all others.
    """
    model = small_model().double()
    use_attention(model, "sdpa")
    parts = resolve_parts(model, ARCH)
    config = TrainConfig(lora=lora, **({"lora_dropout": 0.0} if lora else {}), **EVERYTHING)
    freeze(model, parts, config)
    if lora:
        torch.manual_seed(0)
        model = add_lora(model, parts, config)
    padded = deepcopy(model)
    assert pad_widths(padded, "adamw_torch") == 4, "two layers of each tower"
    adapters = 2 * 3 + 2 * 2 if lora else 0  # one of the two matrices of each
    assert len(list(padded_parameters(padded))) == 2 * 5 + 2 * 3 + adapters
    assert pad_widths(padded, "adamw_torch") == 0, "nothing is padded twice"
    before = without_padding(padded, None)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    optimizer = steps(padded)
    steps(model)
    assert padding(padded) and not any(part.count_nonzero() for part in padding(padded))
    for weight, states in optimizer.state.items():
        assert states["exp_avg"].shape == weight.shape
    ours, theirs = without_padding(padded, None), model.state_dict()
    changed = 0
    for name, value in theirs.items():
        assert ours[name].shape == value.shape and ours[name].is_contiguous()
        torch.testing.assert_close(ours[name], value, rtol=1e-6, atol=1e-9)
        changed += not torch.equal(value, before[name])
    assert changed > 20


def test_what_is_padded(odd):
    """Biases and rows of the layers before, columns of the one behind; nothing else."""
    model = small_model()
    shapes = {name: p.shape for name, p in model.named_parameters()}
    pad_widths(model, "adamw_torch")
    assert {name for name, p in model.named_parameters() if p.shape != shapes[name]} == {
        f"thinker.model.visual.blocks.{block}.mlp.{part}"
        for block in range(2)
        for part in ("gate_proj.weight", "gate_proj.bias", "up_proj.weight", "up_proj.bias", "down_proj.weight")
    } | {
        f"thinker.model.audio_tower.layers.{layer}.{part}"
        for layer in range(2)
        for part in ("fc1.weight", "fc1.bias", "fc2.weight")
    }
    assert model.thinker.model.visual.blocks[0].mlp.up_proj.out_features == 48


def test_only_what_an_optimizer_cannot_notice_is_padded(odd):
    """Adafactor's means are over rows and columns: it gets padding in frozen layers alone."""
    model, config = small_model(), TrainConfig()
    assert pad_widths(deepcopy(model), "adafactor") == 0
    freeze(model, resolve_parts(model, ARCH), config)
    assert pad_widths(model, "adafactor") == 4
    sigmoid = torch.nn.Module()
    sigmoid.fc1, sigmoid.fc2, sigmoid.act = torch.nn.Linear(8, 5), torch.nn.Linear(5, 8), torch.nn.Sigmoid()
    assert pad_widths(sigmoid, "adamw_torch") == 0, "its activation makes 0.5 of zero"


def test_states_of_a_run_that_padded_otherwise(odd):
    """A run on the CPU goes on where one on a GPU stopped, and the other way round."""
    plain = small_model()
    use_attention(plain, "sdpa")
    padded = deepcopy(plain)
    pad_widths(padded, "adamw_torch")
    states = [steps(plain, 1), steps(padded, 1)]
    for optimizer, other in (states, states[::-1]):
        old = deepcopy(optimizer.state_dict())
        optimizer.load_state_dict(other.state_dict())
        with_padded_states(optimizer)
        for key, state in optimizer.state_dict()["state"].items():
            assert state["exp_avg"].shape == old["state"][key]["exp_avg"].shape
            torch.testing.assert_close(state["exp_avg_sq"], old["state"][key]["exp_avg_sq"], rtol=1e-3, atol=1e-9)
        optimizer.load_state_dict(old)


def layout(folder: Path) -> dict[str, tuple]:
    found = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "np") as file:
            for name in file.keys():  # noqa: SIM118
                part = file.get_slice(name)
                found[name] = (path.name, part.get_shape(), part.get_dtype())
    return found


@pytest.mark.parametrize("lora", [False, True])
def test_checkpoints_are_those_of_a_run_without_padding(odd, lora, tmp_path, monkeypatch):
    """Names, shapes and types of all tensors, the bytes of those that do not train, and a resume bit by bit."""
    model, data = write_model(tmp_path / "model"), write_dataset(tmp_path / "d")
    monkeypatch.setattr(run_module, "resolve_family", lambda *_: small_family(model))
    options = {"lora": True, "lora_dropout": 0.0} if lora else {}  # dropout draws a number for each input
    options |= EVERYTHING | {"merge_lora": lora, "save_steps": 2}
    plain = train(model, data, tmp_path / "plain", **options)
    monkeypatch.setattr(widths, "PADDED_DEVICES", ("cpu",))
    padded = train(model, data, tmp_path / "padded", **options)
    assert [round(x["loss"], 4) for x in padded] == [round(x["loss"], 4) for x in plain]
    train(model, data, tmp_path / "rest", resume=str(tmp_path / "padded" / "checkpoint-2"), **options)
    for part in ("", "checkpoint-2", "checkpoint-4", *(("merged",) if lora else ())):
        ours, theirs = tmp_path / "padded" / part, tmp_path / "plain" / part
        assert layout(ours) == layout(theirs) and layout(ours)
        if lora or part:
            continue
        assert layout(ours).keys() == layout(model).keys()
        assert {name: shape for name, (_, shape, _) in layout(ours).items()} == {
            name: shape for name, (_, shape, _) in layout(model).items()
        }
    for path in (tmp_path / "padded").glob("*.safetensors"):
        assert path.read_bytes() == (tmp_path / "rest" / path.name).read_bytes(), "a resume is exact"


def test_frozen_weights_keep_their_bytes(odd, tmp_path, monkeypatch):
    model, data = write_model(tmp_path / "model"), write_dataset(tmp_path / "d")
    monkeypatch.setattr(run_module, "resolve_family", lambda *_: small_family(model))
    monkeypatch.setattr(widths, "PADDED_DEVICES", ("cpu",))
    train(model, data, tmp_path / "run", max_steps=1)
    with safe_open(model / "model.safetensors", "pt") as before:
        held = {name: before.get_tensor(name) for name in before.keys() if "visual" in name}  # noqa: SIM118
    found = {}
    for path in (tmp_path / "run").glob("*.safetensors"):
        with safe_open(path, "pt") as after:
            found |= {name: after.get_tensor(name) for name in after.keys() if name in held}  # noqa: SIM118
    assert held.keys() == found.keys() and all(torch.equal(found[name], value) for name, value in held.items())
