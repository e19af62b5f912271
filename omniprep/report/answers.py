"""What the page of a served dataset asks for: any bin, rows by what they hold or say, rejects, pictures as stored.

All answers are JSON types or the bytes of a PNG, and bounded: a bin is read when it is asked for, long ones in parts.
Searches stop after `SECONDS` and say where to go on.
"""

import io as memory
import time
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image

from omniprep.errors import DamagedDataError, OmniprepError, UsageError
from omniprep.inspect.describe import StoredRow, find_row, rows_of_bin
from omniprep.inspect.media import MediaItem, media_of
from omniprep.inspect.vocabulary import Vocabulary
from omniprep.modalities import MODALITIES, media_counts
from omniprep.report.rejects import read_rejects
from omniprep.report.rows import PREFERENCE, kinds_of, media_as_json, row_as_json
from omniprep.shards.dataset import StoredDataset

ROWS_A_PART = 24
TOKENS_A_PART = 24_000
"""Of a part of a bin, about 200 KB of JSON; and of a row before it is asked for in full."""
FOUND = 40
REJECTS = 25
SECONDS = 1.5
"""Most that a search takes before it answers with what it has."""
SNIPPET = 80
KEPT_BINS = 3
"""Decoded bins that are kept, since the pictures of a bin are asked for one by one."""


class NotFoundError(UsageError):
    """There is no such bin, row, item or frame."""


