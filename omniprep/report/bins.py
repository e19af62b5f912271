"""What a report reads from shards: sizes of media, shares of tokens, and some bins in full, with pictures.

A large dataset is sampled: `SCANNED` bins spread over the whole for the sizes, a few bins for the browser. Of these few
every token travels as text with its positions; tokens that together make one character stay together.
"""

import base64
import io as memory
from collections import Counter
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
from PIL import Image

from omniprep.data.collate import cut_row
from omniprep.data.dataset import PackedDataset
from omniprep.inspect.describe import Media, Vocabulary, media_of
from omniprep.inspect.pictures import few, rebuild
from omniprep.shards.content import item_sizes
from omniprep.shards.schema import Column

__all__ = ["browse", "choose_bins", "picture_url", "scan", "spectrogram_picture"]

SCANNED = 64
FRAMES_A_SECOND = 100
"""Of a spectrogram: a hop of 160 samples at 16 kHz (transformers: WhisperFeatureExtractor)."""
THUMBNAIL = (320, 200)
TOKENS_A_ROW = 3000
ROWS_A_BIN = 60
TOKENS_A_PAGE = 240_000
"""Shared by the bins that are shown: rows beyond are only counted, so that long bins do not make a page of 20 MB."""
THUMBNAIL_BYTES = 1_500_000
"""Pictures beyond this are left out, so that the page stays small enough to send around."""
_SCALE = np.array(
    [[0, 0, 4], [59, 15, 112], [140, 41, 129], [222, 73, 104], [254, 159, 109], [252, 253, 191]], np.float32
)  # the colors of matplotlib's "magma", at fifths


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
    images: Counter[tuple[int, int]] = Counter()
    found: dict[str, list[float]] = {"seconds": [], "frames": []}
    tokens: Counter[int] = Counter()
    trained = 0
    for number in chosen:
        item = dataset[number]
        ids, counts = np.unique(item["input_ids"], return_counts=True)
        tokens.update(dict(zip(ids.tolist(), counts.tolist(), strict=True)))
        trained += int((item["labels"] != -100).sum())
        for column in item["columns"]:
            if column.name in item:
                _measure(column, item, images, found)
    total = sum(tokens.values())
    return {
        "bins": len(chosen),
        "of": len(dataset),
        "images": [{"w": w, "h": h, "n": n} for (w, h), n in images.most_common(400)],
        "audio_seconds": np.array(found["seconds"]),
        "video_frames": np.array(found["frames"], np.int64),
        "shares": {"trained": trained, "total": total, **_shares(tokens, total, vocabulary, dataset)},
    }


def _measure(
    column: Column, item: Mapping[str, Any], images: Counter[tuple[int, int]], found: dict[str, list[float]]
) -> None:
    if column.load == "mel":
        found["seconds"] += (item_sizes(column, item) / FRAMES_A_SECOND).tolist()
    elif column.load == "patches":
        size, deep = int(column.params["patch_size"]), int(column.params["temporal_patch_size"])
        for steps, high, wide in item[column.size_source()[0]].tolist():
            if column.modality == "video":
                found["frames"].append(steps * deep)
            else:
                images[(wide * size, high * size)] += 1


def _shares(
    tokens: Counter[int], total: int, vocabulary: Vocabulary | None, dataset: PackedDataset
) -> dict[str, dict[str, int]]:
    """Tokens that stand for media, by modality: their special token names it, and is no begin or end mark."""
    if vocabulary is None:
        return {}
    by_modality: Counter[str] = Counter()
    for token in vocabulary.special.tolist():
        name = vocabulary.decode([token]).lower()
        marks = any(mark in name for mark in ("bos", "eos", "start", "end"))
        modality = next((m for m in dataset.layout.modalities if m in name), None)
        if modality and not marks and tokens[token]:
            by_modality[modality] += tokens[token]
    return {"by_modality": {"text": total - sum(by_modality.values()), **by_modality}}


def browse(dataset: PackedDataset, numbers: list[int], vocabulary: Vocabulary | None) -> list[dict[str, Any]]:
    """The bins in full, for the page to draw."""
    sources, lines = dataset.rows["source"], dataset.rows["line"]
    left = THUMBNAIL_BYTES
    bins = []
    for number in numbers:
        item = dataset[number]
        rows: list[dict[str, Any]] = []
        room = TOKENS_A_PAGE // len(numbers)
        for place, row_id in enumerate(item["row_ids"].tolist()[:ROWS_A_BIN]):
            if room <= 0:
                break
            cut = cut_row(item, place)
            room -= min(len(cut["input_ids"]), TOKENS_A_ROW)
            media, used = _media(cut, left)
            left -= used
            tokens = len(cut["input_ids"])
            rows.append(
                {
                    "source": sources[row_id].as_py(),
                    "line": lines[row_id].as_py(),
                    "start": int(item["cu_seqlens"][place]),
                    "tokens": tokens,
                    "trained": int((cut["labels"] != -100).sum()),
                    "media": media,
                    "parts": parts_of(cut, vocabulary, TOKENS_A_ROW),
                    "cut": max(tokens - TOKENS_A_ROW, 0),
                }
            )
        more = len(item["row_ids"]) - len(rows)
        bins.append({"bin": number, "tokens": len(item["input_ids"]), "rows": rows, "more": more})
    return bins


