"""Iceberg tables by the pyiceberg package: a data file, with its deletes, is a split.

A table is found by its folder, or by a catalog that pyiceberg's own configuration names (iceberg://CATALOG/NS.TABLE).
"""

import os
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager
from functools import lru_cache
from typing import Any

from omniprep import io
from omniprep.errors import OmniprepError
from omniprep.rows.choosing import Chooser, rows_of_table
from omniprep.rows.formats import faults_named, library
from omniprep.rows.inputs import Input
from omniprep.rows.split import Split
from omniprep.rows.table_folders import CATALOG

_METADATA = re.compile(r"(?:v?(\d+)(?:-[\w-]+)?)\.metadata\.json")


def splits(entry: Input) -> Iterator[Split]:
    """As `Format.splits`; the snapshot is fixed here, so that workers read the same rows after later writes."""
    version = _snapshot(entry.uri, entry.version)
    base = entry.base or _folder(entry.uri)
    for number in range(len(_files(entry.uri, version))):
        yield Split(entry.source, "iceberg", number, number + 1, entry.uri, base, version=version)


def count_rows(split: Split) -> int:
    """As `Format.count_rows`."""
    with _faults(split.uri):
        return sum(batch.num_rows for batch in _batches(split))


def read_rows(split: Split, max_row_bytes: int, chooser: Chooser | None = None) -> Iterator[Any]:
    """As `Format.read_rows`."""
    with _faults(split.uri):
        schema = _table_with(split.uri, split.version).scan(snapshot_id=int(split.version)).projection().as_arrow()
        yield from rows_of_table(chooser, lambda columns: _batches(split, columns), schema, split.uri)


def fingerprint(split: Split) -> dict[str, Any]:
    """As `Format.fingerprint`."""
    return {"table": str(_table(split.uri).metadata.table_uuid), "version": split.version}


def _faults(uri: str) -> AbstractContextManager[None]:
    library("pyiceberg", "pyiceberg", uri)
    # pyiceberg's errors have no base class but Exception, and it asserts what a file says.
    return faults_named(uri, "an Iceberg table", LookupError, TypeError, NotImplementedError, AssertionError)


def _metadata_file(uri: str) -> str:
    """The newest metadata file of a table's folder: the one that version-hint.text names, else that of most commits."""
    folder = io.join(uri, "metadata")
    names = io.list_folder(folder)
    numbered = {name: int(match[1]) for name in names if (match := _METADATA.fullmatch(name))}
    if "version-hint.text" in names:
        hint = io.read_bytes(io.join(folder, "version-hint.text")).decode(errors="replace").strip()
        named = [name for name in names if name in (hint, f"v{hint}.metadata.json", f"{hint}.metadata.json")]
        numbered = dict.fromkeys(named, 0) or numbered
    if not numbered:
        raise OmniprepError(f"{folder}: has no file NUMBER.metadata.json")
    return io.join(folder, max(numbered, key=lambda name: (numbered[name], name)))


def _table(uri: str) -> Any:
    """The table as it is now; it may have been written to since the last call."""
    if uri.startswith(CATALOG):
        return _catalog_table(uri)
    with _faults(uri):
        return _table_of(_metadata_file(uri))


def _catalog_table(uri: str) -> Any:
    """A table as its catalog has it now."""
    name, _, table = uri.removeprefix(CATALOG).partition("/")
    catalogs = library("pyiceberg.catalog", "pyiceberg", uri)
    try:
        return catalogs.load_catalog(name).load_table(table)
    except Exception as error:  # of REST, SQL, Hive, Glue: each has the exceptions of its own client
        raise OmniprepError(
            f"{uri}: cannot be opened by pyiceberg's catalog {name!r}: {type(error).__name__}: "
            f"{' '.join(str(error).split()):.300}; catalogs are configured in .pyiceberg.yaml or by "
            f"PYICEBERG_CATALOG__{name.upper()}__URI"
        ) from error


