"""`verify`: whether a dataset is what its build wrote, by checksums of shards and bins and by the rows of each bin.

`check_shards` reads each shard once, in pieces of 8 MiB, and feeds the same bytes to the SHA-256 of the manifest and
to the XXH3 of each bin of the index: 1 to 2 GB/s a core, memory for the largest bin, work in proportion to shards, bins
and bytes. `check_rows` reads the tables alone: every input row once, read = packed + rejected + removed, the rows of
each bin end to end without gap or overlap, and nothing left of removed rows. A finding is a sentence that names the
file; no finding means that the dataset is what was written.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash
from numpy.typing import NDArray

from omniprep import io
from omniprep.errors import DamagedDataError, OmniprepError
from omniprep.rows.longline import parse_line
from omniprep.shards.codecs import codec_names
from omniprep.shards.dataset import StoredDataset
from omniprep.shards.reader import decode

CHUNK = 8 << 20


@dataclass(frozen=True, slots=True)
class _BinRange:
    """The bytes of a bin in its shard, and their XXH3."""

    number: int
    offset: int
    length: int
    checksum: int

    @property
    def end(self) -> int:
        return self.offset + self.length


def check_shards(dataset: StoredDataset, done: Callable[[int], None] = lambda count: None) -> Iterator[str]:
    """Shards that are absent, of another size, or of other bytes or rows than recorded; `done` gets their bytes."""
    index, shards = dataset.index, dataset.manifest["shards"]
    # Sorted once, so that each shard takes its own bins and no shard looks at those of the others.
    order = np.lexsort((index["offset"], index["shard"]))
    edges = np.searchsorted(index["shard"][order], np.arange(len(shards) + 1))
    columns = [index[name][order].tolist() for name in ("offset", "length", "checksum")]
    ranges = [_BinRange(*facts) for facts in zip(order.tolist(), *columns, strict=True)]
    table = _RowTable.of(dataset)
    for number, shard in enumerate(shards):
        bins = ranges[edges[number] : edges[number + 1]]
        if len(bins) != shard["bins"]:
            yield f"{shard['path']}: the manifest says {shard['bins']} bins, index.parquet {len(bins)}"
        yield from _check_shard(io.join(dataset.uri, *shard["path"].split("/")), shard, bins, table)
        done(shard["bytes"])


def _check_shard(uri: str, shard: dict[str, Any], bins: list[_BinRange], table: "_RowTable | None") -> Iterator[str]:
    """Findings about one shard (its entry, its bins, its part of rows.parquet), bins by their offsets."""
    name = shard["path"]
    try:
        size = io.size(uri)
    except FileNotFoundError:
        yield f"{name}: the file is missing"
        return
    if size != shard["bytes"]:
        yield f"{name}: {size:,} bytes, written as {shard['bytes']:,}"
    whole = hashlib.sha256()
    sound, end = [], 0
    for entry in bins:  # bins that overlap would each be hashed again
        if entry.offset < end or entry.length <= 0:
            yield f"{name}: index.parquet has bin {entry.number} at {entry.offset:,}, where another bin lies"
        else:
            sound.append(entry)
            end = entry.end
    damaged, remaining, buffer, start = False, iter(sound), bytearray(), 0
    current = next(remaining, None)
    with io.open_input(uri) as file:
        while chunk := file.read(CHUNK):
            whole.update(chunk)
            view, end = memoryview(chunk), start + len(chunk)
            while current is not None and current.offset < end:
                buffer += view[max(current.offset - start, 0) : current.end - start]
                if current.end > end:
                    break
                finding = _check_bin(name, current, buffer, table)
                if finding:
                    damaged = True
                    yield finding
                buffer, current = bytearray(), next(remaining, None)
            start = end
    for beyond in [] if current is None else [current, *remaining]:
        damaged = True
        yield f"{name}: bin {beyond.number} is damaged (it ends beyond the file)"
    if not damaged and whole.hexdigest() != shard["sha256"]:
        yield f"{name}: damaged outside its bins (its SHA-256 differs)"


def _check_bin(name: str, entry: _BinRange, data: bytearray, table: "_RowTable | None") -> str | None:
    if xxhash.xxh3_64_intdigest(data) != entry.checksum:
        return f"{name}: bin {entry.number} is damaged (its checksum differs)"
    if table is None:
        return None
    finding = table.compare(entry.number, np.frombuffer(data, np.uint8))
    return f"{name}: bin {entry.number} {finding}" if finding else None


class _RowTable:
    """What rows.parquet says of the rows that bins hold."""

    def __init__(self, dataset: StoredDataset) -> None:
        table = dataset.rows
        self._schema, self._layout = dataset.schema, dataset.layout
        self._has_files = holds_files(dataset)
        self._rows = table.num_rows
        self._bin, self._start, self._length = (
            table[name].cast(pa.int64()).fill_null(-1).to_numpy() for name in ("bin", "start", "length")
        )
        names = [f"{modality}s" for modality in self._layout.modalities]
        self._items: NDArray[np.int64] | None = None
        if set(names) <= set(table.column_names):
            columns = [table[name].cast(pa.int64()).to_numpy() for name in names]
            self._items = np.stack(columns, axis=1) if columns else None

    @classmethod
    def of(cls, dataset: StoredDataset) -> "_RowTable | None":
        """None if the tables or the first shard's schema cannot be read, which other checks report."""
        if not len(dataset):
            return None
        try:
            return cls(dataset)
        except (OSError, OmniprepError, pa.ArrowException):
            return None

    def compare(self, number: int, data: NDArray[np.uint8]) -> str | None:
        """What is wrong with the rows of a bin whose checksum is right."""
        try:
            # Files of earlier bins are not in `data`: `check_pixels` looks at what is made of files.
            item = decode(data, self._schema, self._layout, pixels="none" if self._has_files else "arrays")
        except (pa.ArrowException, DamagedDataError) as error:
            return f"cannot be read ({error})"
        ids, borders = item["row_ids"], item["cu_seqlens"].astype(np.int64)
        if ids.min() < 0 or ids.max() >= self._rows:
            return "holds rows that rows.parquet does not have"
        # A pair is one row of two sequences: it begins with the first, and has the length and the items of both.
        firsts = np.flatnonzero(np.concatenate([[True], ids[1:] != ids[:-1]]))
        ends = np.append(borders[firsts[1:]], borders[-1])
        own = ids[firsts]
        same = (
            (self._bin[own] == number).all()
            and np.array_equal(self._start[own], borders[firsts])
            and np.array_equal(self._length[own], ends - borders[firsts])
            and (self._items is None or np.array_equal(self._items[own], np.add.reduceat(item["row_items"], firsts)))
        )
        if not same:
            return "holds other rows than rows.parquet says: the table is of another build"
        if (item["labels"][borders[:-1]] != -100).any():
            return "has a row whose first token is trained, which would be predicted from the row before it"
        return None


