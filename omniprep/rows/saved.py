"""Saved Hugging Face datasets (`save_to_disk`) and those on the Hub, as rows with their media undecoded.

A saved dataset comes from other people: its `state.json` names the files to read, which must lie in its own folder.
Rows are taken as Arrow holds them, so an Image, Audio or Video column gives {bytes, path} whatever lists it stands in,
and nothing needs a decoder (torchcodec) to be read.
"""

import hashlib
import json
import os
import re
from collections.abc import Collection, Iterator
from typing import Any

import pyarrow as pa

from omniprep import io
from omniprep.errors import OmniprepError, Reject, RejectCode, did_you_mean

__all__ = ["HUB", "choose_split", "count_rows", "fingerprint", "is_repository", "is_saved", "read_rows", "table_rows"]

HUB = "hf://datasets/"
_REPOSITORY = re.compile(re.escape(HUB) + r"(?:[\w.-]+/)?[\w.-]+/?")
_STATE, _INFO, _DICT = "state.json", "dataset_info.json", "dataset_dict.json"
_BATCH_ROWS, _BATCH_BYTES = 64, 8 << 20


def is_repository(uri: str) -> bool:
    """Whether it names a dataset on the Hub, which `datasets` loads; what goes on behind such a name is a file or
    folder in the repository, read like one of any other store.
    """
    return _REPOSITORY.fullmatch(uri) is not None


def is_saved(names: Collection[str]) -> bool:
    """Whether a folder with these names in it is a saved Dataset or DatasetDict."""
    return _DICT in names or (_STATE in names and _INFO in names)


def choose_split(folder: str, asked: str, default: str = "") -> tuple[str, str, list[str]]:
    """The split to read: that which was asked for, else the default, else `train` (which the reference reads).

    Args:
        folder: A saved Dataset or DatasetDict.
        asked: Name of a split of this dataset, or nothing.
        default: Name of a split for datasets that have splits, or nothing.

    Returns:
        Its folder, its name (empty for a Dataset, which is no split of anything), and the other splits.

    Raises:
        OmniprepError: There is no such split, or none that can be taken without asking.
    """
    if _DICT not in io.list_folder(folder):
        own = _read_json(io.join(folder, _STATE)).get("_split")
        if asked and own != asked:
            raise OmniprepError(f"{folder}: a saved dataset without splits, so there is no split {asked!r} in it")
        return folder, asked, []
    names = _read_json(io.join(folder, _DICT)).get("splits")
    if not isinstance(names, list) or not all(isinstance(name, str) and _is_plain(name) for name in names):
        raise OmniprepError(f"{io.join(folder, _DICT)}: must name splits, which are folders beside it")
    chosen = asked or default or "train"
    if chosen not in names:
        raise OmniprepError(
            f"{folder}: no split {chosen!r}{did_you_mean(chosen, names)}; it has {', '.join(names) or 'none'}: choose "
            f"one with {folder}:NAME or --split NAME"
        )
    return io.join(folder, chosen), chosen, [name for name in names if name != chosen]


def _is_plain(name: str) -> bool:
    """Whether a name of a file or folder leads nowhere else."""
    return name not in ("", ".", "..") and not any(mark in name for mark in ("/", "\\", "\0", ":"))


