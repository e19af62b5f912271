"""Which weights train: the reference's freezing, LoRA targets and learning-rate groups, by module prefixes of the
family.

In ms-swift 3.9.3 freeze_llm, freeze_vit and freeze_aligner name the language model, the
towers (with their aligners) and the aligners; an aligner that is not frozen trains even inside a frozen tower; the
generator (talker, token2wav) never trains. Two departures, which later versions of ms-swift make too: freeze_llm
freezes the output head as well, and the head belongs to a learning-rate group. Prefixes are those of the checkpoint's
tensors (`thinker.visual`), which `module_prefix` turns into those of the loaded module (`thinker.model.visual` since
transformers 5).
"""

import inspect
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightRenaming, rename_source_key
from transformers.modeling_layers import GradientCheckpointingLayer

from omniprep.errors import OmniprepError
from omniprep.families.kinds import ModelArch
from omniprep.train.config import TrainConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Parts:
    """Module prefixes of the loaded model."""

    language_model: tuple[str, ...]
    towers: tuple[str, ...]
    aligner: tuple[str, ...]
    generator: tuple[str, ...]

    def part_of(self, name: str) -> str:
        """The part a parameter or module belongs to: aligner, tower, generator or llm (the rest, such as the head)."""
        for part in ("aligner", "towers", "generator", "language_model"):
            if under(name, getattr(self, part)):
                return {"towers": "tower", "language_model": "llm"}.get(part, part)
        return "llm"


def under(name: str, prefixes: Iterable[str]) -> bool:
    """Whether a dotted name is one of the prefixes or lies below one."""
    return any(name == p or name.startswith(p + ".") for p in prefixes)


def module_prefix(model: PreTrainedModel, prefix: str) -> str:
    """The module prefix under which the loaded model has the tensors of a checkpoint prefix."""
    renamings = [r for r in get_model_conversion_mapping(model, add_legacy=False) if isinstance(r, WeightRenaming)]
    renamed: str = rename_source_key(prefix + ".weight", renamings, [])[0]
    return renamed.removesuffix(".weight")


def resolve_parts(model: PreTrainedModel, arch: ModelArch) -> Parts:
    """The family's prefixes as module prefixes; each but the generator's must match something."""
    names = [n for n, _ in model.named_modules()]
    prefixes = {
        key: tuple(module_prefix(model, p) for p in getattr(arch, key))
        for key in ("language_model", "vision_tower", "aligner", "generator")
    }
    for key in ("language_model", "vision_tower", "aligner"):
        for prefix in prefixes[key]:
            if prefix not in names:
                raise OmniprepError(f"the family's {key} {prefix!r} is no module of {type(model).__name__}")
    return Parts(
        language_model=prefixes["language_model"],
        towers=prefixes["vision_tower"],
        aligner=prefixes["aligner"],
        generator=prefixes["generator"],
    )


def freeze(model: nn.Module, parts: Parts, config: TrainConfig) -> None:
    """Set requires_grad of every weight for full training; refuse options that leave nothing to train."""
    trains = {
        "llm": not config.freeze_llm,
        "tower": not config.freeze_vit,
        "aligner": not config.freeze_aligner,
        "generator": False,
    }
    never = getattr(model, "never_used", ())
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trains[parts.part_of(name)] and not under(name, never))
    if not any(p.requires_grad for p in model.parameters()):
        raise OmniprepError("nothing is left to train: --freeze-llm, --freeze-vit and --freeze-aligner are all on")


def keep_frozen_in_eval(model: nn.Module, parts: Parts) -> None:
    """Let `model.train()` keep modules without trainable weights in eval mode (no dropout there).

    Except for frozen layers that gradients go through (`passed_layers`): transformers recomputes the activations of a
    layer (--gradient-checkpointing) only where the layer itself is in training mode. What is inside of them is in eval.

    Which ones is found once, here; and `model.train()`, which the Trainer calls before every forward pass, walks over
    the modules only where the mode changes (both walks together took 30 to 69 ms a pass for a 3B model).
    """
    model.__dict__.pop("train", None)  # of an earlier call
    switch = model.train
    frozen = {
        part
        for module in model.modules()
        if (parameters := list(module.parameters())) and not any(p.requires_grad for p in parameters)
        for part in module.modules()
    } - passed_layers(model, parts)
    switched = False

    def train(mode: bool = True) -> nn.Module:
        nonlocal switched
        if mode != model.training or not switched:
            switch(mode)
            for module in frozen:
                module.training = False
            switched = True
        return model

    model.train = train  # type: ignore[method-assign]


