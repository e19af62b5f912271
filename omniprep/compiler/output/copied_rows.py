"""The rows of a repack: cut out of the bins of finished datasets, and told of in the new tables as in the old ones.

Local shards are mapped, and each bin is hashed before the first of its rows is taken, so that damage is not copied and
given a fresh checksum; remote ones are read bin by bin, the last gigabyte of them kept, so pull a large dataset first.
"""

import json
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from omniprep import io
from omniprep.compiler.pack import Rows
from omniprep.config import BuildConfig
from omniprep.data.collate import cut_row
from omniprep.data.dataset import PackedDataset
from omniprep.errors import DamagedDataError
from omniprep.rows.longline import parse_line
from omniprep.shards.content import item_sizes
from omniprep.shards.reader import decode
from omniprep.shards.schema import Bin

__all__ = ["Chosen", "CopiedRows", "RowReader"]

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


class CopiedRows:
    """What the tables and the manifest of a repack say of its rows: an `Origin` (omniprep/compiler/output/manifest.py).

    Args:
        datasets: The sources.
        chosen: Rows of them.
        rows: Facts of the chosen rows; those too long for the new bins have length 0 and a code.
        config: Of the repack.
        identity: What makes the repack this one.
        seconds: That its shards took, summed.
    """

    def __init__(
        self,
        datasets: Sequence[PackedDataset],
        chosen: Chosen,
        rows: Rows,
        config: BuildConfig,
        identity: dict[str, Any],
        seconds: float,
    ) -> None:
        """Nothing is read yet."""
        self._identity = identity
        self._datasets, self._chosen, self._rows = datasets, chosen, rows
        self._config, self._seconds = config, seconds

    def facts(self) -> dict[str, Any]:
        """As `Origin.facts`; what the first source says, where sources have to agree."""
        inputs = {entry["source"]: entry for ds in self._datasets for entry in ds.manifest["inputs"]}
        kept = set(self._chosen.table["source"].unique().to_pylist())
        return {
            **self._datasets[0].manifest,
            "omniprep": version("omniprep"),
            "inputs": [entry for source, entry in inputs.items() if source in kept],
            "seconds": {"repack": round(self._seconds, 1)},
            "needed_flags": list(dict.fromkeys(flag for ds in self._datasets for flag in ds.record.needed_flags)),
            "repacked_from": [
                {"uri": ds.uri, "plan_sha256": ds.manifest.get("plan_sha256"), "sha256": entry["sha256"]}
                for ds, entry in zip(self._datasets, self._identity["inputs"], strict=True)
            ],
            "chosen": {name: self._identity["config"][name] for name in ("source", "kind")},
        }

    def unread(self) -> Mapping[str, list[Any]]:
        """As `Origin.unread`: the inputs are not read again, and their builds told."""
        return {}

    def lines(self, at: slice) -> tuple[pa.Array, NDArray[np.int64]]:
        """As `Origin.lines`."""
        part = self._chosen.table.slice(at.start, at.stop - at.start)
        return part["source"].combine_chunks(), part["line"].to_numpy()

    def rejected(self, numbers: NDArray[np.int64], late: dict[int, dict[str, Any]]) -> Iterator[bytes]:
        """As `Origin.rejected`: lines of the sources as they were; rows that are too long now, without their content.

        Raises:
            DamagedDataError: rejected.jsonl of a source lacks a row that its rows.parquet calls rejected.
        """
        assert not late, "nothing is decoded, so nothing is rejected late"
        before = self._chosen.table["length"].is_valid().to_numpy()
        old = [_rejected_lines(dataset) for dataset in self._datasets]
        for number in numbers.tolist():
            place = self._chosen.table.slice(number, 1).select(["source", "line", "length"]).to_pylist()[0]
            if not before[number]:
                # Both are in the order of the input rows, so each file is read once, line by line.
                key = place["source"], place["line"]
                found = next((line for k, line in old[self._chosen.dataset[number]] if k == key), None)
                if found is None:
                    uri = self._datasets[self._chosen.dataset[number]].uri
                    raise DamagedDataError(
                        f"{uri}: rejected.jsonl lacks the row {key[0]}:{key[1]}; see omniprep verify"
                    )
                yield found
                continue
            fresh = {"source": place["source"], "line": place["line"], "code": self._rows.facts["code"][number]}
            message = f"{place['length']} tokens, the limit is {self._config.row_limit}"
            yield json.dumps({**fresh, "message": message, "row": None}, ensure_ascii=False).encode() + b"\n"


