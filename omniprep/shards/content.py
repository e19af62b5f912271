"""Checks that the columns of a bin fit each other, so that code which indexes by them never leaves them.

A checksum says that a bin is what its index was written for, not that its writer was omniprep. These checks read
borders, counts and sizes, a few numbers a row, and no token or pixel; they take some 50 µs a bin.
"""

import math
from collections.abc import Container, Mapping
from typing import Any

import numpy as np

from omniprep.errors import DamagedDataError
from omniprep.shards.schema import PREFERENCE_COLUMNS, Column, Layout

MOST_PIXEL_BYTES_A_TOKEN = 96 << 10
SPARE_PIXEL_BYTES = 16 << 20
"""Most pixels in a codec, whose bytes say nothing about the memory that they decode to. The Qwen families have 6,144
bytes a token at most, families of crops some 12,288 (SmolVLM: 64 tokens for 512 x 512); the spare is for a crop of few
tokens."""


def check_rows(arrays: dict[str, Any], layout: Layout) -> None:
    """Check the columns of tokens and rows, and reshape position_ids to (3, L) and row_items to (R, M)."""
    for name in ("input_ids", "labels", "cu_seqlens", "row_ids", "row_items"):
        if name not in arrays:
            raise DamagedDataError(f"column {name!r} is absent")
    tokens, rows = len(arrays["input_ids"]), len(arrays["row_ids"])
    borders = arrays["cu_seqlens"]
    # Borders are compared, not subtracted: differences of hostile values overflow.
    rising = bool((borders[1:] > borders[:-1]).all())
    if not rows or len(borders) != rows + 1 or borders[0] != 0 or borders[-1] != tokens or not rising:
        raise DamagedDataError(f"cu_seqlens are no borders of {rows} rows in {tokens} tokens")
    if ("loss_scale" in arrays) != layout.weighted:
        raise DamagedDataError(f"loss_scale is {'absent' if layout.weighted else 'there'}, which the shard denies")
    for name, per_token in (("labels", 1), ("loss_scale", 1), ("position_ids", 3)):
        if name in arrays and len(arrays[name]) != per_token * tokens:
            raise DamagedDataError(f"{name} has {len(arrays[name])} values for {tokens} tokens")
    for column in layout.columns:
        if column.kind == "tokens" and len(arrays.get(column.name, ())) != tokens:
            raise DamagedDataError(f"column {column.name!r} has not one value for each of {tokens} tokens")
    items = arrays["row_items"]
    if len(items) != rows * len(layout.modalities) or (items < 0).any():
        raise DamagedDataError(f"row_items are no counts of {len(layout.modalities)} modalities in {rows} rows")
    arrays["row_items"] = items.reshape(rows, len(layout.modalities))
    if "position_ids" in arrays:
        arrays["position_ids"] = arrays["position_ids"].reshape(3, tokens)
    if layout.preferences:
        _check_preferences(arrays, rows)


def _check_preferences(arrays: Mapping[str, Any], rows: int) -> None:
    """Check that pairs are two neighbors, the chosen first, and that only a rejected one takes media of its partner."""
    for name in PREFERENCE_COLUMNS:
        if len(arrays.get(name, ())) != rows:
            raise DamagedDataError(f"{name} has not one value for each of {rows} rows")
    pairs, chosen, shared = (arrays[name] for name in PREFERENCE_COLUMNS)
    if not np.isin(chosen, (-1, 0, 1)).all():
        raise DamagedDataError("chosen has values other than 1, 0 and -1")
    places = np.flatnonzero(pairs != -1)
    firsts, seconds = places[::2], places[1::2]
    numbers = np.arange(len(firsts))
    neighbors = len(firsts) == len(seconds) and bool((seconds == firsts + 1).all())
    if not (
        neighbors
        and np.array_equal(pairs[firsts], numbers)
        and np.array_equal(pairs[seconds], numbers)
        and np.array_equal(arrays["row_ids"][firsts], arrays["row_ids"][seconds])
        and (chosen[firsts] == 1).all()
        and (chosen[seconds] == 0).all()
    ):
        raise DamagedDataError("pair_ids and chosen are no pairs of neighbors, each of one row and the chosen first")
    items = arrays["row_items"]
    bits = (shared[:, None] >> np.arange(items.shape[1])) & 1 == 1
    before = np.concatenate([np.zeros_like(items[:1]), items[:-1]])
    others = np.ones(rows, bool)
    others[seconds] = False
    if (
        shared[others].any()
        or (shared >> items.shape[1]).any()
        or (items[bits] != 0).any()
        or (before[bits] == 0).any()
    ):
        raise DamagedDataError("shared_media names media that the partner does not have, or that are there twice")


