"""The device half of loading: floats made of bytes, items joined as their column declares.

Media travel as they are stored and become floats where the model is. Shapes of items are known on the host, so nothing
here waits for the device.
"""

import json
import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from omniprep.data.device import HAS_TRITON, unpack_pixels
from omniprep.data.loss import of_preferences, with_weights
from omniprep.errors import OmniprepError
from omniprep.shards.affine import byte_floats
from omniprep.shards.forms import channel_run
from omniprep.shards.loaders import LOADERS, Loader, column_loader
from omniprep.shards.schema import LOADS, Column

Shape = tuple[int, ...]
CHUNK = 1 << 20
"""Bytes that the host turns into floats at a time: numpy makes an index of 8 bytes for each."""
MOST_PADDING, SPARE_VALUES = 1024, 1 << 26
"""Most values of a padded argument for each that was stored, and a spare for small ones: items of which one is wide and
one is high must not fill the memory with what they are padded to."""


def to_model(
    stacked: Mapping[str, Any], device: torch.device | str | None = None, dtype: torch.dtype | None = None
) -> dict[str, Any]:
    """Arguments of the model's forward from what `stack` made: copied to the device, then normalized there.

    Args:
        stacked: From `stack`, through a DataLoader or not. Copies from pinned memory do not block.
        device: Where to (default: stay).
        dtype: Type of the media's floats (default: float32; floats that are stored in another type keep it). Weights of
            the loss stay float32.

    Returns:
        As `omniprep.collate`.
    """
    columns: dict[str, Column] = {column.name: column for column in stacked["columns"]}
    shapes: Mapping[str, tuple[Shape, ...]] = stacked.get("item_shapes", {})
    result: dict[str, Any] = {}
    for name, value in stacked.items():
        if name in ("columns", "item_shapes"):
            continue
        if isinstance(value, Tensor) and device is not None:
            value = value.to(device, non_blocking=True)
        if name in columns:
            column = columns[name]
            if column.kind == "flat" and column.join == "concat" and "mask" not in column.params and not value.numel():
                continue  # tiles, say, of pictures that have none: processors give nothing then, and classes take none
            result |= _arguments(column, value, shapes.get(name), dtype)
        else:
            result[name] = value
    if "loss_scale" in result:  # a model would take and ignore it: its labels see to it that nobody trains so
        result["labels"] = with_weights(result["labels"], result["loss_scale"])
    if "pair_ids" in result:  # likewise: its own loss would train on the rejected answers
        result["labels"] = of_preferences(result["labels"])
    return result


def registered_loader(column: Column) -> Loader:
    """The loader of a column that names one, registered by this process or by an installed package.

    Raises:
        OmniprepError: Nothing registers it, or another version of it.
    """
    if column.load not in LOADERS:
        from omniprep.families.loading import load_families

        load_families()  # the entry points of installed packages, which the user chose
    return column_loader(column)


def _arguments(
    column: Column, values: Tensor, shapes: tuple[Shape, ...] | None, dtype: torch.dtype | None
) -> dict[str, Any]:
    """The argument of a column, and its mask where it has one.

    Args:
        column: Its declaration; its load is not "none".
        values: As `stack` gives them: (entries, *shape) of items and rows, (1, L) of tokens, (clips, bands, frames) of
            spectrograms of load "mel", units end to end of other flat columns; one flat array where shapes vary.
        shapes: (units, *shape) of each item, for columns of which `needs_shapes` is true.
        dtype: Type of floats of flat columns (default: float32 for pixels and bfloat16, else their own).

    Raises:
        OmniprepError: The items do not fit together, or the column's loader is not registered.
    """
    arguments: dict[str, Any]
    if column.kind != "flat":
        arguments = {column.name: values.to(torch.int64) if _is_integer(values) else values}
    elif shapes is None:
        arguments = {column.name: _loaded(column, values, dtype)}
    else:
        arguments = _joined(column, values, shapes, dtype)
    if "forward_dtype" in column.params:
        arguments[column.name] = _cast(arguments[column.name], getattr(torch, column.params["forward_dtype"]))
    if column.batch_axis:
        arguments = {name: value[None] for name, value in arguments.items()}
    return arguments


def needs_shapes(column: Column) -> bool:
    """Whether the shape of each item decides about the argument."""
    return column.kind == "flat" and (column.varies or column.join != "concat")


def _is_integer(values: Tensor) -> bool:
    return not values.is_floating_point() and values.dtype != torch.bool


def _cast(value: Tensor | list[Tensor], dtype: torch.dtype) -> Tensor | list[Tensor]:
    return [part.to(dtype) for part in value] if isinstance(value, list) else value.to(dtype)


def _joined(column: Column, values: Tensor, shapes: tuple[Shape, ...], dtype: torch.dtype | None) -> dict[str, Any]:
    largest = tuple(max(sizes) for sizes in zip(*shapes, strict=True))
    if all(shape == largest for shape in shapes):  # one call for all
        units = _loaded(column, values.reshape(len(shapes) * largest[0], *largest[1:]), dtype)
        if column.join in ("concat", "batch", "pad") and not column.params.keys() & {"mask", "pad_to"}:  # and no copy
            concat = column.join == "concat"
            return {column.name: units if concat else units.reshape(len(shapes), largest[0], *units.shape[1:])}
        items = list(torch.split(units, largest[0])) if largest[0] else [units] * len(shapes)
    elif column.varies:
        parts = torch.split(values, [math.prod(shape) for shape in shapes])
        items = [_loaded(column, part.reshape(shape), dtype) for part, shape in zip(parts, shapes, strict=True)]
    else:
        units = _loaded(column, values, dtype)
        items = list(torch.split(units, [shape[0] for shape in shapes]))
    if column.join == "list":
        return {column.name: items}
    if column.join == "batch":
        raise OmniprepError(
            f"column {column.name!r}: join 'batch' takes items of one shape, these are {_some(shapes)}; declare join "
            "'pad' in the family"
        )
    return _padded(column, items)


