"""Risk: a part trains that should not, or the other way round, or at another rate."""

import re

import pytest
import torch
from train_helpers import ARCH, small_model

from omniprep.errors import OmniprepError
from omniprep.train.config import TrainConfig
from omniprep.train.freeze import freeze, keep_frozen_in_eval, lora_regex, parameter_groups, resolve_parts
from omniprep.train.model import add_lora


@pytest.fixture(scope="module")
def model():
    return small_model()


@pytest.fixture(scope="module")
def parts(model):
    return resolve_parts(model, ARCH)


LLM = {"thinker.model.language_model", "thinker.lm_head"}
ALIGNER = {"thinker.model.audio_tower.proj", "thinker.model.visual.merger"}
TOWER = {"thinker.model.audio_tower", "thinker.model.visual"}


def group(name):
    for label, prefixes in (("aligner", ALIGNER), ("tower", TOWER), ("llm", LLM)):
        if any(name.startswith(p + ".") for p in prefixes):
            return label
    raise AssertionError(name)


@pytest.mark.parametrize(
    ("options", "trained"),
    [
        ({}, {"llm"}),
        ({"freeze_vit": False}, {"llm", "tower"}),
        ({"freeze_aligner": False}, {"llm", "aligner"}),
        ({"freeze_llm": True, "freeze_aligner": False}, {"aligner"}),
        ({"freeze_vit": False, "freeze_aligner": False}, {"llm", "tower", "aligner"}),
    ],
)
def test_frozen_parts_have_no_gradients_and_stay_in_eval(model, parts, options, trained):
    freeze(model, parts, TrainConfig(**options))
    found = {group(n) for n, p in model.named_parameters() if p.requires_grad}
    assert found == trained
    for name, p in model.named_parameters():
        unused = name.startswith(model.never_used)
        assert p.requires_grad == (group(name) in trained and not unused), name
    keep_frozen_in_eval(model, parts)
    for _ in range(2):  # as the Trainer does around an evaluation
        assert model.train() is model
        assert model.thinker.lm_head.training == ("llm" in trained)
        assert model.thinker.model.visual.blocks[0].training == ("tower" in trained)
        assert model.thinker.model.visual.blocks[0].mlp.act_fn.training == ("tower" in trained), "it has no weights"
        assert model.thinker.model.visual.merger.training == ("aligner" in trained)
        model.eval()
        assert not any(module.training for module in model.modules())


def test_a_step_walks_over_no_modules(model, parts, monkeypatch):
    """What the Trainer calls before each forward pass; a walk over a 3B model takes 30 ms."""
    freeze(model, parts, TrainConfig())
    keep_frozen_in_eval(model, parts)
    model.train()

    def walk(self, *_):
        raise AssertionError("a walk over modules")

    for name in ("modules", "children", "named_modules", "named_children"):
        monkeypatch.setattr(torch.nn.Module, name, walk)
    model.train()


def test_nothing_left_to_train_is_an_error(model, parts):
    with pytest.raises(OmniprepError, match="nothing is left"):
        freeze(model, parts, TrainConfig(freeze_llm=True))
    with pytest.raises(OmniprepError, match="no module is left"):
        lora_regex(model, parts, TrainConfig(lora=True, freeze_llm=True))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {"llm"}),
        ({"freeze_vit": False}, {"llm", "tower"}),
        ({"freeze_llm": True, "freeze_aligner": False}, {"aligner"}),
        ({"freeze_vit": False, "freeze_aligner": False}, {"llm", "tower", "aligner"}),
    ],
)
def test_lora_goes_to_the_linear_layers_of_what_is_not_frozen(model, parts, options, expected):
    """As ms-swift 3.9.3 `all-linear`: by class name, without the output head and without convolutions."""
    regex = re.compile(lora_regex(model, parts, TrainConfig(lora=True, **options)))
    matched = {n for n, _ in model.named_modules() if regex.fullmatch(n)}
    linear = {n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and n != "thinker.lm_head"}
    assert matched == {n for n in linear if group(n + ".") in expected}


def test_target_regex_replaces_all_linear(model, parts):
    assert lora_regex(model, parts, TrainConfig(lora=True, target_regex="x.y", freeze_llm=True)) == "x.y"


def test_learning_rates_by_part(model, parts):
    config = TrainConfig(freeze_vit=False, freeze_aligner=False, vit_lr=1e-6, learning_rate=1e-4)
    freeze(model, parts, config)
    decay = {n for n, p in model.named_parameters() if p.ndim > 1}
    groups = parameter_groups(model, parts, config, decay)
    rates = {(g["part"], g["lr"]) for g in groups}
    assert rates == {("tower", 1e-6), ("aligner", 1e-4), ("llm", 1e-4)}
    trained = {id(p) for p in model.parameters() if p.requires_grad}
    assert sorted(id(p) for g in groups for p in g["params"]) == sorted(trained), "every weight in one group"
    assert {g["weight_decay"] for g in groups} == {0.1, 0.0}


def test_a_prefix_that_is_no_module_is_refused(model):
    from types import SimpleNamespace

    wrong = SimpleNamespace(**(vars(ARCH) | {"aligner": ("thinker.visual.projector",)}))
    with pytest.raises(OmniprepError, match="projector"):
        resolve_parts(model, wrong)


def test_a_model_with_adapters_gets_the_arguments_of_one_without():
    """A model of a plug-in (pipelines/toy_model.py) need not take what PEFT would add, such as inputs_embeds."""
    model, given = small_model(), {}
    adapted = add_lora(model, resolve_parts(model, ARCH), TrainConfig(lora=True))
    model.forward = lambda **arguments: given.update(arguments)
    batch = {"input_ids": torch.zeros(1, 4), "cu_seq_lens_q": torch.tensor([0, 4])}
    adapted(**batch)
    assert given.keys() == batch.keys()
