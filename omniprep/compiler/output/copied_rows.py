"""The rows of a repack: cut out of the bins of finished datasets; the new tables say of them what the old ones did.

Local shards are mapped, and each bin is hashed before the first of its rows is taken, so that damage is not copied and
given a fresh checksum; remote ones are read bin by bin, the last gigabyte of them kept, so pull a large dataset first.
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from omniprep import io
from omniprep.compiler.output.folder import BuildIdentity
from omniprep.compiler.output.manifest import versions
from omniprep.compiler.pack import Assignment, Rows
from omniprep.compiler.plan.split_task import merge_unread
from omniprep.config import BuildConfig
from omniprep.data.collate import cut_row
from omniprep.data.dataset import PackedDataset
from omniprep.errors import DamagedDataError
from omniprep.lru import BoundedCache
from omniprep.rows.columns import Note
from omniprep.rows.longline import parse_line
from omniprep.shards.codecs import codec_names, recoded
from omniprep.shards.content import split_items
from omniprep.shards.reader import decode
from omniprep.shards.schema import Bin

KEPT_BYTES = 1 << 30
MAPPED_SHARDS = 256


@dataclass(slots=True)
class Chosen:
    """Rows of the old datasets that go on, in order."""

    table: pa.Table
    """rows.parquet of all datasets, the chosen lines alone."""
    dataset: NDArray[np.int64]
    """Which dataset each line is of."""
    line: NDArray[np.int64]
    """Its line in that dataset's rows.parquet."""


@dataclass(slots=True)
class CopiedRows:
    """Rows of finished datasets: an `Origin` (compiler/output/manifest.py)."""

    datasets: Sequence[PackedDataset]
    chosen: Chosen
    rows: Rows
    """Facts of the chosen rows; those too long for the new bins have length 0 and a code."""
    assignment: Assignment
    plan_hash: str
    config: BuildConfig
    """Of the repack."""
    identity: BuildIdentity

    def facts(self, shard_seconds: float) -> dict[str, Any]:
        """As `Origin.facts`; what the first source says, where sources have to agree."""
        inputs = {entry["source"]: entry for ds in self.datasets for entry in ds.manifest["inputs"]}
        kept = set(self.chosen.table["source"].unique().to_pylist())
        first = self.datasets[0].manifest
        return {
            **{name: value for name, value in first.items() if name not in ("generations", "tables")},
            "omniprep": versions()["omniprep"],
            "inputs": [entry for source, entry in inputs.items() if source in kept],
            "seconds": {"repack": round(shard_seconds, 1)},
            "needed_flags": list(dict.fromkeys(flag for ds in self.datasets for flag in ds.record.needed_flags)),
            "video_readers": self._video_readers(),
            "pixel_codecs": codec_names(recoded(self.datasets[0].layout.columns, self.config.pixel_codec)),
            "repacked_from": [
                {"uri": ds.uri, "plan_sha256": ds.manifest.get("plan_sha256"), "sha256": entry["sha256"]}
                for ds, entry in zip(self.datasets, self.identity.inputs, strict=True)
            ],
            "chosen": {name: self.identity.config[name] for name in ("source", "kind")},
        }

    def _video_readers(self) -> dict[str, int]:
        """Videos by who decoded them, summed over the sources; which rows they are of is not kept."""
        total = Counter[str]()
        for dataset in self.datasets:
            counts = dataset.manifest.get("video_readers")
            for name, count in counts.items() if isinstance(counts, dict) else ():
                total[name] += count if isinstance(count, int) else 0
        return dict(sorted(total.items()))

    @property
    def left_out(self) -> dict[str, int]:
        """As `Origin.left_out`: what was left out of the sources was never a row of theirs."""
        return {}

    def unread(self) -> dict[str, list[Any]]:
        """As `Origin.unread`, summed over the sources.

        The sources say for each column how many rows have it, and for each row only whether it has any such column. So
        after a choice of rows the number of a column is the most that it can be.
        """
        total: dict[str, list[Any]] = {}
        with_note = int(((self.rows.facts["notes"] & Note.UNREAD_COLUMNS) > 0).sum())
        for dataset in self.datasets if with_note else ():
            columns = dataset.record.counted(dataset.uri).unread_columns
            merge_unread(total, {name: (column.rows, column.option) for name, column in columns.items()})
        return {name: [min(rows, with_note), option] for name, (rows, option) in total.items()}

    def lines(self, part: slice) -> tuple[pa.Array, NDArray[np.int64]]:
        """As `Origin.lines`."""
        table = self.chosen.table.slice(part.start, part.stop - part.start)
        return table["source"].combine_chunks(), table["line"].to_numpy()

    def rejected(self, numbers: NDArray[np.int64], late: dict[int, dict[str, Any]]) -> Iterator[bytes]:
        """As `Origin.rejected`: lines of the sources as they were; rows that are too long now have no content."""
        assert not late, "nothing is decoded, so nothing is rejected late"
        was_packed = self.chosen.table["length"].is_valid().to_numpy()
        old_lines = [_rejected_lines(dataset) for dataset in self.datasets]
        for number in numbers.tolist():
            row = self.chosen.table.slice(number, 1).select(["source", "line", "length"]).to_pylist()[0]
            if was_packed[number]:
                reject = {"source": row["source"], "line": row["line"], "code": self.rows.facts["code"][number]}
                message = f"{row['length']} tokens, the limit is {self.config.row_limit}"
                yield json.dumps({**reject, "message": message, "row": None}, ensure_ascii=False).encode() + b"\n"
                continue
            # Both are in the order of the input rows, so each file is read once, line by line.
            key, index = (row["source"], row["line"]), self.chosen.dataset[number]
            line = next((line for old_key, line in old_lines[index] if old_key == key), None)
            if line is None:
                uri = self.datasets[index].uri
                raise DamagedDataError(f"{uri}: rejected.jsonl lacks the row {key[0]}:{key[1]}; see omniprep verify")
            yield line


