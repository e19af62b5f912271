"""The bins that a report shows: chosen so that every kind of row in the dataset is among them, and cut to a budget.

Every token travels as text with its positions, so a page holds few of them: `TEXT_BYTES` and `PICTURE_BYTES` bound what
all bins take together, whatever the dataset. Rows beyond are counted.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from omniprep.inspect.describe import StoredRow, pairs_together, rows_of_bin
from omniprep.inspect.media import MediaItem, media_of
from omniprep.inspect.pictures import few
from omniprep.inspect.vocabulary import Vocabulary
from omniprep.modalities import MODALITIES, media_counts
from omniprep.report.assemble import as_json
from omniprep.report.rows import (
    PREFERENCE,
    kinds_of,
    media_as_json,
    picture_url,
    row_as_json,
    row_id,
)
from omniprep.report.scan import spread
from omniprep.shards.dataset import StoredDataset

TOKENS_A_ROW = 2000
ROWS_A_BIN = 60
TEXT_BYTES = 280_000
"""Rows of all bins as JSON, about 55,000 tokens. With `PICTURE_BYTES`, the plots (up to 200 KB), the rejects (120 KB)
and the page's own code (50 KB) a page stays below a megabyte, so that it can be sent around."""
PICTURE_BYTES = 220_000


@dataclass(frozen=True, slots=True)
class ChosenBin:
    """A bin that is shown."""

    number: int
    first: tuple[int, ...] = ()
    """Rows that it was chosen for, by number in rows.parquet: shown even where the budget ends before their turn."""


def choose_bins(
    rows: pa.Table, bins: int, most: int, found: Mapping[str, int] | None = None, *, with_sound: bool = False
) -> list[ChosenBin]:
    """At most `most` of `bins` bins: first one with each kind of row, rare kinds before common ones, then others
    evenly spread.

    Args:
        rows: rows.parquet.
        bins: Bins of the dataset.
        most: Bins to choose.
        found: A row of each kind that rows.parquet does not tell (`omniprep.report.scan.scan`).
        with_sound: Whether the dataset was built with the sound of videos.
    """
    counts = np.asarray(media_counts(rows)) > 0
    places = rows["bin"].fill_null(-1).to_numpy()
    packed = (places >= 0) & (places < bins)
    present = dict(zip(MODALITIES, counts, strict=True))
    # Of a modality a row that holds it alone, and one at all: there may be none but among several media.
    alone = counts.sum(axis=0) == 1
    kinds = {"several media": counts.sum(axis=0) > 1, **present, "text alone": ~counts.any(axis=0)}
    kinds |= {f"{name} alone": held & alone for name, held in present.items()}
    if with_sound:
        kinds["video with sound"] = present["video"] & present["audio"]
    if "verdict" in rows.column_names:
        kinds |= {kind: np.isin(rows["verdict"].to_numpy(), verdicts) for kind, verdicts in PREFERENCE.items()}
    candidates = {kind: np.flatnonzero(mask & packed) for kind, mask in kinds.items()}
    candidates |= {kind: np.array([row]) for kind, row in (found or {}).items() if row < len(rows) and packed[row]}
    chosen: dict[int, list[int]] = {}
    for _, numbers in sorted(candidates.items(), key=lambda entry: len(entry[1])):
        shared = numbers[np.isin(places[numbers], list(chosen))]
        if len(shared) == 0 and len(chosen) == most:
            continue
        if len(numbers):
            row = int(shared[0] if len(shared) else numbers[len(numbers) // 2])
            chosen.setdefault(int(places[row]), []).append(row)
    for number in spread(bins, most):
        if len(chosen) < min(most, bins):
            chosen.setdefault(number, [])
    return [ChosenBin(number, tuple(dict.fromkeys(chosen[number]))) for number in sorted(chosen)]


def browse(dataset: StoredDataset, chosen: Sequence[ChosenBin], vocabulary: Vocabulary | None) -> list[dict[str, Any]]:
    """The bins with as many of their rows as the budgets hold, for the page to draw."""
    text_left, pictures_left = TEXT_BYTES, PICTURE_BYTES
    shown = []
    for number, entry in enumerate(chosen):
        bins_left = len(chosen) - number
        stored = rows_of_bin(dataset, entry.number)
        picked, text_used, pictures_used = _pick(
            dataset, stored, entry.first, vocabulary, text_left // bins_left, pictures_left // bins_left
        )
        text_left, pictures_left = text_left - text_used, pictures_left - pictures_used
        tokens = sum(row.tokens for row in stored)
        shown.append({"bin": entry.number, "tokens": tokens, "rows": picked, "more": len(stored) - len(picked)})
    return shown


def _pick(
    dataset: StoredDataset, stored: Sequence[StoredRow], first: Sequence[int], vocabulary: Vocabulary | None,
    text_budget: int, picture_budget: int,
) -> tuple[list[dict[str, Any]], int, int]:  # fmt: skip
    """Rows of a bin as JSON, in their order, and the bytes that text and pictures took; at least one row."""
    wanted = sorted(pairs_together(stored), key=lambda rows: row_id(rows[0]) not in first)[:ROWS_A_BIN]
    thumbnails = Thumbnails(picture_budget)
    # A token takes 5 bytes and more; a page of very many bins holds the beginnings of their rows.
    most = min(TOKENS_A_ROW, max(text_budget // 5, 64))
    picked: dict[int, dict[str, Any]] = {}
    text_used = 0
    for rows in wanted:  # both answers of a pair, or none
        pictures_left = thumbnails.left
        entries = []
        for row in rows:
            kinds = kinds_of(row, vocabulary, dataset.record.placeholders)
            media = media_as_json(media_of(row.arrays), thumbnails)
            entries.append(row_as_json(row, kinds, media, vocabulary, most))
        size = len(as_json(entries).encode(errors="replace")) - (pictures_left - thumbnails.left)
        if picked and text_used + size > text_budget:
            break
        picked |= {entry["start"]: entry for entry in entries}
        text_used += size
    return [picked[start] for start in sorted(picked)], text_used, picture_budget - thumbnails.left


class Thumbnails:
    """Small pictures of media items, as long as they fit into `left` bytes."""

    def __init__(self, left: int) -> None:
        self.left = left

    def __call__(self, number: int, item: MediaItem) -> dict[str, str]:
        """The picture of an item as a data: URL, or nothing."""
        frames = item.frames() if self.left > 0 else None
        if frames is None:
            return {}
        url = picture_url(Image.fromarray(few(frames)))
        if len(url) > self.left:
            return {}
        self.left -= len(url)
        return {"picture": url}
