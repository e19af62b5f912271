"""Lance datasets by the pylance package: a fragment is a split. Rows that the dataset deleted are not read."""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from functools import lru_cache
from typing import Any

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
    library("lance", "lance", uri)
    return faults_named(uri, "a Lance dataset", RuntimeError)


def _open(uri: str, version: str) -> Any:
    """The dataset at a version (a number or a tag), or (empty) as it is now."""
    with _faults(uri):
        dataset = library("lance", "lance", uri).dataset(uri)
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
        return sorted(_open(uri, version).get_fragments(), key=lambda fragment: int(fragment.fragment_id))