def parts_of(cut: Mapping[str, Any], vocabulary: Vocabulary | None, most: int) -> list[dict[str, Any]]:
    """A row as runs of alike tokens.

    Returns:
        For text {"t": texts of the tokens, "n": tokens of each text where not 1, "y": trained, "w": weight,
        "p": positions (time, height, width) of the first token; they go up by one together}. For a run of one media
        token {"m": its text, "n": tokens, "y", "p": least and "q": greatest positions}.
    """
    ids = cut["input_ids"][:most]
    count = len(ids)
    if count == 0:
        return []
    labels = cut["labels"][:count] != -100
    positions = cut["position_ids"][:, :count] if "position_ids" in cut else np.tile(np.arange(count), (3, 1))
    special = np.isin(ids, vocabulary.special) if vocabulary else np.zeros(count, bool)
    same = np.concatenate([[False], (ids[1:] == ids[:-1]) & special[1:]])
    media = same | np.concatenate([same[1:], [False]])
    change = (labels[1:] != labels[:-1]) | (media[1:] != media[:-1]) | (media[1:] & (ids[1:] != ids[:-1]))
    change |= ~media[1:] & (np.diff(positions, axis=1) != 1).any(axis=0)
    weights = cut["loss_scale"][:count] if "loss_scale" in cut else None
    if weights is not None:
        change |= weights[1:] != weights[:-1]
    borders = [0, *(np.flatnonzero(change) + 1).tolist(), count]
    parts = []
    for start, end in pairwise(borders):
        part: dict[str, Any] = {"y": int(labels[start]), "p": positions[:, start:end].min(axis=1).tolist()}
        if weights is not None and labels[start]:
            part["w"] = round(float(weights[start]), 4)
        if media[start]:
            text = vocabulary.decode(ids[start : start + 1].tolist()) if vocabulary else str(ids[start])
            part |= {"m": text, "n": end - start, "q": positions[:, start:end].max(axis=1).tolist()}
        else:
            part |= texts_of(ids[start:end].tolist(), vocabulary)
        parts.append(part)
    return parts


def texts_of(ids: list[int], vocabulary: Vocabulary | None) -> dict[str, Any]:
    """Texts of tokens, those of one character joined: {"t": texts} and, where any are joined, {"n": tokens of each}."""
    if vocabulary is None:
        return {"t": [f"{token} " for token in ids]}
    texts: list[str] = []
    counts: list[int] = []
    waiting: list[int] = []
    for token, alone in zip(
        ids, vocabulary.tokenizer.decode_batch([[t] for t in ids], skip_special_tokens=False), strict=True
    ):
        waiting.append(token)
        text = alone if len(waiting) == 1 else vocabulary.decode(waiting)
        if not text.endswith("�") or len(waiting) >= 6:
            texts.append(text)
            counts.append(len(waiting))
            waiting = []
    if waiting:
        texts.append(vocabulary.decode(waiting))
        counts.append(len(waiting))
    return {"t": texts} | ({"n": counts} if len(texts) < len(ids) else {})


def _media(cut: Mapping[str, Any], budget: int) -> tuple[list[dict[str, Any]], int]:
    """Media of a row with their pictures, as long as they fit into `budget` bytes; and the bytes they took."""
    pictures = _pictures(cut)
    shown, used = [], 0
    for media in media_of(cut):
        entry: dict[str, Any] = {"modality": media.modality, **facts_of(media)}
        image = next(pictures[media.modality], None) if media.modality in pictures else None
        if image is not None and used < budget:
            entry["picture"] = picture_url(image)
            used += len(entry["picture"])
        shown.append(entry)
    return shown, used


def facts_of(media: Media) -> dict[str, Any]:
    """Size, frames or seconds of a media item."""
    facts: dict[str, Any] = {name: media.facts[name] for name in ("width", "height") if name in media.facts}
    for name, value in media.facts.items():
        if name.endswith("grid_thw"):
            facts["grid"] = value
        if name == "audio_frames":
            facts["seconds"] = round(value / FRAMES_A_SECOND, 2)
    return facts


def _pictures(cut: Mapping[str, Any]) -> dict[str, Any]:
    """For each modality an iterator over pictures of its items."""

    def of(column: Column) -> Any:
        ends = np.cumsum(item_sizes(column, cut))
        if column.load == "mel":
            for part in np.split(cut[column.name], ends[:-1] * column.unit):
                yield spectrogram_picture(part.reshape(column.unit, -1))
            return
        grids = cut[column.size_source()[0]]
        for part, grid in zip(np.split(cut[column.name], ends[:-1]), grids.tolist(), strict=True):
            yield Image.fromarray(few(rebuild(part, tuple(grid), column.params)))

    return {c.modality: of(c) for c in cut["columns"] if c.load in ("patches", "mel") and c.name in cut}


def spectrogram_picture(features: np.ndarray) -> Image.Image:
    """A spectrogram as a picture, low frequencies below.

    Args:
        features: bfloat16 as uint16, (bands, frames).
    """
    values = (features.astype(np.uint32) << 16).view(np.float32)
    low, high = float(values.min()), float(values.max())
    level = (values - low) / (high - low if high > low else 1.0) * (len(_SCALE) - 1)
    below = np.minimum(level.astype(np.int64), len(_SCALE) - 2)
    part = (level - below)[..., None]
    colors = _SCALE[below] * (1 - part) + _SCALE[below + 1] * part
    image = Image.fromarray(colors.astype(np.uint8)[::-1])
    return image.resize((min(max(image.width, 60), 480), 96), Image.Resampling.BILINEAR)


def picture_url(image: Image.Image, most: tuple[int, int] = THUMBNAIL) -> str:
    """A picture as a data: URL, shrunk to fit."""
    if image.width > image.height * 2:
        most = (most[0] * 2, most[1])
    small = image.copy()
    small.thumbnail(most)
    target = memory.BytesIO()
    small.convert("RGB").save(target, format="WEBP", quality=72, method=2)
    return "data:image/webp;base64," + base64.b64encode(target.getvalue()).decode()
