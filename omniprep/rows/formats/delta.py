"""Delta tables by the deltalake package: a data file is a split. Rows that the table deleted are not read."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import lru_cache, partial
from itertools import repeat
from typing import Any

from pyarrow.dataset import get_partition_keys

from omniprep.errors import OmniprepError
from omniprep.rows.choosing import SKIPPED, Chooser, parquet_bounds, rows_of_table
from omniprep.rows.formats import faults_named, few_rows, library
from omniprep.rows.inputs import Input
from omniprep.rows.split import Split
from omniprep.rows.where import Bounds, Path


def splits(entry: Input) -> Iterator[Split]:
    """As `Format.splits`; the version is fixed here, so that workers read the same rows after later writes."""
    table = _open(entry.uri, entry.version)
    version = str(table.version())
    for number in range(len(_fragments(entry.uri, version))):
        yield Split(entry.source, "delta", number, number + 1, entry.uri, entry.base, version=version)


def count_rows(split: Split) -> int:
    """As `Format.count_rows`."""
    with _faults(split.uri):
        return int(_fragments(split.uri, split.version)[split.start].count_rows())


def read_rows(split: Split, max_row_bytes: int, chooser: Chooser | None = None) -> Iterator[Any]:
    """As `Format.read_rows`."""
    with _faults(split.uri):
        schema, fragment = _dataset(split.uri, split.version).schema, _fragments(split.uri, split.version)[split.start]
        groups = fragment.metadata
        rows = few_rows(sum(groups.row_group(n).total_byte_size for n in range(groups.num_row_groups)), groups.num_rows)
        for part in fragment.split_by_row_group() if chooser is not None else [fragment]:
            group = part.row_groups[0].id
            if chooser is not None and not chooser.where.may_hold(_bounds(fragment, group)):
                chooser.see_schema(schema, split.uri)
                yield from repeat(SKIPPED, groups.row_group(group).num_rows)
            else:
                yield from rows_of_table(chooser, partial(_batches, part, schema, rows), schema, split.uri)


def _batches(part: Any, schema: Any, rows: int, columns: list[str] | None) -> Iterator[Any]:
    yield from part.to_batches(
        schema=schema, columns=columns, batch_size=rows, batch_readahead=1, fragment_readahead=1, use_threads=False
    )


def _bounds(fragment: Any, group: int) -> Callable[[Path], Bounds | None]:
    """What is known of a column in a row group: by the folder's name where the table is partitioned by it, else by the
    file's statistics.
    """
    stored = parquet_bounds(fragment.metadata, group)
    partition = get_partition_keys(fragment.partition_expression)

    def bounds(path: Path) -> Bounds | None:
        if len(path) != 1 or path[0] not in partition:
            return stored(path)
        value = partition[path[0]]
        return Bounds(value, value, has_nulls=False, only_nulls=value is None)

    return bounds


def fingerprint(split: Split) -> dict[str, Any]:
    """As `Format.fingerprint`."""
    return {"table": str(_open(split.uri, split.version).metadata().id), "version": split.version}


def _faults(uri: str) -> AbstractContextManager[None]:
    return faults_named(uri, "a Delta table", library("deltalake.exceptions", "deltalake", uri).DeltaError)


def _open(uri: str, version: str) -> Any:
    """The table at a version, or (empty) as it is now."""
    if version and not version.isdecimal():
        raise OmniprepError(f"{uri}@{version}: the version of a Delta table is a number")
    with _faults(uri):
        table = library("deltalake", "deltalake", uri).DeltaTable(uri)
    current = int(table.version())
    if version and int(version) > current:
        raise OmniprepError(f"{uri}@{version}: there is no such version, the current one is {current}")
    with _faults(uri):
        if version and int(version) != current:
            table.load_as_version(int(version))
    return table


@lru_cache(maxsize=8)
def _dataset(uri: str, version: str) -> Any:
    # Raises for features that a reader must know (deletion vectors, column mapping) and this one does not.
    with _faults(uri):
        return _open(uri, version).to_pyarrow_dataset()


@lru_cache(maxsize=8)
def _fragments(uri: str, version: str) -> list[Any]:
    """The data files of a version, by path: the log's own order is not fixed."""
    with _faults(uri):
        return sorted(_dataset(uri, version).get_fragments(), key=lambda fragment: str(fragment.path))
