"""What a report reads from shards: sizes of media, shares of tokens, and some bins in full, with pictures.

A large dataset is sampled: `SCANNED` bins spread over the whole for the sizes, a few bins for the browser. Of these few
every token travels as text with its positions; tokens that together make one character stay together.
"""

import base64
import io as memory
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from PIL import Image

from omniprep.data.dataset import PackedDataset
from omniprep.inspect.describe import rows_of_bin, token_runs
from omniprep.inspect.media import MediaItem, media_of
from omniprep.inspect.pictures import few
from omniprep.inspect.vocabulary import Vocabulary
from omniprep.shards.codecs.picture import PictureShape, picture_shapes
from omniprep.shards.content import item_shapes, item_sizes
from omniprep.shards.forms import DEFAULTS
from omniprep.shards.schema import Column

SCANNED = 64
THUMBNAIL = (320, 200)
TOKENS_A_ROW = 3000
ROWS_A_BIN = 60
TOKENS_A_PAGE = 240_000
"""Shared by the bins that are shown: rows beyond are only counted, so that long bins do not make a page of 20 MB."""
THUMBNAIL_BYTES = 1_500_000
"""Pictures beyond this are left out, so that the page stays small enough to send around."""


def spread(count: int, most: int) -> list[int]:
    """At most `most` of the numbers 0..count-1, evenly spread."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int)).tolist() if count else []


def choose_bins(index: Mapping[str, np.ndarray], most: int) -> list[int]:
    """Bins to show: half evenly spread, the others those with the most pictures and sound."""
    count = len(index["tokens"])
    media = index["patches"] + index["audio_frames"]
    rich = [int(b) for b in np.argsort(-media, kind="stable")[: most // 2] if media[b] > 0]
    chosen = set(rich) | set(spread(count, most - len(rich)))
    return sorted(chosen)


def scan(dataset: PackedDataset, vocabulary: Vocabulary | None, most: int = SCANNED) -> dict[str, Any]:
    """Sizes of media and kinds of tokens in some bins (all, where there are no more than `most`)."""
    chosen = spread(len(dataset), most)
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
        "images": [{"w": w, "h": h, "n": n} for (w, h), n in image_sizes.most_common(400)],
        "audio_seconds": np.array(audio_seconds),
        "video_frames": np.array(video_frames, np.int64),
        "shares": {"trained": trained, "total": total, **_shares(tokens, total, vocabulary, dataset)},
    }


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
    tokens: Counter[int], total: int, vocabulary: Vocabulary | None, dataset: PackedDataset
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


def browse(dataset: PackedDataset, numbers: list[int], vocabulary: Vocabulary | None) -> list[dict[str, Any]]:
    """The bins in full, for the page to draw."""
    thumbnail_bytes = THUMBNAIL_BYTES
    bins = []
    for number in numbers:
        stored = rows_of_bin(dataset, number)
        shown: list[dict[str, Any]] = []
        token_budget = TOKENS_A_PAGE // len(numbers)
        for row in stored[:ROWS_A_BIN]:
            if token_budget <= 0:
                break
            token_budget -= min(row.tokens, TOKENS_A_ROW)
            media, used = _media(media_of(row.arrays), thumbnail_bytes)
            thumbnail_bytes -= used
            shown.append(
                {
                    "source": row.source,
                    "line": row.line,
                    "start": row.start,
                    "tokens": row.tokens,
                    "trained": row.trained,
                    "media": media,
                    "parts": parts_of(row.arrays, vocabulary, TOKENS_A_ROW),
                    "cut": max(row.tokens - TOKENS_A_ROW, 0),
                }
            )
        tokens = sum(row.tokens for row in stored)
        bins.append({"bin": number, "tokens": tokens, "rows": shown, "more": len(stored) - len(shown)})
    return bins


def parts_of(arrays: Mapping[str, Any], vocabulary: Vocabulary | None, most: int) -> list[dict[str, Any]]:
    """The first `most` tokens of a row as runs of alike tokens.

    Returns:
        For text {"t": texts of the tokens, "n": tokens of each text where not 1, "y": trained, "w": weight,
        "p": positions (time, height, width) of the first token; they go up by one together}. For a run of one media
        token {"m": its text, "n": tokens, "y", "p": least and "q": greatest positions}.
    """
    first = {name: arrays[name][:most] for name in ("input_ids", "labels", "loss_scale") if name in arrays}
    ids = first["input_ids"]
    positions = arrays["position_ids"][:, :most] if "position_ids" in arrays else np.tile(np.arange(len(ids)), (3, 1))
    jumps = (np.diff(positions, axis=1) != 1).any(axis=0)
    special = vocabulary.special if vocabulary else np.zeros(0, np.int64)
    parts = []
    for run in token_runs(first, special, repeats=2, text_breaks=jumps):
        span = positions[:, run.start : run.end]
        part: dict[str, Any] = {"y": int(run.trained), "p": span.min(axis=1).tolist()}
        if run.weight is not None and run.trained:
            part["w"] = round(run.weight, 4)
        if run.media and vocabulary:
            part |= {"m": vocabulary.decode(ids[run.start : run.start + 1].tolist())}
            part |= {"n": run.end - run.start, "q": span.max(axis=1).tolist()}
        else:
            part |= texts_of(ids[run.start : run.end].tolist(), vocabulary)
        parts.append(part)
    return parts


def texts_of(ids: list[int], vocabulary: Vocabulary | None) -> dict[str, Any]:
    """Texts of tokens, those of one character joined: {"t": texts} and, where any are joined, {"n": tokens of each}."""
    if vocabulary is None:
        return {"t": [f"{token} " for token in ids]}
    texts: list[str] = []
    counts: list[int] = []
    pending: list[int] = []  # tokens of a character that is not complete yet
    alone = vocabulary.tokenizer.decode_batch([[token] for token in ids], skip_special_tokens=False)
    for token, text_alone in zip(ids, alone, strict=True):
        pending.append(token)
        text = text_alone if len(pending) == 1 else vocabulary.decode(pending)
        # A character has at most 4 bytes; 6 tokens that make none are invalid UTF-8.
        if not text.endswith("�") or len(pending) >= 6:
            texts.append(text)
            counts.append(len(pending))
            pending = []
    if pending:
        texts.append(vocabulary.decode(pending))
        counts.append(len(pending))
    return {"t": texts} | ({"n": counts} if len(texts) < len(ids) else {})


def _media(items: list[MediaItem], budget: int) -> tuple[list[dict[str, Any]], int]:
    """Media of a row with their pictures, as long as they fit into `budget` bytes; and the bytes they took."""
    shown, used = [], 0
    for item in items:
        entry: dict[str, Any] = {"modality": item.modality, **facts_of(item)}
        if used < budget and (frames := item.frames()) is not None:
            entry["picture"] = picture_url(Image.fromarray(few(frames)))
            used += len(entry["picture"])
        shown.append(entry)
    return shown, used


def facts_of(item: MediaItem) -> dict[str, Any]:
    """Size, frames or seconds of a media item."""
    facts: dict[str, Any] = {name: item.facts[name] for name in ("width", "height") if name in item.facts}
    for name, value in item.facts.items():
        if name.endswith("grid_thw"):
            facts["grid"] = value
        if name == "audio_frames":
            facts["seconds"] = round(value / DEFAULTS["frames_per_second"], 2)
    return facts


def picture_url(image: Image.Image, most: tuple[int, int] = THUMBNAIL) -> str:
    """A picture as a data: URL, shrunk to fit."""
    if image.width > image.height * 2:  # frames of a video side by side
        most = (most[0] * 2, most[1])
    small = image.copy()
    small.thumbnail(most)
    target = memory.BytesIO()
    small.convert("RGB").save(target, format="WEBP", quality=72, method=2)
    return "data:image/webp;base64," + base64.b64encode(target.getvalue()).decode()