def _rejected_lines(dataset: PackedDataset) -> Iterator[tuple[tuple[str, int], bytes]]:
    """Source and line number of each line of rejected.jsonl, and the line."""
    uri = dataset.table_uri("rejected.jsonl")
    if not io.exists(uri):
        return
    with io.open_input(uri) as file:
        for number, line in enumerate(file, 1):
            try:
                reject = parse_line(line)
                key = str(reject["source"]), int(reject["line"])
            except (ValueError, KeyError, TypeError) as error:
                raise DamagedDataError(f"{uri}: line {number} is no rejected row ({error})") from error
            yield key, line


class RowReader:
    """Cuts single rows out of bins; see the module for what is kept."""

    def __init__(
        self, datasets: Sequence[PackedDataset], chosen: Chosen, pixels: Literal["arrays", "files"] = "arrays"
    ) -> None:
        """With `pixels` "files", what is stored as files is copied as such (`PackedDataset.load`)."""
        self.datasets, self._chosen, self._pixels = datasets, chosen, pixels
        self._positions = [
            {name: ds.rows[name].to_numpy(zero_copy_only=False) for name in ("bin", "start", "length")}
            for ds in datasets
        ]
        self._shards: BoundedCache[tuple[int, int], NDArray[np.uint8]] = BoundedCache(MAPPED_SHARDS)
        self._bins: BoundedCache[tuple[int, int], dict[str, Any]] = BoundedCache(KEPT_BYTES, _bytes)
        self._hashed = [np.zeros(len(ds), bool) for ds in datasets]

    def read(self, number: int) -> Bin:
        """A chosen row by its number, as `encode_planned` would give it; its arrays look into the old shard."""
        dataset, line = int(self._chosen.dataset[number]), int(self._chosen.line[number])
        bins, starts, lengths = (self._positions[dataset][name] for name in ("bin", "start", "length"))
        packed = self._bin(dataset, int(bins[line]))
        start, borders = int(starts[line]), packed["cu_seqlens"]
        within = int(np.searchsorted(borders[:-1], start))
        if (
            within == len(packed["row_ids"])
            or packed["row_ids"][within] != line
            or (borders[within], borders[within + 1] - start) != (start, lengths[line])
        ):
            raise DamagedDataError(
                f"{self.datasets[dataset].uri}: bin {int(bins[line])} does not hold row {line} of rows.parquet "
                "where that says it is"
            )
        cut = cut_row(packed, within)
        # Of a row without media the build keeps no positions: they are the plain range.
        positions = cut.get("position_ids") if cut["row_items"].any() else None
        names = ("input_ids", "labels", "cu_seqlens", "row_ids", "row_items")
        fixed = {name: cut[name] for name in names}
        files = {name: cut.get("files", {}).get(name, []) for name in self._file_columns}
        media = _items(cut)
        return Bin(**fixed, loss_scale=cut.get("loss_scale"), position_ids=positions, media=media, files=files)

    @property
    def _file_columns(self) -> list[str]:
        """Names of the columns that are copied as files."""
        names = codec_names(self.datasets[0].layout.columns) if self._pixels == "files" else {}
        return [name for name, codec in names.items() if codec == "source"]

    def _bin(self, dataset: int, number: int) -> dict[str, Any]:
        ds = self.datasets[dataset]
        shard, offset, length = (int(ds.index[name][number]) for name in ("shard", "offset", "length"))
        uri = io.join(ds.uri, *ds.manifest["shards"][shard]["path"].split("/"))
        coded = any("codec" in column.params for column in ds.layout.columns)  # a bin is then decoded once, not by row
        if io.is_local(uri) and not coded:
            content = self._shards.get((dataset, shard))
            if content is None:
                try:
                    mapped = np.memmap(io.local_path(uri), np.uint8, "r")
                except ValueError as error:  # an empty file
                    raise DamagedDataError(f"{uri}: {error}") from error
                content = self._shards.put((dataset, shard), mapped)
            data = content[offset : offset + length]
            if not self._hashed[dataset][number]:
                if xxhash.xxh3_64_intdigest(data.data) != int(ds.index["checksum"][number]):
                    raise DamagedDataError(
                        f"{uri}: bin {number} is damaged (its checksum differs); see omniprep verify"
                    )
                self._hashed[dataset][number] = True
            try:
                return decode(data, ds.schema, ds.layout)
            except DamagedDataError as error:
                raise DamagedDataError(f"{uri}: bin {number}: {error}") from error
        kept = self._bins.get((dataset, number))
        return self._bins.put((dataset, number), ds.load(number, self._pixels)) if kept is None else kept


def _bytes(item: dict[str, Any]) -> int:
    arrays = sum(value.nbytes for value in item.values() if isinstance(value, np.ndarray))
    return int(arrays + sum(stored.nbytes for items in item.get("files", {}).values() for stored in items))


def _items(cut: dict[str, Any]) -> dict[str, list[NDArray[Any]]]:
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
