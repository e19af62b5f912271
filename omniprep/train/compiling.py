"""torch.compile for bins: every layer of the language model compiled once, for one shape.

Bins are nearly full but not all of one length, so `padded` adds a row of padding up to the bin length: one shape, one
compilation. Layers are compiled one by one (regional compilation: seconds instead of minutes, all layers share the
code); the towers are not, since every bin has other images. How many rows a bin has and how long the longest is differ
from bin to bin: `VARLEN` gets both as sizes that are marked as dynamic, so that the graph has them as symbols; other
attentions do not read borders, which are taken off before the layers see them.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from omniprep.errors import OmniprepError
from omniprep.train.attention import KERNELS

BACKEND = "inductor"
_BORDERS = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "row_lengths")


def compile_layers(model: PreTrainedModel, language_model: Sequence[str], attention: str) -> int:
    """Compile the layers of the language model in place; their number. Refuses SDPA, whose shapes vary."""
    if attention == "sdpa":
        raise OmniprepError(
            "--torch-compile: SDPA row by row has other shapes in every bin; use --attn varlen (torch 2.10 or later) "
            "or flex_attention, on a GPU (eager on the CPU)"
        )
    kinds = set(model._no_split_modules or ())
    layers = [
        module
        for name, module in model.named_modules()
        if type(module).__name__ in kinds and any(name.startswith(f"{prefix}.") for prefix in language_model)
    ]
    if not layers:
        raise OmniprepError(f"--torch-compile: {type(model).__name__} does not say which of its modules are layers")
    for layer in layers:
        layer.compile(backend=BACKEND)
    for prefix in language_model:
        module = model.get_submodule(prefix)
        if any(layer in layers for layer in module.modules()):
            module.register_forward_pre_hook(
                _dynamic_borders if attention in KERNELS else _without_borders, with_kwargs=True
            )
    return len(layers)


def _without_borders(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    return args, {name: value for name, value in kwargs.items() if name not in _BORDERS}


def _dynamic_borders(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The borders of rows with sizes that torch.compile takes as symbols.

    A number would be a constant of the graph. As the first size of a tensor without elements it is a symbol; at least
    2, since torch.compile takes sizes of 0 and 1 for constants in any case.
    """
    args, kept = _without_borders(module, args, kwargs)
    borders: Tensor | None = kwargs.get("cu_seq_lens_q")
    if borders is not None:
        longest = borders.new_empty(max(int(kwargs["max_length_q"]), 2), 0)
        for tensor in (borders, longest):
            torch._dynamo.mark_dynamic(tensor, 0)
        kept |= {"cu_seq_lens_q": borders, "max_length_q": longest}
    return args, kept


def padded(stacked: dict[str, Any], length: int) -> dict[str, Any]:
    """What `omniprep.data.stack` gives, made `length` tokens long by a last row that nothing is learned from."""
    gap = length - stacked["input_ids"].shape[1]
    if gap <= 0:
        return stacked
    fill = {"input_ids": 0, "labels": -100, "loss_scale": 0}
    out = dict(stacked)
    fill |= {column.name: 0 for column in stacked["columns"] if column.kind == "tokens"}
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