def holds_files(dataset: StoredDataset) -> bool:
    """Whether pixels of a dataset are stored as the files that they are made of (--pixel-codec source)."""
    return "source" in codec_names(dataset.layout.columns).values()


def check_pixels(dataset: StoredDataset, done: Callable[[int], None] = lambda count: None) -> Iterator[str]:
    """Bins whose files do not give the build's pixels on this machine; `done` is called with 1 after each bin."""
    for number in range(len(dataset)):
        try:
            dataset[number]
        except DamagedDataError as error:
            yield str(error)
        done(1)


def check_rows(dataset: StoredDataset) -> Iterator[str]:
    """Findings about the tables and the rows: of another build, lost, twice, or neither packed nor rejected."""
    try:
        rows = dataset.rows
    except DamagedDataError as error:
        yield f"rows.parquet: cannot be read ({error})"
        return
    counts = dataset.counts
    known = {entry["source"] for entry in dataset.manifest.get("inputs", ())}
    if known and (foreign := sorted(set(rows["source"].unique().to_pylist()) - known)):
        yield f"rows.parquet: has rows of {foreign[0]}, which the manifest does not name: the table is of another build"
    packed = pc.is_valid(rows["bin"])
    number_packed = pc.sum(packed).as_py() or 0
    removed = pc.equal(rows["status"].cast(pa.string()), "removed")
    number_removed = pc.sum(removed).as_py() or 0
    rejected = rows.num_rows - number_packed - number_removed
    numbers = {"read": rows.num_rows, "packed": number_packed, "rejected": rejected, "removed": number_removed}
    for what, count in numbers.items():
        if count != counts["rows"].get(what, 0):
            yield f"rows.parquet: {count:,} rows {what}, the manifest says {counts['rows'].get(what, 0):,}"
    lines = rows.select(["source", "line"]).group_by(["source", "line"]).aggregate([([], "count_all")])
    repeated = lines.filter(pc.greater(lines["count_all"], 1))
    for row in repeated.slice(0, 5).to_pylist():
        yield f"rows.parquet: {row['source']}:{row['line']} is there {row['count_all']} times"
    without_code = rows.filter(pc.and_(pc.invert(pc.or_(packed, removed)), pc.is_null(rows["code"]))).num_rows
    if without_code:
        yield f"rows.parquet: {without_code:,} rows are neither packed nor rejected with a code"
    yield from _check_positions(dataset, rows.filter(packed))
    gone = rows.filter(removed)
    yield from _check_rejects(dataset, rejected, gone)
    if gone.num_rows:
        yield from _check_nothing_left(dataset, gone)


