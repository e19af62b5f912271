"""Pairs of answers in a bin: media that a shard holds once for both, given to each.

A preferred and a rejected answer mostly have the same pictures, so the shard stores those with the preferred one alone
(`shared_media`, omniprep/shards/schema.py). A forward pass needs them twice, as of two rows; what is read of a bin has
them so, and everything behind it sees rows like any other.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omniprep.shards.content import item_sizes
from omniprep.shards.reader import BufferPool

_POOL = BufferPool()  # fresh pages for each bin would cost more than the copy


def with_repeated_media(item: Mapping[str, Any]) -> dict[str, Any]:
    """A bin as it is stored, with shared media repeated for the rejected answers and without `shared_media`."""
    result = dict(item)
    shared = result.pop("shared_media", None)
    if shared is None or not shared.any():
        return result
    modalities = item["modalities"]
    bits = (shared[:, None] >> np.arange(len(modalities))) & 1 == 1
    stored = item["row_items"]
    counts = stored.copy()
    counts[1:][bits[1:]] = stored[:-1][bits[1:]]  # the partner stands in front
    result["row_items"] = counts
    for number, modality in enumerate(modalities):
        if not bits[:, number].any():
            continue
        starts = np.cumsum(stored[:, number]) - stored[:, number]
        owner = np.where(bits[:, number], np.arange(len(stored)) - 1, np.arange(len(stored)))
        items = _ranges(starts[owner], counts[:, number])
        holding = owner[counts[:, number] > 0]
        entries = np.cumsum(stored[:, number] > 0)[holding] - 1  # of columns with one entry for each row with items
        _repeat(result, item, modality, items, entries)
    return result


def _repeat(
    result: dict[str, Any],
    item: Mapping[str, Any],
    modality: str,
    items: NDArray[np.int64],
    entries: NDArray[np.int64],
) -> None:
    """Take items (by number, one perhaps twice) of a modality's columns of `item` into `result`."""
    stored_files = item.get("files", {})
    for column in item["columns"]:
        if column.modality != modality or column.kind == "tokens":
            continue
        if column.name in stored_files:
            repeated = [stored_files[column.name][number] for number in items.tolist()]
            result["files"] = {**result["files"], column.name: repeated}
        elif column.name not in item:
            continue  # pixels in a codec that were not asked for
        elif column.kind == "rows":
            result[column.name] = item[column.name][entries]
        elif column.kind == "items":
            result[column.name] = item[column.name][items]
        else:
            sizes = item_sizes(column, item) * (column.unit if column.load == "mel" else 1)
            starts = np.cumsum(sizes) - sizes
            places = zip(starts[items].tolist(), sizes[items].tolist(), strict=True)
            parts = [item[column.name][start : start + size] for start, size in places]
            room = _POOL.take(sum(part.nbytes for part in parts)).view(parts[0].dtype)
            result[column.name] = np.concatenate(parts, out=room.reshape(-1, *parts[0].shape[1:]))


def _ranges(starts: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """The numbers starts[0], starts[0] + 1, ... of each range, one range after the other."""
    before = np.cumsum(counts) - counts
    return np.repeat(starts - before, counts) + np.arange(int(counts.sum()))


def sequences_of_unit(item: Mapping[str, Any], first: int) -> int:
    """Sequences of the input row whose first one this is: 2 of a pair, else 1."""
    return 2 if "pair_ids" in item and item["pair_ids"][first] >= 0 else 1


def batch_pairs(bins: Sequence[Mapping[str, Any]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """`pair_ids` and `chosen` of bins laid end to end, int64 (R,); the numbers of pairs are distinct."""
    parts, count = [], 0
    for item in bins:
        numbers = item["pair_ids"].astype(np.int64)
        parts.append(np.where(numbers >= 0, numbers + count, -1))
        count += int(numbers.max(initial=-1)) + 1
    return np.concatenate(parts), np.concatenate([item["chosen"] for item in bins]).astype(np.int64)
