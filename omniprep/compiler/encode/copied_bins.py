"""Bins made of rows of finished datasets, which repack and remove write: slices of old bins, laid end to end.

Local shards are mapped, and each old bin is hashed before the first of its rows is taken, so that damage is not copied
and given a fresh checksum; bins of a store, and those with pixels in a codec, are read whole, and the last gigabyte of
them is kept. Rows without media, which may be millions, cost a few microseconds each beside the copy of their tokens.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from omniprep import io
from omniprep.compiler.encode.row_padding import NO_PADDING, RowPadding, following
from omniprep.compiler.encode.shard_file import ShardFile
from omniprep.compiler.run.tasks import Receipt, ShardTask
from omniprep.errors import DamagedDataError
from omniprep.lru import BoundedCache
from omniprep.shards.codecs import codec_names
from omniprep.shards.content import split_items
from omniprep.shards.cut import cut_rows
from omniprep.shards.dataset import StoredDataset
from omniprep.shards.reader import decode
from omniprep.shards.schema import Bin, read_layout

KEPT_BYTES = 1 << 30
MAPPED_SHARDS = 256
COPIED_BYTES = 100e6
"""Bytes of shards that a core copies in a second: 75 MB of text rows of 200 tokens, 200 MB of raw pictures, less of
pictures in a codec, which are decoded and encoded again."""
ROW_BYTES = 400
"""What a row of a kept bin takes in Python's own objects, about."""

CheckPixels = Literal["first", "always", "never"]


@dataclass(frozen=True, slots=True)
class CopySource:
    """A dataset that rows are copied from."""

    uri: str
    sha256: str
    """Of its manifest and tables: a worker that lives on from an earlier command opens a changed dataset anew."""


@dataclass(frozen=True, slots=True)
class RowPlaces:
    """Where rows lie in finished datasets, an array each."""

    dataset: NDArray[np.int32]
    bin: NDArray[np.int64]
    start: NDArray[np.int64]
    length: NDArray[np.int64]
    line: NDArray[np.int64]
    """Line of the dataset's rows.parquet, from 0."""

    def take(self, numbers: NDArray[np.int64] | slice) -> "RowPlaces":
        """Some of the rows."""
        return RowPlaces(
            self.dataset[numbers], self.bin[numbers], self.start[numbers], self.length[numbers], self.line[numbers]
        )


def places_of(dataset: StoredDataset, number: int = 0) -> RowPlaces:
    """Where the rows of a dataset lie, all of rows.parquet; those that are not packed have bin -1."""
    columns = {
        name: dataset.rows[name].cast(pa.int64()).fill_null(-1).to_numpy() for name in ("bin", "start", "length")
    }
    lines = np.arange(dataset.rows.num_rows)
    return RowPlaces(np.full(len(lines), number, np.int32), columns["bin"], columns["start"], columns["length"], lines)


@dataclass(frozen=True, kw_only=True)
class CopyTask(ShardTask):
    """Write one shard of copied rows."""

    sources: tuple[CopySource, ...]
    schema: pa.Schema
    places: RowPlaces
    """Of the shard's rows, in order."""
    row_ids: NDArray[np.int64]
    """Their numbers in the new rows.parquet."""
    borders: NDArray[np.int64]
    """Where each bin begins among them, and the end; a bin without rows is not written."""
    pixels: Literal["arrays", "files"]
    """With "files", what is stored as files is copied as such (`StoredDataset.load`)."""
    check_pixels: CheckPixels = "first"
    padding: RowPadding = NO_PADDING

    def run(self) -> Receipt:
        """As `Task.run`."""
        preferences = read_layout(self.schema).preferences
        copier = _copier(self.sources, self.pixels, self.check_pixels, preferences, self.padding)
        with ShardFile(self.out, self.number, self.schema, self.generation) as shard:
            for number in range(len(self.borders) - 1):
                rows = slice(int(self.borders[number]), int(self.borders[number + 1]))
                if rows.start < rows.stop:
                    shard.put(number, copier.bin(self.places.take(rows), self.row_ids[rows]))
        return shard.finish([])


@lru_cache(maxsize=1)
def _copier(
    sources: tuple[CopySource, ...], pixels: Literal["arrays", "files"], check_pixels: CheckPixels, preferences: bool,
    padding: RowPadding,
) -> "BinCopier":  # fmt: skip
    """The copier of a process, which keeps old bins from one task to the next."""
    datasets = [StoredDataset(entry.uri, check_pixels=check_pixels) for entry in sources]
    return BinCopier(datasets, pixels, preferences=preferences, padding=padding)


def forget_copied() -> None:
    """Let go of the old bins that this process keeps."""
    _copier.cache_clear()


