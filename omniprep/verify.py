"""Is a built dataset whole? Checksums of every shard and bin in one pass over the bytes, and that no row was lost.

`check_shards` reads each shard once, in pieces of 8 MiB, and feeds the same bytes to the SHA-256 of the manifest and
to the XXH3 of each bin of the index: 1 to 2 GB/s a core, constant memory. `check_rows` works on the tables alone:
every input row once, read = packed + rejected, and the rows of each bin laid end to end without gap or overlap. A
finding is a sentence that names the file; no finding means that the dataset is what the build wrote.
"""

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from omniprep import io
from omniprep.data.dataset import PackedDataset
from omniprep.rows.longline import parse_line

__all__ = ["check_rows", "check_shard", "check_shards"]

CHUNK = 8 << 20


def check_shards(dataset: PackedDataset, done: Callable[[int], None] = lambda count: None) -> Iterator[str]:
    """Findings about the shards: absent, of another size, or with other bytes.

    Args:
        dataset: The dataset.
        done: Called with the number of bytes after each shard.
    """
    index = dataset.index
    for number, shard in enumerate(dataset.manifest["shards"]):
        mine = np.flatnonzero(index["shard"] == number)
        bins = {int(bin): tuple(int(index[key][bin]) for key in ("offset", "length", "checksum")) for bin in mine}
        uri = io.join(dataset.uri, *shard["path"].split("/"))
        if len(bins) != shard["bins"]:
            yield f"{shard['path']}: the manifest says {shard['bins']} bins, index.parquet {len(bins)}"
        yield from check_shard(uri, shard, bins)
        done(shard["bytes"])


def check_shard(uri: str, shard: dict[str, Any], bins: dict[int, tuple[int, ...]]) -> Iterator[str]:
    """Findings about one shard.

    Args:
        uri: Where it is.
        shard: Its entry in the manifest: path, bytes, sha256.
        bins: Offset, length and XXH3 of each of its bins, by number.
    """
    name = shard["path"]
    try:
        found = io.size(uri)
    except FileNotFoundError:
        yield f"{name}: the file is missing"
        return
    if found != shard["bytes"]:
        yield f"{name}: {found:,} bytes, written as {shard['bytes']:,}"
    whole = hashlib.sha256()
    parts = {bin: xxhash.xxh3_64() for bin in bins}
    start = 0
    with io.open_input(uri) as file:
        while chunk := file.read(CHUNK):
            whole.update(chunk)
            view, end = memoryview(chunk), start + len(chunk)
            for bin, (offset, length, _) in bins.items():
                if offset < end and start < offset + length:
                    parts[bin].update(view[max(offset - start, 0) : offset + length - start])
            start = end
    damaged = [bin for bin, entry in bins.items() if parts[bin].intdigest() != entry[2]]
    for bin in damaged:
        yield f"{name}: bin {bin} is damaged (its checksum differs)"
    if not damaged and whole.hexdigest() != shard["sha256"]:
        yield f"{name}: damaged outside its bins (its SHA-256 differs)"


def check_rows(dataset: PackedDataset) -> Iterator[str]:
    """Findings about the rows: lost, twice, or in no place."""
    rows, counts = dataset.rows, dataset.manifest["counts"]
    packed = pc.is_valid(rows["bin"])
    number_packed = pc.sum(packed).as_py() or 0
    rejected = rows.num_rows - number_packed
    for what, found, said in (
        ("read", rows.num_rows, counts["rows"]["read"]),
        ("packed", number_packed, counts["rows"]["packed"]),
        ("rejected", rejected, counts["rows"]["rejected"]),
    ):
        if found != said:
            yield f"rows.parquet: {found:,} rows {what}, the manifest says {said:,}"
    places = rows.select(["source", "line"]).group_by(["source", "line"]).aggregate([([], "count_all")])
    twice = places.filter(pc.greater(places["count_all"], 1))
    for place in twice.slice(0, 5).to_pylist():
        yield f"rows.parquet: {place['source']}:{place['line']} is there {place['count_all']} times"
    without_code = rows.filter(pc.and_(pc.invert(packed), pc.is_null(rows["code"]))).num_rows
    if without_code:
        yield f"rows.parquet: {without_code:,} rows are neither packed nor rejected with a code"
    yield from _check_places(dataset, rows.filter(packed))
    yield from _check_rejects(dataset, rejected)


def _check_places(dataset: PackedDataset, packed: pa.Table) -> Iterator[str]:
    """The rows of each bin must follow each other from token 0 to the bin's last."""
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
    for name, found in (("tokens", tokens), ("rows", np.bincount(bins, minlength=len(dataset)))):
        for wrong in np.flatnonzero(found != dataset.index[name])[:5].tolist():
            yield f"bin {wrong}: rows.parquet has {found[wrong]:,} {name}, index.parquet {dataset.index[name][wrong]:,}"


def _check_rejects(dataset: PackedDataset, rejected: int) -> Iterator[str]:
    uri = io.join(dataset.uri, "rejected.jsonl")
    if not io.exists(uri):
        if rejected:
            yield "rejected.jsonl: the file is missing"
        return
    with io.open_input(uri) as file:
        lines = 0
        for number, line in enumerate(file, 1):
            lines += 1
            try:
                parse_line(line)
            except ValueError:
                yield f"rejected.jsonl: line {number} is not valid JSON"
    if lines != rejected:
        yield f"rejected.jsonl: {lines:,} lines, rows.parquet has {rejected:,} rejected rows"