class Answers:
    """The answers about one dataset; not for several threads at once."""

    def __init__(self, dataset: StoredDataset, vocabulary: Vocabulary | None) -> None:
        self.dataset, self.vocabulary = dataset, vocabulary
        self._bins: OrderedDict[int, list[StoredRow]] = OrderedDict()
        self._frames: tuple[tuple[int, int, int], np.ndarray] | None = None
        """The item that was asked for last, and its frames."""

    def bin(self, number: int, first: int = 0) -> dict[str, Any]:
        """Rows of a bin from the sequence `first` on; "next" is the sequence to go on with, None at the end."""
        stored = self._stored(number)
        shown: list[dict[str, Any]] = []
        tokens = 0
        for position in range(first, min(first + ROWS_A_PART, len(stored))):
            if shown and tokens + stored[position].tokens > TOKENS_A_PART:
                break
            shown.append(self._row(number, position, TOKENS_A_PART))
            tokens += stored[position].tokens
        after = first + len(shown)
        return {
            "bin": number,
            "bins": len(self.dataset),
            "count": len(stored),
            "tokens": sum(row.tokens for row in stored),
            "first": first,
            "rows": shown,
            "next": after if after < len(stored) else None,
        }

    def row(self, number: int, position: int) -> dict[str, Any]:
        """A row of a bin with all of its tokens."""
        stored = self._stored(number)
        if not 0 <= position < len(stored):
            raise NotFoundError(f"bin {number} has no row {position}")
        return self._row(number, position, stored[position].tokens)

    def _stored(self, number: int) -> list[StoredRow]:
        if not 0 <= number < len(self.dataset):
            raise NotFoundError(f"there is no bin {number}: the dataset has {len(self.dataset):,}")
        if number not in self._bins:
            self._bins[number] = rows_of_bin(self.dataset, number)
        self._bins.move_to_end(number)
        while len(self._bins) > KEPT_BINS:
            self._bins.popitem(last=False)
        return self._bins[number]

    def _row(self, number: int, position: int, most: int) -> dict[str, Any]:
        row = self._stored(number)[position]

        def picture(item_number: int, item: MediaItem) -> dict[str, Any]:
            if (frames := item.frames()) is None:
                return {}
            return {"frames": len(frames), "url": f"picture?bin={number}&row={position}&item={item_number}"}

        kinds = kinds_of(row, self.vocabulary, self.dataset.record.placeholders)
        media = media_as_json(media_of(row.arrays), picture)
        return row_as_json(row, kinds, media, self.vocabulary, most) | {"position": position}

    def picture(self, number: int, position: int, item: int, frame: int) -> bytes:
        """A picture, a frame of a video or a spectrogram, pixel by pixel as the shard holds it, as a PNG file."""
        key = (number, position, item)
        if self._frames is None or self._frames[0] != key:
            stored = self._stored(number)
            media = media_of(stored[position].arrays) if 0 <= position < len(stored) else []
            frames = media[item].frames() if 0 <= item < len(media) else None
            if frames is None:
                raise NotFoundError(f"bin {number} has no picture {item} in row {position}")
            self._frames = key, frames
        frames = self._frames[1]
        if not 0 <= frame < len(frames):
            raise NotFoundError(f"the item has {len(frames)} frames, no frame {frame}")
        target = memory.BytesIO()
        Image.fromarray(frames[frame]).save(target, format="PNG", compress_level=1)
        return target.getvalue()

    def place(self, name: str) -> dict[str, Any]:
        """Where the row SOURCE:LINE is: its bin and position, or its status and code where it is in none."""
        try:
            number = find_row(self.dataset, name)
        except DamagedDataError:
            raise
        except OmniprepError as error:
            raise NotFoundError(str(error).removeprefix("--row ")) from error
        row = self.dataset.rows.slice(number, 1).to_pylist()[0]
        found = {key: row[key] for key in ("source", "line", "status", "code", "bin")}
        if row["bin"] is None:
            return found
        starts = [stored.start for stored in self._stored(row["bin"])]
        if row["start"] not in starts:
            raise NotFoundError(f"{name}: rows.parquet says that it is in bin {row['bin']}, where it is not")
        return {**found, "position": starts.index(row["start"])}

    def find(self, wanted: dict[str, Any], after: int = 0) -> dict[str, Any]:
        """Rows that fit, from rows.parquet, and, where "text" is wanted, from the texts in the shards.

        Args:
            wanted: "kind", "source", "status", "text" (each "" for all), and the fewest and most tokens, "least" and
                "most" (None for all).
            after: Where to go on: "next" of the answer before; a row, or with a text a bin.
        """
        mask = self._mask(wanted)
        rows = self.dataset.rows
        if text := wanted["text"]:
            return self._find_text(text.lower(), mask, after)
        numbers = np.flatnonzero(mask)
        part = numbers[np.searchsorted(numbers, after) :][: FOUND + 1].tolist()
        found = [self._listed(number) for number in part[:FOUND]]
        return {"rows": found, "total": len(numbers), "of": len(rows), "next": part[FOUND] if part[FOUND:] else None}

    def _mask(self, wanted: dict[str, Any]) -> np.ndarray:
        """Which rows of rows.parquet fit what is wanted but for the text."""
        rows = self.dataset.rows
        mask = np.ones(len(rows), bool)
        if kind := wanted["kind"]:
            mask &= self._of_kind(kind)
        for name in ("source", "status"):
            if value := wanted[name]:
                column = rows[name].combine_chunks()
                values = column.dictionary.to_pylist()
                mask &= column.indices.to_numpy(zero_copy_only=False) == (
                    values.index(value) if value in values else -1
                )
        lengths = rows["length"].fill_null(-1).to_numpy()
        if wanted["least"] is not None:
            mask &= lengths >= wanted["least"]
        if wanted["most"] is not None:
            mask &= (lengths >= 0) & (lengths <= wanted["most"])
        return mask

    def _of_kind(self, kind: str) -> np.ndarray:
        rows = self.dataset.rows
        if kind in PREFERENCE:
            verdicts = rows["verdict"].to_numpy() if "verdict" in rows.column_names else np.full(len(rows), -1)
            return np.isin(verdicts, PREFERENCE[kind])
        counts = np.asarray(media_counts(rows)) > 0
        if kind in MODALITIES:
            return np.asarray(counts[list(MODALITIES).index(kind)])
        if kind not in ("text alone", "several media"):
            raise UsageError(f"there are no rows of the kind {kind!r}")
        if kind == "several media":
            return np.asarray(counts.sum(axis=0) > 1)
        # Of a rejected row it is not known what it held: it has no length.
        return np.asarray(~counts.any(axis=0) & rows["length"].is_valid().to_numpy())

    def _listed(self, number: int) -> dict[str, Any]:
        row = self.dataset.rows.slice(number, 1).to_pylist()[0]
        held = [name for name, modality in MODALITIES.items() if row.get(modality.column)]
        return {**{key: row[key] for key in ("source", "line", "status", "code", "bin", "length")}, "held": held}

    def _find_text(self, text: str, mask: np.ndarray, after: int) -> dict[str, Any]:
        """Rows of the mask with a text, bin after bin, until there are enough or it takes long."""
        if self.vocabulary is None:
            raise UsageError("without the tokenizer no text can be searched; give the checkpoint with --model")
        numbers = self.dataset.rows["bin"].fill_null(-1).to_numpy()
        bins = np.unique(numbers[mask & (numbers >= 0) & (numbers < len(self.dataset))])
        ends = time.monotonic() + SECONDS
        found: list[dict[str, Any]] = []
        done = int(np.searchsorted(bins, after))
        while done < len(bins) and len(found) < FOUND and (time.monotonic() < ends):
            for row, snippet in self._texts_with(int(bins[done]), text, mask):
                found.append({**self._listed(row), "snippet": snippet})
            done += 1
        following = int(bins[done]) if done < len(bins) else None
        return {"rows": found, "searched": done, "bins": len(bins), "next": following}

    def _texts_with(self, number: int, text: str, mask: np.ndarray) -> Iterator[tuple[int, str]]:
        """Rows of a bin that hold a text (in small letters), once each, and what stands around it."""
        assert self.vocabulary is not None
        item = self.dataset.load(number, "none")  # no pixels are decoded
        borders, seen = item["cu_seqlens"].tolist(), set()
        for position, row in enumerate(item["row_ids"].tolist()):
            if not 0 <= row < len(mask) or not mask[row] or row in seen:
                continue
            whole = self.vocabulary.decode(item["input_ids"][borders[position] : borders[position + 1]].tolist())
            start = whole.lower().find(text)
            if start >= 0:
                seen.add(row)
                yield row, whole[max(start - SNIPPET // 2, 0) : start + len(text) + SNIPPET]

    def rejects(self, code: str, text: str, offset: int) -> dict[str, Any]:
        """Rejects from a byte of rejected.jsonl on, of a code or all, that hold a text or any."""
        uri = self.dataset.table_uri("rejected.jsonl")
        shown: list[dict[str, Any]] = []
        ends, text, following = time.monotonic() + SECONDS, text.lower(), None
        if not self.dataset.counts["rejected_by_code"]:
            return {"rejects": [], "next": None}
        for reject, after in read_rejects(uri, offset):
            if code in ("", reject["code"]) and text in " ".join(map(str, reject.values())).lower():
                shown.append(reject)
            if len(shown) == REJECTS or time.monotonic() > ends:
                following = after
                break
        return {"rejects": shown, "next": following}