def _padded(column: Column, items: list[Tensor]) -> dict[str, Any]:
    """Items laid out by "concat" or "pad", its padded axes as long as the largest item's."""
    stacked = column.join == "pad"
    # Of the loaded items: a registered loader may have changed their shapes.
    if len({item.ndim for item in items}) > 1:
        raise OmniprepError(f"column {column.name!r}: its loader {column.load!r} gives items of different axes")
    largest = [max(sizes) for sizes in zip(*(item.shape for item in items), strict=True)]
    first = len(items) if stacked else sum(len(item) for item in items)
    size = [first, *(largest if stacked else largest[1:])]
    for axis, least in zip(column.padded_axes, column.params.get("pad_to") or (), strict=False):
        size[axis] = max(size[axis], least)
    stored = sum(item.numel() for item in items)
    if math.prod(size) > MOST_PADDING * stored + SPARE_VALUES:
        raise OmniprepError(
            f"column {column.name!r}: {stored:,} values padded to {'x'.join(map(str, size))} would fill the memory; "
            f"its items are {_some(tuple(tuple(item.shape) for item in items))}"
        )
    padded_axes = column.padded_axes
    value = column.params.get("pad_value", 0)
    if any(size[axis] != (item.shape[axis - stacked]) for item in items for axis in padded_axes):
        joined = items[0].new_full(size, value)
        covered = _regions(items, stacked)
        for item, region in zip(items, covered, strict=True):
            joined[region] = item
    else:
        joined = torch.stack(items) if stacked else torch.cat(items)
    arguments: dict[str, Any] = {column.name: joined}
    if "mask" in column.params:
        kind = getattr(torch, column.params.get("mask_dtype", "int64"))
        mask = torch.zeros([size[axis] for axis in (0, *padded_axes)], dtype=kind, device=joined.device)
        for region in _regions(items, stacked):
            mask[tuple(region[axis] for axis in (0, *padded_axes))] = 1
        arguments[column.params["mask"]] = mask
    return arguments


def _regions(items: list[Tensor], stacked: bool) -> list[tuple[slice, ...]]:
    """Where each item lies in the joined array, a slice an axis."""
    regions, start = [], 0
    for number, item in enumerate(items):
        axes = [slice(0, size) for size in item.shape]
        if stacked:
            axes = [slice(number, number + 1), *axes]
        else:
            axes[0] = slice(start, start + len(item))
            start += len(item)
        regions.append(tuple(axes))
    return regions


def _some(shapes: tuple[Shape, ...]) -> str:
    different = ["x".join(map(str, shape)) for shape in dict.fromkeys(shapes)]
    return ", ".join(different[:4]) + (", ..." if len(different) > 4 else "")


def _loaded(column: Column, units: Tensor, dtype: torch.dtype | None) -> Tensor:
    """Stored units (units, *shape) as the model's values."""
    if column.load == "patches":
        return unpack_pixels(
            units,
            mean=column.params["mean"],
            std=column.params["std"],
            patch_size=column.params["patch_size"],
            temporal_patch_size=column.params["temporal_patch_size"],
            dtype=dtype or torch.float32,
        )
    if column.load == "affine":
        return _floats_of_bytes(column, units, dtype or torch.float32)
    if column.load not in LOADS:
        loader = registered_loader(column)
        values = loader.function(units, column.params)
        if not isinstance(values, Tensor) or len(values) != len(units):
            raise OmniprepError(
                f"column {column.name!r}: its loader {column.load!r} must give a tensor with as many units as it got"
            )
        units = values
    if units.is_floating_point():
        own = torch.float32 if units.dtype == torch.bfloat16 else units.dtype
        return units.to(dtype or own)
    return units


def _floats_of_bytes(column: Column, units: Tensor, dtype: torch.dtype) -> Tensor:
    """The float of each byte by its channel, dtype and shape of `units`; on a GPU by one kernel (data/pixels.py)."""
    table = _table(column.name, json.dumps(column.params), dtype, units.device)
    channels = len(table)
    inner = channel_run(column, units.shape, channels)
    if not units.numel():
        return units.to(dtype)
    rows = units.reshape(-1, channels * inner)
    # The kernel is compiled for each number of values that a channel has in a row: too often where shapes vary.
    if units.is_cuda and HAS_TRITON and (inner == 1 or not column.varies):
        from omniprep.data.pixels import launch

        return launch(rows, table, inner, 1).view(units.shape)
    out = torch.empty(rows.shape, dtype=dtype, device=units.device)
    step = max(1, CHUNK // rows.shape[1])
    for start in range(0, len(rows), step):
        part = rows[start : start + step].view(-1, channels, inner)
        target = out[start : start + step].view(-1, channels, inner)
        for channel in range(channels):
            target[:, channel] = table[channel][part[:, channel].int()]
    return out.view(units.shape)


@lru_cache(maxsize=64)
def _table(name: str, params: str, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(C, 256) of params in JSON; rounding to dtype comes last.

    It stays on the device: a copy for each batch would wait for the device's queue.
    """
    floats = np.ascontiguousarray(byte_floats(json.loads(params), name))
    return torch.from_numpy(floats).to(dtype).to(device)