def _rejected_lines(dataset: PackedDataset) -> Iterator[tuple[tuple[str, int], bytes]]:
    """Source and line number of each line of rejected.jsonl, and the line."""
    uri = io.join(dataset.uri, "rejected.jsonl")
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

    def __init__(self, datasets: Sequence[PackedDataset]) -> None:
        """Open nothing yet."""
        self.datasets = datasets
        self._places = [
            {name: ds.rows[name].to_numpy(zero_copy_only=False) for name in ("bin", "start", "length")}
            for ds in datasets
        ]
        self._maps: OrderedDict[tuple[int, int], np.ndarray] = OrderedDict()
        self._bins: OrderedDict[tuple[int, int], dict[str, Any]] = OrderedDict()
        self._hashed = [np.zeros(len(ds), bool) for ds in datasets]
        self._size = 0

    def read(self, dataset: int, line: int) -> Bin:
        """One row, as `encode_planned` would give it; its arrays look into the old shard."""
        place = self._places[dataset]
        item = self._bin(dataset, int(place["bin"][line]))
        start, borders = int(place["start"][line]), item["cu_seqlens"]
        within = int(np.searchsorted(borders[:-1], start))
        if (
            within == len(item["row_ids"])
            or item["row_ids"][within] != line
            or (borders[within], borders[within + 1] - start) != (start, place["length"][line])
        ):
            raise DamagedDataError(
                f"{self.datasets[dataset].uri}: bin {int(place['bin'][line])} does not hold row {line} of rows.parquet "
                "where that says it is"
            )
        cut = cut_row(item, within)
        # Of a row without media the build keeps no positions: they are the plain range.
        positions = cut.get("position_ids") if cut["row_items"].any() else None
        names = ("input_ids", "labels", "cu_seqlens", "row_ids", "row_items")
        fixed = {name: cut[name] for name in names}
        return Bin(**fixed, loss_scale=cut.get("loss_scale"), position_ids=positions, media=_items(cut))

    def _bin(self, dataset: int, number: int) -> dict[str, Any]:
        ds = self.datasets[dataset]
        shard, offset, length = (int(ds.index[name][number]) for name in ("shard", "offset", "length"))
        uri = io.join(ds.uri, *ds.manifest["shards"][shard]["path"].split("/"))
        coded = any("codec" in column.params for column in ds.layout.columns)  # a bin is then decoded once, not by row
        if io.is_local(uri) and not coded:
            if (dataset, shard) not in self._maps:
                try:
                    self._maps[dataset, shard] = np.memmap(io.local_path(uri), np.uint8, "r")
                except ValueError as error:  # an empty file
                    raise DamagedDataError(f"{uri}: {error}") from error
                if len(self._maps) > MAPPED_SHARDS:
                    self._maps.popitem(last=False)
            data = self._maps[dataset, shard][offset : offset + length]
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
        if (dataset, number) not in self._bins:
            self._bins[dataset, number] = item = ds[number]
            self._size += _bytes(item)
            while self._size > KEPT_BYTES and len(self._bins) > 1:
                _, gone = self._bins.popitem(last=False)
                self._size -= _bytes(gone)
        self._bins.move_to_end((dataset, number))
        return self._bins[dataset, number]


def _bytes(item: dict[str, Any]) -> int:
    return sum(value.nbytes for value in item.values() if isinstance(value, np.ndarray))


def _items(cut: dict[str, Any]) -> dict[str, list[NDArray[Any]]]:
    media: dict[str, list[NDArray[Any]]] = {column.name: [] for column in cut["columns"]}
    for column in cut["columns"]:
        if column.name not in cut:
            continue
        if column.kind == "items":
            media[column.name] = list(cut[column.name])
            continue
        unit = column.unit if column.load == "mel" else 1
        media[column.name] = np.split(cut[column.name], np.cumsum(item_sizes(column, cut))[:-1] * unit)
    return media
