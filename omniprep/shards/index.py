"""The tables beside the shards: index.parquet (the byte range of each bin) and rows.parquet (the bin of each row).

A trainer reads the index at its start instead of 10,000 footers: line i is bin i of the dataset, and (shard, offset,
length) is all that one read needs. Both files are a pure function of their content.
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from omniprep import io
from omniprep.errors import DamagedDataError, OmniprepError

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
        ("before", pa.int64()),
    ]
)
"""index.parquet, a line a bin; offset, length (bytes) and checksum (xxh3_64) are of its record batch. before: bytes in
front of it that a reader of the bin needs too (files of earlier bins); absent in older datasets, which have none."""

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
"""rows.parquet, a line an input row; a packed one is tokens [start, start+length) of its bin. More may follow."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchEntry:
    """Byte range and checksum of a bin in its shard."""

    offset: int
    length: int
    checksum: int
    before: int = 0
    """Bytes in front of `offset` that belong to the bin too."""


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
    before: int = 0


def write_index(uri: str, entries: Iterable[IndexEntry]) -> None:
    """Write index.parquet: a line for each bin, in the order of the bins."""
    write_index_table(uri, index_table(entries))


def index_table(entries: Iterable[IndexEntry]) -> pa.Table:
    """Lines of index.parquet as a table of `INDEX_SCHEMA`."""
    columns: dict[str, list[int | float]] = {name: [] for name in INDEX_SCHEMA.names}
    for entry in entries:
        for name, values in columns.items():
            values.append(getattr(entry, name))
    return pa.table(columns, schema=INDEX_SCHEMA)


def write_index_table(uri: str, table: pa.Table) -> None:
    """Write index.parquet from a table of `INDEX_SCHEMA`."""
    with io.atomic_writer(uri) as file:
        pq.write_table(table, file, compression="zstd", store_schema=False)


def read_index(uri: str) -> dict[str, np.ndarray]:
    """Read index.parquet as one array a column."""
    # Each line has a checksum of 8 bytes, which do not compress.
    table = read_parquet_table(uri, INDEX_SCHEMA, nulls=(), most_rows_a_byte=1, optional=("before",))
    index = {name: table[name].to_numpy() for name in INDEX_SCHEMA.names if name in table.column_names}
    return {"before": np.zeros(len(table), np.int64), **index}


def write_rows(uri: str, tables: Iterable[pa.Table]) -> None:
    """Write rows.parquet from tables in order; the columns of ROWS_SCHEMA come first, further ones in their order."""
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
    # The line numbers alone take 1.3 bytes a row, as Parquet and zstd store them.
    return read_parquet_table(uri, ROWS_SCHEMA, nulls=("code", "bin", "start", "length"), most_rows_a_byte=4)


_FEW_ROWS = 1 << 20
"""A table of at most so many rows is read whatever the size of its file: 75 MB of an index."""


def read_parquet_table(
    uri: str, schema: pa.Schema, nulls: Sequence[str], most_rows_a_byte: int, optional: Sequence[str] = ()
) -> pa.Table:
    """Read a table of a dataset that may be hostile, with the columns of `schema` in exactly these types.

    On one thread and without read-ahead: Arrow's threaded Parquet reader sometimes aborted the process when it still
    held a buffer at interpreter exit (with torch loaded). These tables are read in well under a second either way.

    Args:
        uri: The file.
        schema: Columns that must be present. Further ones are kept, except nested ones. Text columns come
            dictionary-encoded: a text that is repeated a million times is held once.
        nulls: Columns of `schema` that may have nulls.
        most_rows_a_byte: Most rows for each byte of the file; more are refused before anything is decoded.
        optional: Columns of `schema` that may be absent.

    Raises:
        DamagedDataError: The file is absent, no Parquet, or not of this form.
        OmniprepError: A column is absent.
    """
    try:
        with io.open_input(uri) as source:
            file = pq.ParquetFile(source, pre_buffer=False)
            stored = file.schema_arrow
            if missing := [name for name in schema.names if name not in (*stored.names, *optional)]:
                raise OmniprepError(
                    f"{uri}: column {missing[0]!r} is absent, so this is not a table of an omniprep dataset"
                )
            schema = pa.schema([field for field in schema if field.name in stored.names])
            nested = {field.name: field.type for field in stored if field.type.num_fields}
            if wrong := [name for name in schema.names if name in nested]:
                raise DamagedDataError(f"{uri}: column {wrong[0]!r} is of {nested[wrong[0]]}")
            size = source.seek(0, os.SEEK_END)
            if file.metadata.num_rows > max(_FEW_ROWS, most_rows_a_byte * size):
                raise DamagedDataError(f"{uri}: {file.metadata.num_rows:,} rows cannot be in {size:,} bytes")
            texts = [field.name for field in stored if _is_text(field.type)]
            flat = [name for name in stored.names if name not in nested]
            source.seek(0)
            file = pq.ParquetFile(source, read_dictionary=texts, pre_buffer=False)
            table = file.read(columns=flat, use_threads=False).unify_dictionaries()  # a row group has its own
            return _checked(table, schema, nulls, uri)
    except FileNotFoundError as error:
        raise DamagedDataError(f"{uri}: the file is absent") from error
    except (pa.ArrowException, OSError, MemoryError, OverflowError, UnicodeDecodeError) as error:
        raise DamagedDataError(f"{uri}: cannot be read: {' '.join(str(error).split()):.300}") from error


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_binary(kind))


def _may_cast(stored: pa.DataType, wanted: pa.DataType) -> bool:
    """Whether a column may be cast to another type; the cast itself fails for a value that does not fit."""
    if pa.types.is_string(wanted):
        kind = stored.value_type if pa.types.is_dictionary(stored) else stored
        return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))
    if pa.types.is_floating(wanted):
        return bool(pa.types.is_floating(stored) or pa.types.is_integer(stored))
    return bool(pa.types.is_integer(stored))


def _checked(table: pa.Table, schema: pa.Schema, nulls: Sequence[str], uri: str) -> pa.Table:
    names = table.column_names
    if len(set(names)) != len(names):
        raise DamagedDataError(f"{uri}: two columns have the same name")
    for field in schema:
        column, wanted = table[field.name], field.type
        if pa.types.is_string(wanted):
            wanted = pa.dictionary(pa.int32(), wanted)
        if column.type != wanted:
            if not _may_cast(column.type, field.type):
                raise DamagedDataError(f"{uri}: column {field.name!r} is of {column.type}, not of {field.type}")
            table = table.set_column(names.index(field.name), field.name, column.cast(wanted))
        if column.null_count and field.name not in nulls:
            raise DamagedDataError(f"{uri}: column {field.name!r} has no value in {column.null_count:,} lines")
    table.validate(full=True)  # or text that is not UTF-8 would fail later, wherever it is read
    return table
