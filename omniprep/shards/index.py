"""The two tables beside the shards: index.parquet says where a bin's bytes are, rows.parquet where an input row went.

The index is one small file that a trainer reads at its start instead of 10,000 footers: line i is bin i of the
dataset, and (shard, offset, length) is all that one read needs. Both tables are a pure function of their content.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from omniprep import io
from omniprep.errors import OmniprepError

__all__ = [
    "INDEX_SCHEMA",
    "ROWS_SCHEMA",
    "BatchEntry",
    "IndexEntry",
    "read_index",
    "read_rows",
    "write_index",
    "write_rows",
]

INDEX_SCHEMA = pa.schema(
    [
        ("shard", pa.int32()),
        ("offset", pa.int64()),
        ("length", pa.int64()),
        ("tokens", pa.int64()),
        ("rows", pa.int64()),
        ("patches", pa.int64()),
        ("audio_frames", pa.int64()),
        ("cost", pa.float64()),
        ("checksum", pa.uint64()),
    ]
)
"""index.parquet, a line a bin. offset, length: the record batch in its shard, in bytes; checksum: xxh3_64 of those
bytes."""

ROWS_SCHEMA = pa.schema(
    [
        ("source", pa.string()),
        ("line", pa.int64()),
        ("status", pa.string()),
        ("code", pa.string()),
        ("bin", pa.int64()),
        ("start", pa.int64()),
        ("length", pa.int64()),
    ]
)
"""rows.parquet, a line an input row; further columns may follow. A packed row is tokens [start, start+length) of its
bin."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchEntry:
    """Where the writer put a bin."""

    offset: int
    length: int
    checksum: int


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexEntry:
    """A line of index.parquet."""

    shard: int
    offset: int
    length: int
    tokens: int
    rows: int
    patches: int
    audio_frames: int
    cost: float
    checksum: int


def write_index(uri: str, entries: Iterable[IndexEntry]) -> None:
    """Write index.parquet, one line for each bin, in the order of the bins."""
    columns: dict[str, list[int | float]] = {name: [] for name in INDEX_SCHEMA.names}
    for entry in entries:
        for name, values in columns.items():
            values.append(getattr(entry, name))
    _write(uri, pa.table(columns, schema=INDEX_SCHEMA))


def read_index(uri: str) -> dict[str, np.ndarray]:
    """Read index.parquet as one array a column.

    Raises:
        OmniprepError: A column is absent.
    """
    table = _read(uri, INDEX_SCHEMA)
    return {name: table[name].to_numpy() for name in INDEX_SCHEMA.names}


def write_rows(uri: str, tables: Iterable[pa.Table]) -> None:
    """Write rows.parquet, part after part; the columns of ROWS_SCHEMA come first, others after them in their order."""
    with io.atomic_writer(uri) as file:
        writer = None
        for table in tables:
            names = [*ROWS_SCHEMA.names, *(n for n in table.column_names if n not in ROWS_SCHEMA.names)]
            table = table.select(names)
            fields = [ROWS_SCHEMA.field(n) if n in ROWS_SCHEMA.names else table.schema.field(n) for n in names]
            table = table.cast(pa.schema(fields))
            if writer is None:
                writer = pq.ParquetWriter(file, table.schema, compression="zstd", store_schema=False)
            writer.write_table(table)
        if writer is not None:
            writer.close()


def read_rows(uri: str) -> pa.Table:
    """Read rows.parquet; `source`, `status` and `code` come dictionary-encoded, since they repeat."""
    return _read(uri, ROWS_SCHEMA, dictionary=["source", "status", "code"])


def _write(uri: str, table: pa.Table) -> None:
    with io.atomic_writer(uri) as file:
        pq.write_table(table, file, compression="zstd", store_schema=False)


def _read(uri: str, schema: pa.Schema, dictionary: list[str] | None = None) -> pa.Table:
    with io.open_input(uri) as file:
        table = pq.read_table(file, read_dictionary=dictionary)
    if missing := [name for name in schema.names if name not in table.column_names]:
        raise OmniprepError(f"{uri}: column {missing[0]!r} is absent, so this is not a table of an omniprep dataset")
    return table