class _OldBin:
    """A bin that rows are taken from."""

    __slots__ = ("arrays", "borders", "has_media", "ids", "kept_bytes", "labels", "lines", "paired", "row_at")

    def __init__(self, arrays: dict[str, Any], *, mapped: bool) -> None:
        self.arrays = arrays
        self.borders: list[int] = arrays["cu_seqlens"].tolist()
        self.lines: list[int] = arrays["row_ids"].tolist()
        self.ids, self.labels = arrays["input_ids"], arrays["labels"]
        self.has_media: list[bool] = arrays["row_items"].any(axis=1).tolist()
        # Only the first sequence of a pair is looked up: its row is both.
        self.paired: list[bool] | None = (arrays["pair_ids"] >= 0).tolist() if "pair_ids" in arrays else None
        self.row_at = dict(zip(self.borders, range(len(self.lines)), strict=False))  # by the token at which it begins
        self.kept_bytes = ROW_BYTES * len(self.lines) + (0 if mapped else _bytes(arrays))


class BinCopier:
    """Makes bins of rows of finished datasets; see the module for what is kept."""

    def __init__(
        self, datasets: Sequence[StoredDataset], pixels: Literal["arrays", "files"], *, preferences: bool = False,
        padding: RowPadding = NO_PADDING,
    ) -> None:  # fmt: skip
        """`preferences`: whether the new shards have the columns of preference rows; old ones may be of both kinds."""
        self._datasets, self._pixels = datasets, pixels
        self._shards: BoundedCache[tuple[int, int], NDArray[np.uint8]] = BoundedCache(MAPPED_SHARDS)
        self._bins: BoundedCache[tuple[int, int], _OldBin] = BoundedCache(KEPT_BYTES, lambda kept: kept.kept_bytes)
        layout = datasets[0].layout
        self._columns = layout.columns
        self._weighted, self._modalities = layout.weighted, len(layout.modalities)
        self._preferences, self._padding = preferences, padding
        self._token_columns = [column.name for column in layout.columns if column.kind == "tokens"]
        stored = codec_names(layout.columns) if pixels == "files" else {}
        self._file_columns = [name for name, codec in stored.items() if codec == "source"]

    def bin(self, places: RowPlaces, row_ids: NDArray[np.int64]) -> Bin:
        """Rows as a new bin, at least one; its arrays are copies but for those of media, which may be views."""
        ids, labels, weights = [], [], []
        items: list[NDArray[np.int32]] = []
        no_items = np.zeros((1, self._modalities), np.int32)
        inner: dict[int, list[int]] = {}  # of rows of two sequences: their lengths
        verdicts: dict[int, dict[str, NDArray[np.int32]]] = {}
        positions: dict[int, NDArray[np.int32]] = {}
        media: dict[str, list[NDArray[Any]]] = {column.name: [] for column in self._columns}
        files: dict[str, list[Any]] = {name: [] for name in self._file_columns}
        columns = (places.dataset, places.bin, places.start, places.length, places.line)
        rows = zip(*(column.tolist() for column in columns), strict=True)
        for row, (dataset, number, start, length, line) in enumerate(rows):
            old = self._bins.get((dataset, number)) or self._read(dataset, number)
            end, place = start + length, old.row_at.get(start)
            last = -1 if place is None else place + (2 if old.paired is not None and old.paired[place] else 1)
            if place is None or last >= len(old.borders) or old.lines[place] != line or old.borders[last] != end:
                raise DamagedDataError(
                    f"{self._datasets[dataset].uri}: bin {number} does not hold row {line} of rows.parquet "
                    "where that says it is"
                )
            ids.append(old.ids[start:end])
            labels.append(old.labels[start:end])
            if self._weighted:
                weights.append(old.arrays["loss_scale"][start:end])
            if last - place > 1:
                inner[row] = [old.borders[place + 1] - start, end - old.borders[place + 1]]
            if old.paired is not None:
                verdicts[row] = {name: old.arrays[name][place:last] for name in ("chosen", "shared_media")}
            missing = self._padding.missing(length)
            if missing:
                ids.append(np.full(missing, self._padding.token, old.ids.dtype))
                labels.append(np.full(missing, -100, old.labels.dtype))
                weights.append(np.zeros(missing, np.float32))
            if not any(old.has_media[place:last]):
                items += [no_items] * (last - place)
                for name in self._token_columns:
                    media[name].append(old.arrays[name][start:end])
            else:
                cut = cut_rows(old.arrays, place, last)
                items.append(cut["row_items"])
                if "position_ids" in cut:  # of a row without media the build keeps none: they are the plain range
                    positions[row] = following(cut["position_ids"], missing)
                for name, parts in _media_items(cut).items():
                    media[name] += parts
                for name in self._file_columns:
                    files[name] += cut.get("files", {}).get(name, [])
            if missing:
                for name in self._token_columns:  # 0 is text
                    media[name].append(np.zeros(missing, old.arrays[name].dtype))
        lengths = own_lengths = self._padding.padded(places.length)
        if inner:
            lengths = np.array([n for row, own in enumerate(lengths.tolist()) for n in inner.get(row, [own])], np.int64)
            row_ids = np.repeat(row_ids, [len(inner.get(row, [0])) for row in range(len(row_ids))])
        return Bin(
            input_ids=np.concatenate(ids),
            labels=np.concatenate(labels),
            loss_scale=np.concatenate(weights) if self._weighted else None,
            position_ids=_joined_positions(positions, own_lengths, inner) if positions else None,
            cu_seqlens=np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)]).astype(np.int32),
            row_ids=row_ids.astype(np.int32),
            row_items=np.concatenate(items),
            media=media,
            files=files,
            **(_preference_columns(len(places.length), inner, verdicts) if self._preferences else {}),
        )

    def _read(self, dataset: int, number: int) -> _OldBin:
        """A bin that is not kept; DamagedDataError where it is not what the index says, or holds no such bin."""
        ds = self._datasets[dataset]
        if not 0 <= number < len(ds):
            raise DamagedDataError(f"{ds.uri}: rows.parquet speaks of bin {number}, of which there are {len(ds)}")
        shard, offset, length = (int(ds.index[name][number]) for name in ("shard", "offset", "length"))
        uri = io.join(ds.uri, *ds.record.shards[shard].path.split("/"))
        coded = any("codec" in column.params for column in ds.layout.columns)  # a bin is then decoded once, not by row
        if coded or not io.is_local(uri):
            return self._bins.put(
                (dataset, number), _OldBin(ds.load(number, self._pixels, repeat_shared=False), mapped=False)
            )
        content = self._shards.get((dataset, shard))
        if content is None:
            try:
                mapped = np.memmap(io.local_path(uri), np.uint8, "r")
            except ValueError as error:  # an empty file
                raise DamagedDataError(f"{uri}: {error}") from error
            content = self._shards.put((dataset, shard), mapped)
        data = content[offset : offset + length]
        if xxhash.xxh3_64_intdigest(data.data) != int(ds.index["checksum"][number]):
            raise DamagedDataError(f"{uri}: bin {number} is damaged (its checksum differs); see omniprep verify")
        try:
            arrays = decode(data, ds.schema, ds.layout)
        except DamagedDataError as error:
            raise DamagedDataError(f"{uri}: bin {number}: {error}") from error
        return self._bins.put((dataset, number), _OldBin(arrays, mapped=True))