def _check_nothing_left(dataset: StoredDataset, gone: pa.Table) -> Iterator[str]:
    """Findings about what may still hold something of rows that were removed.

    Shards that the manifest names hold none, since each of their bins has the rows that rows.parquet says.
    """
    if gone.filter(gone["bin"].is_valid()).num_rows:
        yield "rows.parquet: a row that was removed has a bin"
    named = {shard.path for shard in dataset.record.shards}
    for name in io.list_folder(io.join(dataset.uri, "shards")):
        if name.endswith(".arrow") and f"shards/{name}" not in named:
            yield f"shards/{name}: a shard of before rows were removed; omniprep remove, run again, takes it away"
    for name in io.list_folder(io.join(dataset.uri, "plan")):
        if name.endswith(".arrow"):
            yield f"plan/{name}: a plan of before rows were removed; omniprep remove, run again, takes it away"


def _check_positions(dataset: StoredDataset, packed: pa.Table) -> Iterator[str]:
    """Findings about rows that do not follow each other from the first token of their bin to its last."""
    bins, start, length = (packed[name].to_numpy() for name in ("bin", "start", "length"))
    if len(bins) and (bins.min() < 0 or bins.max() >= len(dataset)):
        yield f"rows.parquet: rows in bins outside 0 to {len(dataset) - 1}"
        return
    order = np.lexsort((start, bins))
    bins, start, length = bins[order], start[order], length[order]
    first = np.concatenate([[True], bins[1:] != bins[:-1]]) if len(bins) else np.zeros(0, bool)
    expected = np.zeros(len(bins), np.int64)
    expected[1:] = np.where(first[1:], 0, start[:-1] + length[:-1])
    for wrong in np.unique(bins[start != expected])[:5].tolist():
        yield f"rows.parquet: the rows of bin {wrong} do not follow each other"
    tokens = np.bincount(bins, weights=length, minlength=len(dataset)).astype(np.int64)
    for name, counted in (("tokens", tokens), ("rows", np.bincount(bins, minlength=len(dataset)))):
        for wrong in np.flatnonzero(counted != dataset.index[name])[:5].tolist():
            expected = dataset.index[name][wrong]
            yield f"bin {wrong}: rows.parquet has {counted[wrong]:,} {name}, index.parquet {expected:,}"


def _check_rejects(dataset: StoredDataset, rejected: int, removed: pa.Table) -> Iterator[str]:
    keys = set(zip(*(removed[name].to_pylist() for name in ("source", "line")), strict=True))
    uri = dataset.table_uri("rejected.jsonl")
    if not io.exists(uri):
        if rejected:
            yield "rejected.jsonl: the file is missing"
        return
    lines = 0
    with io.open_input(uri) as file:
        for lines, line in enumerate(file, 1):
            try:
                entry = parse_line(line)
            except ValueError:
                yield f"rejected.jsonl: line {lines} is not valid JSON"
                continue
            if keys and isinstance(entry, dict) and (entry.get("source"), entry.get("line")) in keys:
                yield f"rejected.jsonl: line {lines} is of a row that was removed"
    if lines != rejected:
        yield f"rejected.jsonl: {lines:,} lines, rows.parquet has {rejected:,} rejected rows"
