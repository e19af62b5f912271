"""Lance datasets by the pylance package: a fragment is a split. Rows that the dataset deleted are not read.

A dataset may name files outside its folder: fragments by a base path (shallow clones, datasets over several stores),
blobs by a URI. pylance would open both, so that a dataset of a stranger could bring in any file of this machine, or
have any host asked. Both are refused.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from functools import lru_cache
from typing import Any

import pyarrow as pa

from omniprep.errors import OmniprepError
from omniprep.rows.choosing import Chooser, rows_of_table
from omniprep.rows.formats import faults_named, few_rows, library
from omniprep.rows.inputs import Input
from omniprep.rows.split import Split


def splits(entry: Input) -> Iterator[Split]:
    """As `Format.splits`; the version is fixed here, so that workers read the same rows after later writes."""
    version = str(_open(entry.uri, entry.version).version)
    for number in range(len(_fragments(entry.uri, version))):
        yield Split(entry.source, "lance", number, number + 1, entry.uri, entry.base, version=version)


def count_rows(split: Split) -> int:
    """As `Format.count_rows`."""
    with _faults(split.uri):
        return int(_fragments(split.uri, split.version)[split.start].count_rows())


def read_rows(split: Split, max_row_bytes: int, chooser: Chooser | None = None) -> Iterator[Any]:
    """As `Format.read_rows`."""
    with _faults(split.uri):
        fragment = _fragments(split.uri, split.version)[split.start]
        # Lance does not say how many bytes a fragment has once it is decoded; its files are a lower bound.
        stored = sum(file.file_size_bytes or 0 for file in fragment.data_files())
        rows = few_rows(stored, max(fragment.count_rows(), 1))
        _refuse_outside_blobs(split.uri, fragment, rows)

        # Blob columns hold media; by default a scan gives where they lie in place of their bytes.
        def batches(columns: list[str] | None) -> Iterator[Any]:
            scanner = fragment.scanner(columns=columns, batch_size=rows, blob_handling="all_binary")
            yield from scanner.to_batches()

        yield from rows_of_table(chooser, batches, fragment.schema, split.uri)


def fingerprint(split: Split) -> dict[str, Any]:
    """As `Format.fingerprint`: the version, and when it was written, since a dataset may be written anew."""
    dataset = _open(split.uri, split.version)
    times = {entry["version"]: str(entry["timestamp"]) for entry in dataset.versions()}
    return {"version": split.version, "written": times.get(int(split.version), "")}


def _faults(uri: str) -> AbstractContextManager[None]:
    library("lance", "pylance", uri)
    return faults_named(uri, "a Lance dataset", RuntimeError)


def _open(uri: str, version: str) -> Any:
    """The dataset at a version (a number or a tag), or (empty) as it is now."""
    with _faults(uri):
        dataset = library("lance", "pylance", uri).dataset(uri)
        current = int(dataset.version)
        if not version.isdecimal():
            return dataset.checkout_version(version) if version else dataset
        if any(entry["version"] == int(version) for entry in dataset.versions()):
            return dataset.checkout_version(int(version))
    raise OmniprepError(
        f"{uri}@{version}: there is no such version (it may be cleaned up), the current one is {current}"
    )


@lru_cache(maxsize=8)
def _fragments(uri: str, version: str) -> list[Any]:
    with _faults(uri):
        fragments = sorted(_open(uri, version).get_fragments(), key=lambda fragment: int(fragment.fragment_id))
        if any(_names_base(fragment.metadata.to_json()) for fragment in fragments):
            raise OmniprepError(
                f"{uri}: names files that lie outside the dataset's folder (a base path, as of a shallow clone or a "
                "dataset over several stores); write the dataset as a whole (lance.write_dataset), and give that"
            )
    return fragments


def _names_base(metadata: Any) -> bool:
    """Whether a file of a fragment (data, deletions, overlays) lies below a base path, not in the dataset's folder."""
    if isinstance(metadata, dict):
        return metadata.get("base_id") is not None or any(map(_names_base, metadata.values()))
    return isinstance(metadata, list) and any(map(_names_base, metadata))


def _refuse_outside_blobs(uri: str, fragment: Any, rows: int) -> None:
    """Raise an OmniprepError where a blob of a fragment is a URI in place of bytes."""
    schema = fragment.schema
    described = fragment.scanner(blob_handling="blobs_descriptions").projected_schema
    # Blobs alone have another type as descriptions: where their bytes lie.
    blobs = [name for name in schema.names if described.field(name).type != schema.field(name).type]
    if not blobs:
        return
    for batch in fragment.scanner(columns=blobs, batch_size=rows, blob_handling="blobs_descriptions").to_batches():
        for column in batch.columns:
            for named in _blob_uris(column):
                raise OmniprepError(
                    f"{uri}: a blob is the file {named}, which lies outside the dataset's files; write the dataset "
                    "with the bytes (external_blob_mode='ingest'), or name the file in a column of text"
                )


def _blob_uris(column: Any) -> Iterator[str]:
    """The URIs in a column of descriptions of blobs, which may stand in structs and lists."""
    if pa.types.is_struct(column.type):
        for number in range(column.type.num_fields):
            field = column.type.field(number)
            if field.name == "blob_uri" and pa.types.is_string(field.type):
                yield from filter(None, column.field(number).to_pylist())
            else:
                yield from _blob_uris(column.field(number))
    elif hasattr(column, "flatten") and pa.types.is_nested(column.type):
        yield from _blob_uris(column.flatten())
