"""Reads saved Hugging Face datasets (`save_to_disk`) and datasets on the Hub, without decoding their media.

Rows are read in Arrow form, so an Image, Audio or Video column gives {bytes, path} at any depth of lists and no decoder
(torchcodec) is needed. A saved dataset may come from a stranger: its `state.json` names the files to read, so they are
checked to lie in its own folder.
"""

import hashlib
import json
import os
import re
from collections.abc import Collection, Iterator
from itertools import chain
from typing import Any

import pyarrow as pa

from omniprep import io
from omniprep.errors import OmniprepError, Reject, RejectCode, did_you_mean

HUB = "hf://datasets/"
_REPOSITORY = re.compile(re.escape(HUB) + r"(?:[\w.-]+/)?[\w.-]+/?")
_STATE, _INFO, _DICT = "state.json", "dataset_info.json", "dataset_dict.json"
_BATCH_ROWS, _BATCH_BYTES = 64, 8 << 20


def is_repository(uri: str) -> bool:
    """Whether a URI is a dataset on the Hub, for `datasets` to load; a longer URI is a file or folder in a repository,
    which is read as in any other store.
    """
    return _REPOSITORY.fullmatch(uri) is not None


def is_saved(names: Collection[str]) -> bool:
    """Whether a folder that holds these names is a saved Dataset or DatasetDict."""
    return _DICT in names or (_STATE in names and _INFO in names)


def choose_split(folder: str, asked: str, default: str = "") -> tuple[str, str, list[str]]:
    """Choose the split to read: the one that was asked for, else the default, else `train` as in the reference.

    Its folder, its name (empty for a Dataset without splits), and the other splits.
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
    """Whether a name is a plain file or folder name: no path, no drive."""
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
    """Raise an OmniprepError if a saved dataset names files outside its folder; `datasets` would open them."""
    uri = io.join(folder, _STATE)
    state = _read_json(uri)
    listed = [state[key] for key in ("_data_files", "_indices_data_files") if state.get(key) is not None]
    if not all(isinstance(entries, list) for entries in listed):
        raise OmniprepError(f"{uri}: _data_files must be a list")
    for entry in chain.from_iterable(listed):
        name = entry.get("filename") if isinstance(entry, dict) else None
        if not isinstance(name, str) or not _is_plain(name):
            raise OmniprepError(f"{uri}: names {name!r} as a file of the dataset, which must lie in the folder itself")
        if io.is_local(folder):
            real, root = (os.path.realpath(path) for path in (io.join(folder, name), io.local_path(folder)))
            if os.path.dirname(real) != root:
                raise OmniprepError(f"{uri}: {name} leads to {real}, outside the dataset's folder")


def _load(uri: str, split: str) -> Any:
    """The `datasets.Dataset` in Arrow form; OmniprepError where it cannot be read."""
    import datasets

    repository = uri.removeprefix(HUB).rstrip("/") if is_repository(uri) else None
    if repository is None:
        _check_files(uri)
    elif os.path.exists(repository):  # `datasets` would read a local folder of that name instead
        raise OmniprepError(
            f"{uri}: there is a folder {repository} here, which `datasets` would read in its place; run this "
            f"in another folder, or give ./{repository} if that is meant"
        )
    try:
        if repository is not None:  # if there is no such split, the error names those that exist
            dataset = datasets.load_dataset(repository, split=split)
        else:
            dataset = datasets.load_from_disk(io.local_path(uri))
    except Exception as error:  # for damaged files, `datasets` passes on any exception of any library
        hint = f"; choose a split with {uri}:NAME or --split NAME" if "split" in str(error).lower() else ""
        raise OmniprepError(
            f"{uri}: cannot be read as a Hugging Face dataset: {type(error).__name__}: {error}{hint}"
        ) from error
    return dataset.with_format("arrow")


def count_rows(uri: str, split: str) -> int:
    """Number of rows of a saved dataset's folder, or of a split on the Hub."""
    return len(_load(uri, split))


def read_tables(uri: str, split: str, start: int, end: int) -> Iterator[pa.Table]:
    """Rows [start, end) as tables of some MB."""
    dataset = _load(uri, split)
    step = max(1, min(_BATCH_ROWS, _BATCH_BYTES * len(dataset) // max(dataset.data.nbytes, 1)))
    for first in range(start, end, step):
        last = min(first + step, end)
        try:
            table = dataset[first:last]
        except (pa.ArrowException, OSError, ValueError) as error:
            raise OmniprepError(f"{uri}: damaged at rows {first + 1} to {last}: {error}") from error
        yield table


def table_rows(table: Any) -> Iterator[Any]:
    """Rows of an Arrow table or record batch as Python values, without null columns; a `Reject` for a row that Python
    cannot hold (text that is not UTF-8, times outside Python's range).
    """
    try:
        rows = table.to_pylist()
    except (ValueError, OverflowError):
        rows = [_single_row(table.slice(number, 1)) for number in range(table.num_rows)]
    for row in rows:
        yield row if isinstance(row, Reject) else {name: value for name, value in row.items() if value is not None}


def _single_row(table: Any) -> dict[str, Any] | Reject:
    row = {}
    for name, column in zip(table.schema.names, table.columns, strict=True):
        try:
            row[name] = column.to_pylist()[0]
        except (ValueError, OverflowError) as error:
            return Reject(RejectCode.BAD_COLUMN, f"column {name!r} cannot be read: {error}")
    return row


def fingerprint(folder: str) -> dict[str, Any]:
    """Facts that change when a saved dataset does: its state (which has a hash of the content), and its size."""
    state = io.read_bytes(io.join(folder, _STATE))
    files = [name for name in io.list_folder(folder) if name.endswith(".arrow")]
    return {
        "bytes": sum(io.size(io.join(folder, name)) for name in files),
        "state_sha256": hashlib.sha256(state).hexdigest(),
    }
