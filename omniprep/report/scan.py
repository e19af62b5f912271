"""Sizes of media, shares of tokens and rows of rare kinds in some bins of a dataset, spread over the whole."""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from omniprep.inspect.vocabulary import Vocabulary
from omniprep.shards.codecs.picture import PictureShape, picture_shapes
from omniprep.shards.content import item_shapes, item_sizes
from omniprep.shards.dataset import StoredDataset
from omniprep.shards.forms import DEFAULTS
from omniprep.shards.schema import Column

SCANNED = 64
"""Bins that are read of a large dataset: about a second."""


def spread(count: int, most: int) -> list[int]:
    """At most `most` of the numbers 0..count-1, evenly spread."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int)).tolist() if count else []


def scan(dataset: StoredDataset, vocabulary: Vocabulary | None, most: int = SCANNED) -> dict[str, Any]:
    """Sizes of media and kinds of tokens in some bins (all, where there are no more than `most`).

    "found" has, for what rows.parquet does not tell, one row that holds it: kind → row number.
    """
    chosen = spread(len(dataset), most)
    tools = vocabulary.tool_tokens if vocabulary else np.empty(0, np.int64)
    found: dict[str, int] = {}
    image_sizes: Counter[tuple[int, int]] = Counter()
    audio_seconds: list[float] = []
    video_frames: list[int] = []
    tokens: Counter[int] = Counter()
    trained = 0
    for number in chosen:
        item = dataset.load(number, "none")  # sizes stand beside the pixels, which need not be decoded for them
        ids, counts = np.unique(item["input_ids"], return_counts=True)
        tokens.update(dict(zip(ids.tolist(), counts.tolist(), strict=True)))
        trained += int((item["labels"] != -100).sum())
        _find_rows(found, item, {"tools": np.isin(item["input_ids"], tools)})
        for column in item["columns"]:
            is_coded = "codec" in column.params and column.size_source()[0] in item
            if column.name not in item and not is_coded:
                continue
            if column.load == "mel":
                audio_seconds += (item_sizes(column, item) / (DEFAULTS | column.params)["frames_per_second"]).tolist()
            elif "frames_axis" in column.params and "frames_per_second" in column.params:
                shapes, axis = item_shapes(column, item), column.params["frames_axis"]
                audio_seconds += [shape[axis] / column.params["frames_per_second"] for shape in shapes]
            elif column.picture and column.modality == "video":
                video_frames += _frames(column, item)
            elif column.picture == "patches":
                side = int(column.params["patch_size"])
                grids = item[column.size_source()[0]].tolist()
                image_sizes.update((wide * side, high * side) for _, high, wide in grids)
            elif column.picture:
                for count, shape in _pictures(column, item):
                    image_sizes[shape.width, shape.height] += count
    total = sum(tokens.values())
    return {
        "bins": len(chosen),
        "of": len(dataset),
        "found": found,
        "images": [{"w": w, "h": h, "n": n} for (w, h), n in image_sizes.most_common(400)],
        "audio_seconds": np.array(audio_seconds),
        "video_frames": np.array(video_frames, np.int64),
        "shares": {"trained": trained, "total": total, **_shares(tokens, total, vocabulary, dataset)},
    }


def _find_rows(found: dict[str, int], item: Mapping[str, Any], tokens: Mapping[str, np.ndarray]) -> None:
    """Note the first row of a bin that has a token of each kind."""
    for kind, mask in tokens.items():
        if kind not in found and mask.any():
            row = np.searchsorted(item["cu_seqlens"], mask.argmax(), side="right") - 1
            found[kind] = int(item["row_ids"][row])


def _frames(column: Column, item: Mapping[str, Any]) -> list[int]:
    """Frames of each video: a step of its grid is as many frames as a patch is deep."""
    if column.picture != "patches":
        return [count for count, _ in _pictures(column, item)]
    deep = int(column.params.get("temporal_patch_size", 1))
    return [grid[0] * deep for grid in item[column.size_source()[0]].tolist()]


def _pictures(column: Column, item: Mapping[str, Any]) -> Iterator[tuple[int, PictureShape]]:
    """Number and shape of the pictures of each item whose units are whole pictures: itself, its crops or its frames."""
    units, sizes = item_sizes(column, item).tolist(), item[column.size_source()[0]].tolist()
    for count, size in zip(units, sizes, strict=True):
        number, shape = picture_shapes(column, count, size)
        if shape is not None:
            yield number, shape


def _shares(
    tokens: Counter[int], total: int, vocabulary: Vocabulary | None, dataset: StoredDataset
) -> dict[str, dict[str, int]]:
    """Tokens that stand for media, by modality: their special token names it, and is no begin or end mark."""
    if vocabulary is None:
        return {}
    by_modality: Counter[str] = Counter()
    for token in vocabulary.special.tolist():
        name = vocabulary.decode([token]).lower()
        is_mark = any(mark in name for mark in ("bos", "eos", "start", "end"))
        # Of InternVL's <IMG_CONTEXT> between <img> and </img>, the first stands for the picture.
        name = name.replace("img", "image") if name.strip("</>") != "img" else name
        modality = next((m for m in dataset.layout.modalities if m in name), None)
        if modality and not is_mark and tokens[token]:
            by_modality[modality] += tokens[token]
    return {"by_modality": {"text": total - sum(by_modality.values()), **by_modality}}
