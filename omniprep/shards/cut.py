"""Rows cut out of a bin, each as a bin of its own."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from omniprep.shards.content import item_sizes

Arrays = Mapping[str, Any]
OF_SEQUENCES = ("row_ids", "row_items", "chosen", "shared_media", "reference_logps", "reference_kl_logps")
"""What a bin has an entry of for each row, or answer of a pair."""


def cut_row(item: Arrays, row: int) -> dict[str, Any]:
    """One row of a bin, as a bin of its own; of a pair one answer, which then has no partner."""
    cut = cut_rows(item, row, row + 1)
    if "pair_ids" in cut:
        cut["pair_ids"] = np.full(1, -1, np.int32)
    return cut


def cut_rows(item: Arrays, first_row: int, end_row: int) -> dict[str, Any]:
    """Neighboring rows of a bin, as a bin of their own; no pair may be cut in two."""
    rows = slice(first_row, end_row)
    start, end = int(item["cu_seqlens"][first_row]), int(item["cu_seqlens"][end_row])
    cut: dict[str, Any] = {
        "columns": item["columns"],
        "layout": item["layout"],
        "cu_seqlens": item["cu_seqlens"][first_row : end_row + 1] - np.int32(start),
        **{name: item[name][rows] for name in OF_SEQUENCES if name in item},
    }
    if "modalities" in item:
        cut["modalities"] = item["modalities"]
    if "pair_ids" in item:
        numbers = item["pair_ids"][rows]
        before = item["pair_ids"][:first_row].max(initial=-1) + 1
        cut["pair_ids"] = np.where(numbers >= 0, numbers - before, -1).astype(np.int32)
    for name in ("input_ids", "labels", "loss_scale", "position_ids"):
        if name in item:
            cut[name] = item[name][..., start:end]
    files = item.get("files", {})
    for column in item["columns"]:
        if column.name not in item and column.name not in files:
            continue
        if column.kind == "tokens":
            cut[column.name] = item[column.name][start:end]
            continue
        modality = item["modalities"].index(column.modality)
        first, last = item["row_items"][:first_row, modality].sum(), item["row_items"][:end_row, modality].sum()
        if first == last:
            continue
        if column.name in files:
            cut.setdefault("files", {})[column.name] = files[column.name][first:last]
            continue
        if column.kind == "rows":  # of the rows that have such items
            first = int((item["row_items"][:first_row, modality] > 0).sum())
            last = int((item["row_items"][:end_row, modality] > 0).sum())
        elif column.kind == "flat":
            borders = np.concatenate([[0], np.cumsum(item_sizes(column, item))])
            first, last = borders[first], borders[last]
            if column.load == "mel":
                first, last = first * column.unit, last * column.unit
        cut[column.name] = item[column.name][first:last]
    return cut
