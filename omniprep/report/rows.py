"""A packed row as JSON, for the report and the server to draw: what it holds, its media, every token with its position.

Tokens that together make one character stay together.
"""

import base64
import io as memory
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from PIL import Image

from omniprep.inspect.describe import StoredRow, token_runs
from omniprep.inspect.media import MediaItem
from omniprep.inspect.vocabulary import Vocabulary
from omniprep.modalities import MODALITIES
from omniprep.shards.forms import DEFAULTS

THUMBNAIL = (320, 200)
PREFERENCE = {"preference pair": (2,), "preference verdict": (0, 1)}
"""Kinds of preference rows, and the values of their column `verdict` in rows.parquet."""
ROW_KINDS = (*MODALITIES, "video with sound", "several media", "tools", *PREFERENCE, "text alone")
"""What a row may hold, as the filters name it; a row can be of several kinds."""


def kinds_of(row: StoredRow, vocabulary: Vocabulary | None, placeholders: Mapping[str, int]) -> list[str]:
    """The kinds of a row, of `ROW_KINDS`."""
    arrays = row.arrays
    counts = dict(zip(arrays["layout"].modalities, arrays["row_items"].sum(axis=0).tolist(), strict=True))
    present = [name for name in MODALITIES if counts.get(name)]
    ids = arrays["input_ids"]
    kinds = list(present)
    if "video" in present and "audio" in present and has_video_sound(ids, placeholders):
        kinds.append("video with sound")
    if len(present) > 1:
        kinds.append("several media")
    if vocabulary is not None and np.isin(ids, vocabulary.tool_tokens).any():
        kinds.append("tools")
    if row.verdict:
        kinds.append("preference verdict" if row.pair is None else "preference pair")
    return kinds if present else [*kinds, "text alone"]


def has_video_sound(ids: np.ndarray, placeholders: Mapping[str, int]) -> bool:
    """Whether frames and sound alternate: a token of one next to one of the other; between items there are marks."""
    video, audio = placeholders.get("video"), placeholders.get("audio")
    if video is None or audio is None or video == audio:
        return False
    before, after = ids[:-1], ids[1:]
    return bool((((before == video) & (after == audio)) | ((before == audio) & (after == video))).any())


def row_id(row: StoredRow) -> int:
    """Number of a row in rows.parquet."""
    return int(row.arrays["row_ids"][0])


def row_as_json(
    row: StoredRow, kinds: list[str], media: list[dict[str, Any]], vocabulary: Vocabulary | None, most: int
) -> dict[str, Any]:
    """A row with the first `most` of its tokens; "cut" is how many are left out.

    "verdict" is preferred or rejected of a pair, whose number in the bin is "pair", desirable or undesirable of a row
    with a label; other rows have none.
    """
    entry: dict[str, Any] = {name: getattr(row, name) for name in ("source", "line", "bin", "start")}
    entry |= {"tokens": row.tokens, "trained": row.trained, "kinds": kinds, "media": media}
    if row.verdict:
        entry["verdict"] = row.verdict
    if row.pair is not None:
        entry["pair"] = row.pair
    return entry | {"parts": parts_of(row.arrays, vocabulary, most), "cut": max(row.tokens - most, 0)}


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


def media_as_json(items: list[MediaItem], picture: Callable[[int, MediaItem], dict[str, Any]]) -> list[dict[str, Any]]:
    """The media of a row: modality, size and length of each, and what `picture` adds for the number and the item."""
    return [{"modality": item.modality, **facts_of(item), **picture(n, item)} for n, item in enumerate(items)]


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