@lru_cache(maxsize=8)
def _table_with(uri: str, version: str) -> Any:
    """The table with a snapshot that it had when it was listed; asked for once, since a catalog is a server."""
    return _table(uri)


def _folder(uri: str) -> str:
    """The folder of a table in a catalog."""
    location = str(_table(uri).location())
    return io.local_path(location) if io.is_local(location) else location


@lru_cache(maxsize=8)
def _table_of(metadata: str) -> Any:
    """The table of a metadata file.

    Not by StaticTable.from_metadata: it lets the table's own properties choose the Python class that opens files
    (py-io-impl, any module by name) and the endpoint that credentials are sent to (s3.endpoint, s3.signer).
    """
    opened = library("pyiceberg.io", "pyiceberg", metadata).load_file_io({}, location=metadata)
    parsed = library("pyiceberg.serializers", "pyiceberg", metadata).FromInputFile.table_metadata(
        opened.new_input(metadata)
    )
    return library("pyiceberg.table", "pyiceberg", metadata).StaticTable(
        identifier=("static-table", metadata),
        metadata_location=metadata,
        metadata=parsed,
        io=opened,
        catalog=library("pyiceberg.catalog.noop", "pyiceberg", metadata).NoopCatalog("static-table"),
    )


def _snapshot(uri: str, version: str) -> str:
    """Id of the snapshot: the current one, one by its id, or that of a branch or tag."""
    table = _table(uri)
    with _faults(uri):
        if not version:
            snapshot = table.current_snapshot()
        elif version.isdecimal():
            snapshot = table.snapshot_by_id(int(version))
        else:
            snapshot = table.snapshot_by_name(version)
    if snapshot is None:
        if not version:
            return ""  # a table that nothing was written to
        known = ", ".join(str(entry.snapshot_id) for entry in table.metadata.snapshots[-5:]) or "none"
        raise OmniprepError(f"{uri}@{version}: there is no such snapshot, branch or tag; the newest snapshots: {known}")
    return str(snapshot.snapshot_id)


@lru_cache(maxsize=8)
def _files(uri: str, version: str) -> list[Any]:
    """The tasks of a scan of a snapshot, one a data file, by path: the order of a scan is not fixed."""
    if not version:
        return []
    # The metadata of a stranger's table could name any file of this machine, or have any host asked: each list of files
    # is held against the folder before it is opened.
    inside = _plain(_folder(uri) if uri.startswith(CATALOG) else uri).rstrip("/") + "/"

    def check(path: Any) -> None:
        plain = _plain(str(path))
        if not plain.startswith(inside) or ".." in plain.split("/"):
            raise OmniprepError(f"{uri}: names the file {plain}, which lies outside the table's folder")

    with _faults(uri):
        table = _table_with(uri, version)
        snapshot = table.snapshot_by_id(int(version))
        check(snapshot.manifest_list)
        for manifest in snapshot.manifests(table.io):
            check(manifest.manifest_path)
        tasks = sorted(table.scan(snapshot_id=int(version)).plan_files(), key=lambda task: str(task.file.file_path))
    for task in tasks:
        for file in (task.file, *task.delete_files):
            check(file.file_path)
    return tasks


def _plain(path: str) -> str:
    """A path or URI as both the command line and metadata would spell it: absolute, and s3a:// of Spark as s3://."""
    if io.is_local(path):
        return os.path.abspath(io.local_path(path))
    return re.sub(r"^s3[an]://", "s3://", path)


def _batches(split: Split, columns: list[str] | None = None) -> Iterator[Any]:
    """Record batches of a data file without its deleted rows, with some columns or all."""
    arrow = library("pyiceberg.io.pyarrow", "pyiceberg", split.uri)
    table = _table_with(split.uri, split.version)
    scan = table.scan(snapshot_id=int(split.version), selected_fields=tuple(columns) if columns else ("*",))
    reader = arrow.ArrowScan(table.metadata, scan.io, scan.projection(), scan.row_filter)
    task = _files(split.uri, split.version)[split.start]
    yield from reader.to_record_batches([task])
