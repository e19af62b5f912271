"""A split: the part of an input that one task plans."""

from collections import Counter
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Split:
    """A part of an input: bytes [start, end) of JSON lines, rows [start, end) of a dataset, row group `start` of
    Parquet, data file `start` of a table. A compressed file, one in another encoding than UTF-8, one of JSON values or
    of delimited text, and a tar are a single split.
    """

    source: str
    """The input's name as the user gave it."""
    kind: Literal["lines", "values", "parquet", "hf", "delimited", "tar", "delta", "iceberg", "lance"]
    start: int
    end: int
    uri: str
    """The file, folder or dataset to read."""
    base: str
    """The folder that media paths are relative to."""
    codec: str = ""
    """Compression: "gz", "zst" or nothing."""
    encoding: str = ""
    """Encoding of text; empty for UTF-8."""
    name: str = ""
    """Name of the split of a Hugging Face dataset."""
    chosen: tuple[int, ...] | None = None
    """Rows that INPUT#N drew, counted from 0 without blank lines, of those that `where` chooses; None for all."""
    where: str = ""
    """The expression of --where; empty for all rows."""
    version: str = ""
    """Version of a table: the number of Delta and Lance, the snapshot of Iceberg."""

    @property
    def in_ranges(self) -> bool:
        """Whether this is a byte range of a file, whose lines can be counted without parsing them."""
        return self.kind == "lines" and not self.codec and not self.encoding


def lines_before(splits: list[Split], lines: list[int]) -> NDArray[np.int64]:
    """How many lines of its source stand before each split; `lines` are the lines of each."""
    before, totals = np.zeros(len(splits), np.int64), Counter[str]()
    for number, split in enumerate(splits):
        before[number] = totals[split.source]
        totals[split.source] += lines[number]
    return before