def passed_layers(model: nn.Module, parts: Parts) -> set[nn.Module]:
    """Layers that can recompute their activations, and keep them for gradients whether their own weights train or not.

    Those of the language model, which gradients pass on their way to aligners, towers and adapters, and those of towers
    with weights that train. Not layers that look at their mode themselves, such as for a dropout of their own: frozen,
    they must be in eval mode.
    """
    trained = {parts.part_of(plain_name(name)) for name, p in model.named_parameters() if p.requires_grad}
    return {
        module
        for name, module in model.named_modules()
        if isinstance(module, GradientCheckpointingLayer)
        and parts.part_of(plain_name(name)) in {"llm", *(trained & {"tower"})}
        and "training" not in inspect.unwrap(type(module).forward).__code__.co_names
    }


def plain_name(name: str) -> str:
    """The name of a weight or module without what PEFT and DistributedDataParallel put in front."""
    return name.removeprefix("module.").removeprefix("base_model.model.")


def keep_inputs_plain(model: PreTrainedModel) -> None:
    """Leave the outputs of embeddings and of the towers' first layers without gradients.

    With gradient checkpointing transformers and PEFT hook these so that they require a gradient, which reentrant
    checkpointing needs. Ours is not reentrant, and the hooks would have the whole backward pass of frozen towers
    computed for nothing: 617 of 1,991 ms a step and 69 GiB on a 3B model with image bins of 16k tokens.
    """
    setattr(model, "enable_input_require_grads", lambda: None)  # noqa: B010  # mypy has no assignment to a method


def compute_frozen_towers_without_gradients(model: nn.Module, parts: Parts) -> None:
    """Run towers without trainable weights under no_grad; call it after `requires_grad` is set everywhere.

    A tower of which a part trains, such as its aligner or adapters, keeps its gradients: autograd goes back no further
    than to the first weight that trains.
    """
    wrapped: Any = model
    base = wrapped.get_base_model() if hasattr(model, "get_base_model") else model  # inside of PEFT's wrapper
    for prefix in parts.towers:
        tower = base.get_submodule(prefix)
        if not any(p.requires_grad for p in tower.parameters()):
            tower.forward = torch.no_grad()(tower.forward)


def lora_regex(model: nn.Module, parts: Parts, config: TrainConfig) -> str:
    """The full-match regular expression of the modules that get adapters (ms-swift 3.9.3 tuner.py:51-109,
    `all-linear`).

    Every linear layer of the language model unless freeze_llm, of the towers without their aligners unless freeze_vit,
    of the aligners unless freeze_aligner; never the output head, never a convolution.
    """
    if config.target_regex:
        return config.target_regex
    trains = {"llm": not config.freeze_llm, "tower": not config.freeze_vit, "aligner": not config.freeze_aligner}
    head = model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None
    names = [
        name
        for name, module in model.named_modules()
        if "linear" in type(module).__name__.lower() and module is not head and trains.get(parts.part_of(name), False)
    ]
    if not names:
        raise OmniprepError("no module is left for LoRA: --freeze-llm, --freeze-vit and --freeze-aligner are all on")
    # Layer numbers within a name become \\d+: a few hundred characters for a model of 28 layers.
    patterns = {re.sub(r"(?<=\\\.)\d+(?=\\\.)", r"\\d+", re.escape(name)) for name in names}
    return f"^(?:{'|'.join(sorted(patterns))})$"


def parameter_groups(model: nn.Module, parts: Parts, config: TrainConfig, decay: set[str]) -> list[dict[str, Any]]:
    """Optimizer groups: tower, aligner and language model, each with and without weight decay, none empty."""
    rates = {"tower": config.vit_lr, "aligner": config.aligner_lr}
    groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            part = parts.part_of(plain_name(name))
            groups.setdefault((part, name in decay), []).append(parameter)
    out = []
    for (part, decayed), parameters in sorted(groups.items()):
        rate = rates.get(part)
        out.append(
            {
                "params": parameters,
                "lr": config.peak_lr if rate is None else rate,
                "weight_decay": config.weight_decay if decayed else 0.0,
                "part": part,
            }
        )
    return out