def check_media(arrays: Mapping[str, Any], layout: Layout, coded: Container[str]) -> None:
    """Hold media columns against counts and sizes of items; `coded` are those not decoded yet."""
    counts = dict(zip(layout.modalities, arrays["row_items"].sum(axis=0, dtype=np.int64).tolist(), strict=True))
    holding = dict(zip(layout.modalities, (arrays["row_items"] > 0).sum(axis=0).tolist(), strict=True))
    declared = [column for column in layout.columns if column.kind != "tokens"]
    for column in declared:
        count = counts[column.modality]
        if (column.name in arrays or column.name in coded) != (count > 0):
            raise DamagedDataError(f"column {column.name!r} does not fit {count} items of kind {column.modality}")
        if column.kind == "items" and count and len(arrays[column.name]) != count:
            raise DamagedDataError(f"column {column.name!r} has {len(arrays[column.name])} items, the rows {count}")
        if column.kind == "rows" and count and len(arrays[column.name]) != holding[column.modality]:
            raise DamagedDataError(
                f"column {column.name!r} has {len(arrays[column.name])} entries for {holding[column.modality]} rows "
                f"with items of kind {column.modality}"
            )
    for column in declared:
        if column.kind != "flat" or not counts[column.modality]:
            continue
        units, tokens = _units(column, arrays), len(arrays["input_ids"])
        if column.name in coded:
            if units * column.unit > MOST_PIXEL_BYTES_A_TOKEN * tokens + SPARE_PIXEL_BYTES:
                raise DamagedDataError(
                    f"column {column.name!r} would have {units * column.unit:,} bytes of pixels for {tokens:,} tokens"
                )
        elif arrays[column.name].size != units * column.unit:
            raise DamagedDataError(f"column {column.name!r} has not the {units:,} units of its items")


def _units(column: Column, arrays: Mapping[str, Any]) -> int:
    """Units of all items of a flat column, as a Python integer: products of a hostile grid exceed 64 bits."""
    source, product = column.size_source()
    sizes = arrays[source].reshape(len(arrays[source]), -1).tolist()
    if column.varies and any(
        size not in (0, number) for numbers in sizes for size, number in zip(column.shape, numbers[1:], strict=True)
    ):
        raise DamagedDataError(f"column {source!r} has a shape that is none of {list(column.shape)}")
    least = 1 if column.load == "mel" else 0
    if any(number < least for numbers in sizes for number in numbers):
        raise DamagedDataError(f"column {source!r} has a size below {least}")
    return sum(math.prod(map(int, numbers if product else numbers[:1])) for numbers in sizes)


def item_sizes(column: Column, arrays: Mapping[str, Any]) -> np.ndarray:
    """Units of each item of a flat column, int64 (items,)."""
    source, product = column.size_source()
    sizes = arrays[source].astype(np.int64)
    return sizes.reshape(len(sizes), -1).prod(axis=1) if product else sizes.reshape(-1)


def item_shapes(column: Column, arrays: Mapping[str, Any]) -> list[tuple[int, ...]]:
    """Shape (units, *shape) of each item of a flat column; of a spectrogram of load "mel" (bands, frames)."""
    if column.varies:
        return [tuple(numbers) for numbers in arrays[column.companion].tolist()]
    units = item_sizes(column, arrays).tolist()
    if column.load == "mel":
        return [(column.unit, frames) for frames in units]
    return [(number, *column.shape) for number in units]


def split_items(column: Column, arrays: Mapping[str, Any]) -> list[np.ndarray]:
    """The items of a flat column in their shapes, as views of what the bin holds."""
    shapes = item_shapes(column, arrays)
    values = arrays[column.name].reshape(-1)
    borders = np.cumsum([math.prod(shape) for shape in shapes], dtype=np.int64)
    return [part.reshape(shape) for part, shape in zip(np.split(values, borders[:-1]), shapes, strict=True)]
