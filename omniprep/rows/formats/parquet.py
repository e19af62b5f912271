"""Parquet files: a row group is a split."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import repeat
from typing import Any

from omniprep import io
from omniprep.errors import OmniprepError
from omniprep.rows.choosing import SKIPPED, Chooser, parquet_bounds, rows_of_table
from omniprep.rows.formats import few_rows, rows_of_dictionaries
from omniprep.rows.inputs import Input
from omniprep.rows.opening import open_file, refuse_other_format
from omniprep.rows.split import Split

MANY_ROWS = 8192
"""Rows of the columns that --where names, read at a time: a few MB of numbers and short texts."""


def splits(entry: Input) -> Iterator[Split]:
    """As `Format.splits`."""
    uri = entry.uri or entry.source
    for group in range(len(_row_groups(uri))):
        yield Split(entry.source, "parquet", group, group + 1, uri, entry.base)


def count_rows(split: Split) -> int:
    """As `Format.count_rows`."""
    return _row_groups(split.uri)[split.start]


def read_rows(split: Split, max_row_bytes: int, chooser: Chooser | None = None) -> Iterator[Any]:
    """As `Format.read_rows`."""
    with _open_parquet(split.uri) as table:
        yield from read_group(table, split.start, chooser, split.uri)


def read_group(table: Any, number: int, chooser: Chooser | None, uri: str) -> Iterator[Any]:
    """The rows of a row group of a `ParquetFile`; its statistics may tell that none is chosen."""
    group = table.metadata.row_group(number)
    if chooser is not None and not chooser.where.may_hold(parquet_bounds(table.metadata, number)):
        chooser.see_schema(table.schema_arrow, uri)
        yield from repeat(SKIPPED, group.num_rows)
        return

    def batches(columns: list[str] | None) -> Iterator[Any]:
        rows = few_rows(group.total_byte_size, group.num_rows) if columns is None else MANY_ROWS
        rows = rows_of_dictionaries(group, columns, rows)
        yield from table.iter_batches(rows, row_groups=[number], columns=columns, use_threads=False)

    yield from rows_of_table(chooser, batches, table.schema_arrow, uri)


def fingerprint(split: Split) -> dict[str, Any]:
    """As `Format.fingerprint`."""
    return io.fingerprint(split.uri)


@contextmanager
def _open_parquet(uri: str) -> Iterator[Any]:
    """A `pyarrow.parquet.ParquetFile`; what is wrong with the file, also later in the block, is an OmniprepError."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with open_file(uri) as file:
        try:
            yield pq.ParquetFile(file, buffer_size=1 << 20, pre_buffer=False)
        except OmniprepError:  # a ValueError too: what a store's file says of itself
            raise
        except (pa.ArrowException, OSError, ValueError) as error:
            if "magic bytes" in str(error) or "file size is" in str(error):
                refuse_other_format(uri)
            raise OmniprepError(f"{uri}: damaged parquet file: {error}") from error


def _row_groups(uri: str) -> list[int]:
    """Number of rows of each row group."""
    with _open_parquet(uri) as table:
        return [table.metadata.row_group(number).num_rows for number in range(table.metadata.num_row_groups)]