def _read_json(uri: str) -> dict[str, Any]:
    try:
        value = json.loads(io.read_bytes(uri).decode())
    except (OSError, ValueError, RecursionError) as error:
        raise OmniprepError(f"{uri}: cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise OmniprepError(f"{uri}: must be a JSON object")
    return value


def _check_files(folder: str) -> None:
    """Refuse a saved dataset whose state names files outside its folder; `datasets` itself would open them.

    Raises:
        OmniprepError: It does.
    """
    uri = io.join(folder, _STATE)
    state = _read_json(uri)
    listed = [entry for key in ("_data_files", "_indices_data_files") for entry in _as_list(state.get(key), uri)]
    for entry in listed:
        name = entry.get("filename") if isinstance(entry, dict) else None
        if not isinstance(name, str) or not _is_plain(name):
            raise OmniprepError(f"{uri}: names {name!r} as a file of the dataset, which must lie in the folder itself")
        if io.is_local(folder):
            real, root = (os.path.realpath(path) for path in (io.join(folder, name), io.local_path(folder)))
            if os.path.dirname(real) != root:
                raise OmniprepError(f"{uri}: {name} leads to {real}, outside the dataset's folder")


def _as_list(value: Any, uri: str) -> list[Any]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise OmniprepError(f"{uri}: _data_files must be a list")
    return value


def _load(uri: str, split: str) -> Any:
    """The dataset, its rows as Arrow holds them.

    Raises:
        OmniprepError: It cannot be read.
    """
    import datasets

    repository = uri.removeprefix(HUB).rstrip("/") if is_repository(uri) else None
    if repository is None:
        _check_files(uri)
    elif os.path.exists(repository):  # `datasets` takes a local folder of that name for the dataset
        raise OmniprepError(
            f"{uri}: there is a folder {repository} here, which `datasets` would read in its place; run this "
            f"in another folder, or give ./{repository} if that is meant"
        )
    try:
        if repository is not None:  # of a split that does not exist the error names those that do
            dataset = datasets.load_dataset(repository, split=split)
        else:
            dataset = datasets.load_from_disk(io.local_path(uri))
    except Exception as error:  # what `datasets` raises for files that others made is any exception of any library
        hint = f"; choose a split with {uri}:NAME or --split NAME" if "split" in str(error).lower() else ""
        raise OmniprepError(
            f"{uri}: cannot be read as a Hugging Face dataset: {type(error).__name__}: {error}{hint}"
        ) from error
    return dataset.with_format("arrow")


def count_rows(uri: str, split: str) -> int:
    """Rows of a saved dataset's folder, or of a split on the Hub."""
    return len(_load(uri, split))


def read_rows(uri: str, split: str, start: int, end: int) -> Iterator[Any]:
    """Rows [start, end), some megabytes at a time; a `Reject` for one whose values cannot be read."""
    dataset = _load(uri, split)
    most = _BATCH_BYTES * len(dataset) // max(dataset.data.nbytes, 1)
    step = max(1, min(_BATCH_ROWS, most))
    for at in range(start, end, step):
        try:
            table = dataset[at : min(at + step, end)]
        except (pa.ArrowException, OSError, ValueError) as error:
            raise OmniprepError(f"{uri}: damaged at rows {at + 1} to {min(at + step, end)}: {error}") from error
        yield from table_rows(table)


def table_rows(table: Any) -> Iterator[Any]:
    """Rows of an Arrow table or record batch as Python values, without nulls; a `Reject` for one that has no such
    values (text that is not UTF-8, times outside Python's range).
    """
    try:
        rows = table.to_pylist()
    except (ValueError, OverflowError):
        rows = [_row_alone(table.slice(at, 1)) for at in range(table.num_rows)]
    for row in rows:
        yield row if isinstance(row, Reject) else {name: value for name, value in row.items() if value is not None}


def _row_alone(table: Any) -> dict[str, Any] | Reject:
    row = {}
    for name, column in zip(table.schema.names, table.columns, strict=True):
        try:
            row[name] = column.to_pylist()[0]
        except (ValueError, OverflowError) as error:
            return Reject(RejectCode.BAD_COLUMN, f"column {name!r} cannot be read: {error}")
    return row


def fingerprint(folder: str) -> dict[str, Any]:
    """What tells cheaply that a saved dataset changed: its state (which has a hash of its content), and its size."""
    state = io.read_bytes(io.join(folder, _STATE))
    files = [name for name in io.list_folder(folder) if name.endswith(".arrow")]
    return {
        "bytes": sum(io.size(io.join(folder, name)) for name in files),
        "state_sha256": hashlib.sha256(state).hexdigest(),
    }