def _joined_positions(
    positions: Mapping[int, NDArray[np.int32]], lengths: NDArray[np.int64], inner: Mapping[int, Sequence[int]]
) -> NDArray[np.int32]:
    """The m-rope positions of rows laid end to end; those of the rows that have none are the plain range.

    `inner` has the lengths of the two sequences of a pair.
    """
    plain = np.arange(int(lengths.max()), dtype=np.int32)
    parts = []
    for row, length in enumerate(lengths.tolist()):
        if row in positions:
            parts.append(positions[row])
        else:
            parts += [np.broadcast_to(plain[:own], (3, own)) for own in inner.get(row, [length])]
    return np.concatenate(parts, axis=1)


def _preference_columns(
    rows: int, inner: Mapping[int, Sequence[int]], verdicts: Mapping[int, Mapping[str, NDArray[np.int32]]]
) -> dict[str, NDArray[np.int32]]:
    """The columns of preference rows; a row of a dataset that has none of them is an ordinary one."""
    ordinary = {"chosen": np.full(1, -1, np.int32), "shared_media": np.zeros(1, np.int32)}
    columns = {
        name: np.concatenate([verdicts.get(row, ordinary)[name] for row in range(rows)])
        for name in ("chosen", "shared_media")
    }
    numbers = {row: number for number, row in enumerate(inner)}  # in the order of the rows
    pair_ids = [number for row in range(rows) for number in [numbers.get(row, -1)] * len(inner.get(row, [0]))]
    return {"pair_ids": np.array(pair_ids, np.int32), **columns}


def _bytes(arrays: Mapping[str, Any]) -> int:
    held = sum(value.nbytes for value in arrays.values() if isinstance(value, np.ndarray))
    return int(held + sum(stored.nbytes for items in arrays.get("files", {}).values() for stored in items))


def _media_items(cut: Mapping[str, Any]) -> dict[str, list[NDArray[Any]]]:
    """The media of one row, column by column, an array for each item."""
    media: dict[str, list[NDArray[Any]]] = {column.name: [] for column in cut["columns"]}
    for column in cut["columns"]:
        if column.name not in cut:
            continue
        if column.kind == "tokens":
            media[column.name] = [cut[column.name]]
        elif column.kind == "flat":
            media[column.name] = split_items(column, cut)
        else:
            media[column.name] = list(cut[column.name])
    return media
