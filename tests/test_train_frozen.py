"""Risk: what does not train is computed backward all the same (memory, time), or what trains gets no gradient."""

from copy import deepcopy

import pytest
import torch
from small_families import FAMILIES, bin_of, core_of, load_family
from transformers.modeling_layers import GradientCheckpointingLayer

from omniprep.train.attention_choice import use_attention
from omniprep.train.config import TrainConfig
from omniprep.train.freeze import (
    compute_frozen_towers_without_gradients,
    freeze,
    keep_frozen_in_eval,
    keep_inputs_plain,
    under,
)
from omniprep.train.model import add_lora

CASES = {
    "full, frozen towers": {},
    "LoRA, frozen towers": {"lora": True},
    "aligners alone": {"freeze_llm": True, "freeze_aligner": False},
    "full, aligners too": {"freeze_aligner": False},
    "LoRA, aligners too": {"lora": True, "freeze_aligner": False},
    "full, towers too": {"freeze_vit": False, "freeze_aligner": False},
    "LoRA, towers too": {"lora": True, "freeze_vit": False},
}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tmp_path_factory):
    return load_family(request.param, tmp_path_factory.mktemp(request.param))


def leaves(loss: torch.Tensor) -> list[torch.Tensor]:
    """The tensors that a backward pass from here reaches."""
    seen, found, todo = set(), [], [loss.grad_fn]
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.append(node.variable)
        todo += [parent for parent, _ in node.next_functions]
    return found


def tensors(value: object) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [tensor for part in parts for tensor in tensors(part)]


@pytest.mark.parametrize("case", CASES)
def test_no_backward_node_of_what_is_frozen_and_gradients_of_all_that_trains(family, case):
    model, parts = family
    config, model = TrainConfig(gradient_checkpointing=True, lora_dropout=0.05, **CASES[case]), deepcopy(model)
    use_attention(model, "sdpa")
    keep_inputs_plain(model)
    freeze(model, parts, config)
    trained = add_lora(model, parts, config) if config.lora else model
    compute_frozen_towers_without_gradients(trained, parts)
    if config.lora:
        adapted = {parts.part_of(name) for name, module in model.named_modules() if hasattr(module, "lora_A")}
        trains = {"llm": True, "tower": not config.freeze_vit, "aligner": not config.freeze_aligner}
        assert adapted == {part for part, there in trains.items() if there}
    trained.activation_checkpointing_enable({"use_reentrant": False})
    keep_frozen_in_eval(trained, parts)
    trained.train()
    outside = {}  # outputs of frozen modules of towers that require a gradient

    def note(name):
        def hook(module, args, output):
            if any(tensor.requires_grad for tensor in tensors(output)):
                outside[name] = type(module).__name__

        return hook

    for name, module in model.named_modules():
        weights = list(module.parameters())
        frozen = weights and not any(p.requires_grad for p in weights)
        if (
            under(name, parts.towers)
            and not under(name, parts.aligner)
            and frozen
            and CASES[case].get("freeze_vit", True)
        ):
            module.register_forward_hook(note(name))
    targets = torch.arange(6)
    out = trained(**bin_of(core_of(model)), logits_to_keep=targets + 1, targets=targets)
    loss = out.losses.sum()
    reached = {id(tensor) for tensor in leaves(loss)}
    assert not outside, outside
    wanted = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert reached <= {id(p) for p in wanted.values()}, "a leaf of the graph that does not train"
    loss.backward()
    assert wanted and not [name for name, p in model.named_parameters() if p.grad is not None and not p.requires_grad]
    missing = [name for name, p in wanted.items() if p.grad is None]
    experts = ("experts", "mlp.gate")  # a small bin does not send a token to every expert
    assert not [name for name in missing if not any(part in name for part in experts)], missing
    if case == "full, towers too":
        assert {parts.part_of(name) for name in wanted} == {"llm", "tower", "aligner"}


def test_the_same_losses_and_gradients_as_with_the_hooks_of_transformers(family):
    model, parts = family
    found = []
    for plain in (False, True):
        copy = deepcopy(model)
        use_attention(copy, "sdpa")
        config = TrainConfig(lora=True)
        if plain:
            keep_inputs_plain(copy)
        torch.manual_seed(0)
        trained = add_lora(copy, parts, config)
        if plain:
            compute_frozen_towers_without_gradients(trained, parts)
        trained.activation_checkpointing_enable({"use_reentrant": False})
        hooks = sum(len(m._forward_hooks) for m in copy.modules())
        assert bool(hooks) != plain, "transformers' hooks are there without ours, and gone with it"
        targets = torch.arange(6)
        losses = trained.eval()(**bin_of(core_of(copy)), logits_to_keep=targets + 1, targets=targets).losses
        losses.sum().backward()
        found.append([losses.detach(), *(p.grad for p in copy.parameters() if p.requires_grad)])
    assert len(found[0]) == len(found[1])
    for ours, theirs in zip(*found, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("case", ["aligners alone", "adapters in the first layer alone", "LoRA, frozen towers"])
def test_frozen_layers_that_gradients_pass_are_recomputed_too(family, case):
    """Their activations are kept otherwise, whatever --gradient-checkpointing says: transformers leaves out layers in
    eval mode, which frozen ones are."""
    model, parts = family
    first = "|".join(parts.language_model).replace(".", r"\.")
    options = CASES.get(case, {"lora": True, "target_regex": rf"(?:{first})\.layers\.0\.self_attn\.q_proj"})
    config, model = TrainConfig(lora_dropout=0.05, **options), deepcopy(model)
    use_attention(model, "sdpa")
    keep_inputs_plain(model)
    freeze(model, parts, config)
    trained = add_lora(model, parts, config) if config.lora else model
    compute_frozen_towers_without_gradients(trained, parts)
    trained.activation_checkpointing_enable({"use_reentrant": False})
    keep_frozen_in_eval(trained, parts)
    trained.train()
    layers = [
        module
        for prefix in parts.language_model
        for name, module in model.get_submodule(prefix).named_modules()
        if isinstance(module, GradientCheckpointingLayer)
    ]
    calls = dict.fromkeys(layers, 0)
    for layer in layers:
        norm = layer.input_layernorm  # runs with the layer, and again when the layer is recomputed
        norm.register_forward_pre_hook(lambda *_, layer=layer: calls.update({layer: calls[layer] + 1}))
        assert any(p.requires_grad for p in norm.parameters()) == norm.training, (
            "what is within a frozen layer is in eval"
        )
    targets = torch.arange(6)
    trained(**bin_of(core_of(model)), logits_to_keep=targets + 1, targets=targets).losses.sum().backward()
    assert layers and set(calls.values()) == {2}
