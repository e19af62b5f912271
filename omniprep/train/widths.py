"""Widths of MLPs that a GPU multiplies slowly are padded while a model trains, and cut off again where it is saved.

The vision tower of the Qwen2.5 models is 3,420 wide within its MLPs. Tensor cores read 8 values of 16 bits at once: on
an H200 a layer of 3,420 runs at 256 TFLOP/s and one of 3,424 at 744. The padding is zero and stays so to the bit. What
it adds to the activations is act(0) * 0 = 0; so the columns of the layer behind it get no gradient, and since these
columns are zero, neither do the rows of the layer before it. An optimizer that treats each weight by itself makes
nothing of a gradient of zero, and weight decay nothing of a weight of zero. Adapters are padded in the same way: new
rows of B, or new columns of A. (Dropout before an adapter draws a number for each input, those of the padding too: with
it the same seed gives other masks than on plain widths.)
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

PADDED_DEVICES = ("cuda",)
"""Where widths are padded: elsewhere nothing would be gained."""
MULTIPLE = 8
ELEMENTWISE = ("adamw_torch", "adamw_torch_fused", "sgd")
"""Optimizers (of --optimizer) that treat each weight by itself; adafactor's means over rows would count the padding."""

# The layers of an MLP whose outputs are its inner width, and the one that takes it.
_MLPS = ((("gate_proj", "up_proj"), "down_proj"), (("linear_fc1",), "linear_fc2"), (("fc1",), "fc2"))
_ACTIVATIONS = ("act_fn", "activation_fn", "act")


def pads_widths(device: torch.device, deepspeed: str | None) -> bool:
    """Whether a run pads widths.

    DeepSpeed's ZeRO-3 has shared the weights out over the ranks by the time that a model is loaded, and its checkpoints
    hold optimizer states in flat buffers, so it trains on the widths as they are.
    """
    return device.type in PADDED_DEVICES and not deepspeed


def pad_widths(model: nn.Module, optimizer: str) -> int:
    """Pad the inner width of every MLP to a multiple of `MULTIPLE`; the number of MLPs.

    Call it before an optimizer is made, and after adapters are: they begin with the values of the plain widths.

    Args:
        model: The model, perhaps with PEFT's adapters.
        optimizer: As in --optimizer; MLPs that train are left alone where it is not one of `ELEMENTWISE`.
    """
    count = 0
    for mlp in model.modules():
        for before, after in _MLPS:
            layers: list[Any] = [getattr(mlp, name, None) for name in (*before, after)]
            if not all(is_linear(layer) for layer in layers) or not gives_zero(mlp, gated=len(before) == 2):
                continue
            *inner, outer = layers
            width = linear_of(outer).weight.shape[1]
            trains = any(p.requires_grad for layer in layers for p in layer.parameters())
            if width % MULTIPLE == 0 or (trains and optimizer not in ELEMENTWISE):
                continue
            for layer in inner:
                pad_layer(layer, 0, width)
            pad_layer(outer, 1, width)
            count += 1
    return count


def is_linear(layer: Any) -> bool:
    """Whether a layer is linear, or one with PEFT's adapters."""
    return isinstance(layer, nn.Module) and type(linear_of(layer)) is nn.Linear


def linear_of(layer: Any) -> Any:
    """The linear layer inside of PEFT's."""
    return getattr(layer, "base_layer", layer)


def gives_zero(mlp: nn.Module, *, gated: bool) -> bool:
    """Whether an MLP makes zeros of the zeros of padding: the gated ones do, others if their activation does."""
    if gated:
        return True
    activations = [getattr(mlp, name) for name in _ACTIVATIONS if callable(getattr(mlp, name, None))]
    return bool(activations) and all(float(activation(torch.zeros(1))) == 0.0 for activation in activations)


def pad_layer(layer: Any, dim: int, width: int) -> None:
    """Pad the outputs (`dim` 0) or inputs (1) of a linear layer and of its adapters, and note the width it had."""
    gap = -width % MULTIPLE
    linear = linear_of(layer)
    pad_parameter(linear, "weight", dim, gap)
    if dim == 0 and linear.bias is not None:
        pad_parameter(linear, "bias", 0, gap)
    for adapter in getattr(layer, "lora_B" if dim == 0 else "lora_A", {}).values():
        pad_parameter(adapter, "weight", dim, gap)
        set_width(adapter, dim, width + gap)
    for part in {layer, linear}:
        set_width(part, dim, width + gap)


def pad_parameter(module: nn.Module, name: str, dim: int, gap: int) -> None:
    """Replace a parameter by one with `gap` more zeros along an axis."""
    plain: nn.Parameter = getattr(module, name)
    sides = [0, 0] * (plain.ndim - 1 - dim) + [0, gap]
    padded = nn.Parameter(pad(plain.data, sides), requires_grad=plain.requires_grad)
    setattr(module, name, padded)
    module.padded_parameters = {**getattr(module, "padded_parameters", {}), name: (dim, plain.shape[dim])}  # type: ignore[assignment]


def set_width(module: nn.Module, dim: int, width: int) -> None:
    """Keep the sizes that a layer shows in step with its weight."""
    setattr(module, "out_features" if dim == 0 else "in_features", width)


def padded_parameters(model: nn.Module) -> Iterator[tuple[str, int, int]]:
    """Name, axis and plain size of every padded parameter."""
    for prefix, module in model.named_modules():
        notes: Mapping[str, tuple[int, int]] = getattr(module, "padded_parameters", {})
        for name, (dim, size) in notes.items():
            yield f"{prefix}.{name}", dim, size


def without_padding(model: nn.Module, state: Mapping[str, Tensor] | None) -> dict[str, Tensor] | None:
    """The weights to save, padding cut off: of `state`, where they had to be gathered, or of the model."""
    notes = list(padded_parameters(model))
    if not notes:
        return None if state is None else dict(state)
    weights = dict(model.state_dict() if state is None else state)
    for name, dim, size in notes:
        if name in weights:  # ranks that save nothing have none
            weights[name] = weights[name].narrow(dim, 0, size).clone(memory_format=torch.contiguous_format)
    return weights


def with_padded_states(optimizer: torch.optim.Optimizer) -> None:
    """Give the states of a resumed optimizer the shapes of its weights: the run before may have padded otherwise.

    What is cut off or added is zero, as the padding's moments are.
    """
    for weight, states in optimizer.state.items():
        for name, state in states.items():
            if isinstance(state, Tensor) and state.ndim == weight.ndim and state.shape != weight.shape:
                gaps = [gap for size, old in zip(weight.shape, state.shape, strict=True) for gap in (size - old, 0)]
                states[name] = pad(state, gaps[::-1])
