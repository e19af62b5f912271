"""Rows of a dataset written back for people: a line of JSON a row, and the media as the model sees them."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from omniprep.inspect.describe import StoredRow, find_row, messages_of, packed_rows, pieces_of
from omniprep.inspect.media import MediaItem, media_of
from omniprep.inspect.vocabulary import Vocabulary, vocabulary_of
from omniprep.modalities import KINDS, media_counts, row_kinds
from omniprep.shards.dataset import StoredDataset
from omniprep.shards.names import refuse_linked_folders


def write_sample(
    uri: str, out: Path, *, count: int = 20, rows: Sequence[str] = (), kinds: Sequence[str] = (), seed: int = 0,
    model: str | None = None, check_pixels: Literal["first", "always", "never"] = "first",
) -> int:  # fmt: skip
    """Write chosen rows to `out`/rows.jsonl and their media to `out`/media; the number of rows.

    `rows` names them as SOURCE:LINE; without, `count` are drawn at random by `seed`, of `kinds` alone where some are
    named. Their tokens are read by the tokenizer of `model` (default: the build's).
    """
    dataset = StoredDataset(uri, check_pixels=check_pixels)
    vocabulary = vocabulary_of(dataset, model)
    numbers = [find_row(dataset, name) for name in rows] or _draw(dataset, count, kinds, seed)
    refuse_linked_folders(out, ["media"])
    (out / "media").mkdir(parents=True, exist_ok=True)
    (out / "rows.jsonl").unlink(missing_ok=True)  # a link of this name is replaced, not written through
    with (out / "rows.jsonl").open("x", encoding="utf-8") as file:
        for number in numbers:
            row, *rejected = packed_rows(dataset, number)
            content = {
                **_facts(row),
                **_content(row, vocabulary),
                "media": _write_media(media_of(row.arrays), out, number),
            }
            if row.verdict:
                content["verdict"] = row.verdict
            for partner in rejected:
                media = _write_media(media_of(partner.arrays), out, number, "-rejected")
                content["rejected"] = {**_content(partner, vocabulary), "length": partner.tokens, "media": media}
            file.write(json.dumps(content, ensure_ascii=False) + "\n")
    return len(numbers)


def _facts(row: StoredRow) -> dict[str, Any]:
    return {"source": row.source, "line": row.line, "bin": row.bin, "start": row.start, "length": row.tokens}


def _content(row: StoredRow, vocabulary: Vocabulary) -> dict[str, Any]:
    pieces = pieces_of(row.arrays, vocabulary)
    return {
        "messages": messages_of(pieces),
        "text": "".join(f"{piece.text}*{piece.tokens}" if piece.media else piece.text for piece in pieces),
        "pieces": [asdict(piece) for piece in pieces],
    }


def _draw(dataset: StoredDataset, count: int, kinds: Sequence[str], seed: int) -> list[int]:
    candidates = dataset.rows["bin"].is_valid().to_numpy()
    if kinds:
        numbers = [KINDS.index(kind) for kind in kinds]
        candidates = candidates & np.isin(row_kinds(media_counts(dataset.rows)), numbers)
    chosen = np.random.default_rng(seed).permutation(np.flatnonzero(candidates))[:count]
    return sorted(chosen.tolist())


def _write_media(items: Sequence[MediaItem], out: Path, number: int, part: str = "") -> list[dict[str, object]]:
    """Write a row's pictures, frames and spectrograms as PNG; returns the row's media, with names relative to `out`."""
    written: list[dict[str, object]] = []
    counts: Counter[str] = Counter()
    for item in items:
        frames = item.frames()
        files = []
        for frame_number, frame in enumerate(() if frames is None else frames):
            suffix = "" if frames is None or len(frames) == 1 else f"-{frame_number:03d}"
            files.append(f"media/{number:08d}{part}-{item.modality}{counts[item.modality]}{suffix}.png")
            (out / files[-1]).unlink(missing_ok=True)
            Image.fromarray(frame).save(out / files[-1])
        counts[item.modality] += 1
        written.append({"modality": item.modality, **item.facts, "files": files})
    return written
