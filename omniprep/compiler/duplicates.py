"""--dedup exact: which rows repeat one before them, in the order of the inputs.

A sort of 16-byte hashes, in the driver: 30 bytes a row beside them while it works, and 4 s for 10,000,000 rows.
Of equal rows the first is kept, whatever task planned it, so workers do not matter; rows that the dataset has already
(of an append) come before all others.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from omniprep.compiler.pack import Rows
from omniprep.errors import OmniprepError, RejectCode

if TYPE_CHECKING:
    from omniprep.shards.dataset import StoredDataset  # imports torch, which a plan does not need

HASH_COLUMNS = ("content_hash_high", "content_hash_low")
"""Columns of plans and rows.parquet: the two halves of a row's hash, as integers; zero where it has none."""

_MESSAGE = "the same tokens and media as ", ", which is kept"


def duplicate_message(kept: str) -> str:
    """What rejected.jsonl says of a row that repeats the row SOURCE:LINE."""
    return kept.join(_MESSAGE)


def row_repeated(message: str) -> str:
    """SOURCE:LINE of the row that a message of `duplicate_message` names."""
    return message.removeprefix(_MESSAGE[0]).removesuffix(_MESSAGE[1])


@dataclass(frozen=True, slots=True)
class BuiltRows:
    """The rows that a dataset has already, of which new ones may be duplicates."""

    sources: pa.ChunkedArray
    lines: NDArray[np.int64]
    hashes: NDArray[np.uint64]
    """(rows, 2)."""

    @classmethod
    def none(cls) -> "BuiltRows":
        """Of a build that begins."""
        return cls(pa.chunked_array([], pa.string()), np.zeros(0, np.int64), np.zeros((0, 2), np.uint64))

    @classmethod
    def of(cls, dataset: "StoredDataset") -> "BuiltRows":
        """The packed rows of a dataset; OmniprepError where it has no hashes of them."""
        table = dataset.rows
        if missing := set(HASH_COLUMNS) - set(table.column_names):
            raise OmniprepError(
                f"{dataset.uri}: rows.parquet has no column {min(missing)!r}, so duplicates of its rows cannot be "
                "found; build it again with --dedup exact"
            )
        table = table.filter(table["bin"].is_valid())
        hashes = np.stack([table[name].to_numpy().astype(np.uint64) for name in HASH_COLUMNS], axis=1)
        return cls(table["source"], table["line"].to_numpy(), hashes)

    def name(self, number: int) -> str:
        """SOURCE:LINE of a row."""
        return f"{self.sources[number].as_py()}:{self.lines[number]}"


@dataclass(frozen=True, slots=True)
class Duplicates:
    """Which rows of a plan repeat others."""

    kept: NDArray[np.int64]
    """Of each row the number of the one that it repeats, -1 for none; rows of `built` come first, then the plan's."""
    built: BuiltRows

    def __len__(self) -> int:
        """Number of duplicates."""
        return int((self.kept >= 0).sum())


def find_duplicates(rows: Rows, built: BuiltRows) -> Duplicates:
    """Find the rows that repeat others, and take them out of the rows to pack (code `duplicate`)."""
    planned = np.flatnonzero(rows.packed)
    hashes = [
        np.concatenate([built.hashes[:, half], rows.facts[name][planned]]) for half, name in enumerate(HASH_COLUMNS)
    ]
    first = first_of_equal(hashes)
    of_plan = first[len(built.hashes) :]
    repeats = of_plan != np.arange(len(built.hashes), len(first))
    kept = np.full(len(rows), -1, np.int64)
    numbers = np.concatenate([np.arange(len(built.hashes)), len(built.hashes) + planned])
    kept[planned[repeats]] = numbers[of_plan[repeats]]
    take_out(rows, planned[repeats], RejectCode.DUPLICATE)
    return Duplicates(kept, built)


def take_out(rows: Rows, numbers: NDArray[np.int64], code: RejectCode) -> None:
    """Make some rows of a plan rejected ones, which are not packed."""
    for name, values in rows.facts.items():
        if name not in ("line", "code"):
            values[numbers] = np.zeros(1, values.dtype)[0]
    rows.facts["code"][numbers] = str(code)


def first_of_equal(keys: Sequence[NDArray[np.uint64]]) -> NDArray[np.int64]:
    """For each entry the index of the first one with the same keys."""
    if not len(keys[0]):
        return np.zeros(0, np.int64)
    order = np.lexsort(keys[::-1])  # a stable sort: of equal ones the first comes first
    begins = np.zeros(len(order), bool)
    begins[0] = True
    for key in keys:
        sorted_key = key[order]
        begins[1:] |= sorted_key[1:] != sorted_key[:-1]
    first = np.empty(len(order), np.int64)
    first[order] = order[np.flatnonzero(begins)[np.cumsum(begins) - 1]]
    return first
