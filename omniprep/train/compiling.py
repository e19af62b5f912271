"""torch.compile for bins: every layer of the language model compiled once, for one shape.

Bins are nearly full but not all of one length, so `padded` adds a row of padding up to the bin length: one shape, one
compilation. Layers are compiled one by one (regional compilation: seconds instead of minutes, all layers share the
code); the towers are not, since every bin has other images. Borders of rows would be other numbers in every bin; what
the attention does not read is taken off before the layers see it.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from omniprep.errors import OmniprepError

__all__ = ["compile_layers", "padded"]

BACKEND = "inductor"
_BORDERS = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")


def compile_layers(model: PreTrainedModel, language_model: Sequence[str], attention: str) -> int:
    """Compile the layers of the language model in place; their number.

    Args:
        model: Has an attention implementation other than SDPA row by row.
        language_model: Prefixes of the language model's modules.
        attention: Name of the attention implementation.

    Raises:
        OmniprepError: The attention has other shapes in every bin, or no layer is found.
    """
    if attention == "sdpa":
        raise OmniprepError(
            "--torch-compile: SDPA row by row has other shapes in every bin; use --attn flash_attention_2 or "
            "flex_attention (eager on the CPU)"
        )
    kinds = set(model._no_split_modules or ())
    layers = [
        module
        for name, module in model.named_modules()
        if type(module).__name__ in kinds and any(name.startswith(f"{prefix}.") for prefix in language_model)
    ]
    if not layers:
        raise OmniprepError(f"--torch-compile: {type(model).__name__} does not say which of its modules are layers")
    unread = ("row_lengths", *(() if attention == "flash_attention_2" else _BORDERS))

    def drop(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, {name: value for name, value in kwargs.items() if name not in unread}

    for layer in layers:
        layer.compile(backend=BACKEND)
    for prefix in language_model:
        module = model.get_submodule(prefix)
        if any(layer in layers for layer in module.modules()):
            module.register_forward_pre_hook(drop, with_kwargs=True)
    return len(layers)


def padded(stacked: dict[str, Any], length: int) -> dict[str, Any]:
    """What `omniprep.data.stack` gives, made `length` tokens long by a last row that nothing is learned from."""
    gap = length - stacked["input_ids"].shape[1]
    if gap <= 0:
        return stacked
    fill = {"input_ids": 0, "labels": -100, "loss_scale": 0}
    out = dict(stacked)
    for name, value in fill.items():
        if name in stacked:
            row: Tensor = stacked[name]
            out[name] = torch.cat([row, row.new_full((1, gap), value)], 1)
    positions: Tensor = stacked["position_ids"]
    out["position_ids"] = torch.cat([positions, torch.arange(gap).expand(*positions.shape[:-1], gap)], -1)
    borders: Tensor = stacked["cu_seq_lens_q"]
    out["cu_seq_lens_q"] = out["cu_seq_lens_k"] = torch.cat([borders, borders.new_tensor([length])])
    out["max_length_q"] = out["max_length_k"] = max(stacked["max_length_q"], gap)
    return out
