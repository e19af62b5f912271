"""Finds the files to read for the inputs of the command line: files, globs, folders, saved datasets, Hub datasets.

Nothing is read or left out silently: the number of files of a folder or glob is printed, hidden files are counted, and
the user must choose where a folder has several splits. Folders that are tables (Delta, Iceberg, Lance, Hudi) are
refused, since their files also hold deleted rows.
"""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

from omniprep import io
from omniprep.errors import OmniprepError, shown_name
from omniprep.printable import counted
from omniprep.rows import saved

T = TypeVar("T")
Kind = Literal["jsonl", "json", "parquet", "hf"]
_KINDS: dict[str, Kind] = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".parquet": "parquet"}
_CODECS = {".gz": "gz", ".zst": "zst"}
_UNKNOWN = f"not a kind of file that is known ({', '.join(_KINDS)}, with .gz or .zst after JSON)"
_METADATA_FILES = frozenset({"config.json", "dataset_info.json", "dataset_infos.json"})
"""Files without rows beside the data of a dataset; `datasets` ignores them too (data_files.FILES_TO_IGNORE)."""
_TABLES = {"_delta_log": "Delta", "_versions": "Lance", ".hoodie": "Hudi"}
"""Names of folders that mark the folder they lie in as a table."""
_ICEBERG = re.compile(r"(?:^|/)metadata/(?:[^/]*\.metadata\.json|version-hint\.text)$")
_SPLIT_WORDS = {
    "train": "train|training",
    "validation": "validation|valid|dev|val",
    "test": "test|testing|eval|evaluation",
}
_SPLITS = {name: re.compile(rf"(?:^|[-._ 0-9/])(?:{words})(?:[-._ 0-9/]|$)") for name, words in _SPLIT_WORDS.items()}
"""How `datasets` finds the splits of a folder from the names in it (data_files.SPLIT_KEYWORDS)."""


@dataclass(frozen=True, slots=True)
class Input:
    """One file, or one split of a saved dataset."""

    source: str
    """Name as the user gave it, for rows.parquet and messages."""
    kind: Kind
    codec: str = ""
    """Compression: "gz", "zst" or nothing."""
    uri: str = ""
    """What to read where that is not `source`: the folder of the chosen split, the dataset on the Hub."""
    split: str = ""
    """The chosen split of an input that has splits."""
    base: str = ""
    """The folder that media paths are relative to."""
    draw: tuple[int, int] | None = None
    """For INPUT#N: its number on the command line, and N. The rows are drawn from all files of that argument."""


def find_inputs(
    patterns: tuple[str, ...], split: str | None = None, say: Callable[[str], None] = lambda text: None
) -> list[Input]:
    """Expand the inputs of the command line, in their order: files, globs, folders, datasets saved or on the Hub.

    Each may end in :NAME (a split; default: `split`) and #N (rows to draw). `say` takes a line on how many files each
    folder and glob has.
    """
    search = _Search(split or "", say)
    inputs: list[Input] = []
    for number, argument in enumerate(patterns):
        pattern, rows = _split_draw(argument)
        entries = search.find(pattern)
        inputs += entries if rows is None else [replace(entry, draw=(number, rows)) for entry in entries]
    if not inputs:
        raise OmniprepError("no input: give at least one .jsonl, .json or .parquet file, or a dataset folder")
    for entry in inputs:
        _check_name(entry.source)
    inputs = list(dict.fromkeys(inputs))
    repeated = [source for source, count in Counter(entry.source for entry in inputs).items() if count > 1]
    if repeated:  # source and line must identify one row
        raise OmniprepError(f"{repeated[0]}: is given twice, with other numbers of rows to draw")
    return inputs


def _split_draw(pattern: str) -> tuple[str, int | None]:
    """Name and N of INPUT#N; N is None for other patterns, and for a local file whose name ends so."""
    name, mark, digits = pattern.rpartition("#")
    if not mark or not digits.isdecimal() or (io.is_local(pattern) and os.path.lexists(pattern)):
        return pattern, None
    if not int(digits):
        raise OmniprepError(f"{pattern}: draws no row; N must be 1 or more")
    return name, int(digits)


def _check_name(name: str) -> None:
    """Refuse names that are not UTF-8, such as an archive's: no table or manifest can hold them."""
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise OmniprepError(f"{shown_name(name)}: the name is not valid UTF-8; rename the file or folder") from error


class _Search:
    """Expands patterns; remembers which folders are tables, since each look into a store is a request."""

    def __init__(self, split: str, say: Callable[[str], None]) -> None:
        self._split, self._say = split, say
        self._tables: dict[str, str] = {}

    def find(self, pattern: str) -> list[Input]:
        name, split = self._parts(pattern)
        if saved.is_repository(name) and _kind(name) is None:
            return [Input(pattern, "hf", uri=name, split=split or self._split or "train", base=name)]
        if any(letter in name for letter in "*?[") and not _ask(io.exists, name):
            return self._glob(name)
        if not _ask(io.exists, name):
            raise OmniprepError(f"{name}: no such file{io.did_you_mean_file(name)}")
        if _ask(io.is_folder, name):
            return self._folder(name, split, pattern)
        if split:
            raise OmniprepError(f"{name}: a file has no splits, so there is no split {split!r} in it")
        kind = _kind(name)
        if kind is None:
            raise OmniprepError(f"{name}: {_UNKNOWN}")
        return [self._file(name, kind)]

    def _parts(self, pattern: str) -> tuple[str, str]:
        """Name and split of FOLDER:NAME; no split for other patterns, and for a local file whose name ends so."""
        head, _, tail = pattern.rpartition(":")
        if not head or not re.fullmatch(r"[\w.-]+", tail) or (io.is_local(pattern) and os.path.lexists(pattern)):
            return pattern, ""
        if head.startswith(saved.HUB) or _ask(io.exists, head):
            return head, tail
        return pattern, ""

    def _file(self, name: str, kind: tuple[Kind, str], split: str = "") -> Input:
        folder = os.path.dirname(io.local_path(name)) or "." if io.is_local(name) else name.rsplit("/", 1)[0]
        if kind[0] == "parquet":
            self._refuse_table_above(folder)
        return Input(name, *kind, split=split, base=folder)

    def _glob(self, pattern: str) -> list[Input]:
        names = [
            (name, folder)
            for name, folder in _ask(io.expand, pattern)
            # A hidden name matches only where the pattern itself spells it out.
            if _hidden_parts(name + "/" * folder) <= _hidden_parts(pattern + "/" * folder)
        ]
        if not names:
            raise OmniprepError(f"{pattern}: no file matches")
        inputs = []
        for name, folder in names:
            kind = None if folder else _kind(name)
            if kind is not None:
                inputs.append(self._file(name, kind))
            elif folder:
                inputs += self._folder(name, "", name)
            else:
                raise OmniprepError(f"{name}: {_UNKNOWN} ({pattern} matches it)")
        inputs = list(dict.fromkeys(inputs))
        literal = re.split(r"[*?\[]", pattern)[0].rpartition("/")[0]  # folders that the pattern names literally
        splits = _describe_splits(entry.source.removeprefix(literal) for entry in inputs)
        self._say(f"{pattern}: {counted(len(inputs), 'file')}{splits}")
        return inputs

    def _folder(self, name: str, split: str, given: str) -> list[Input]:
        paths = _ask(io.walk, name)
        names_in: defaultdict[str, set[str]] = defaultdict(set)
        for path in paths:
            folder, _, file = path.rpartition("/")
            names_in[folder].add(file)
        if saved.is_saved(names_in[""]):
            return [self._saved(name, split, given)]
        _refuse_table_below(name, paths)
        self._refuse_table_above(name)
        datasets: list[str] = []
        for folder in sorted(names_in):
            if saved.is_saved(names_in[folder]) and not folder.startswith(tuple(f"{outer}/" for outer in datasets)):
                datasets.append(folder)
        loose = [path for path in paths if not path.startswith(tuple(f"{folder}/" for folder in datasets))]
        left_out = Counter[str]()
        files = []
        for path in loose:
            hidden = _hidden_parts(path) > 0
            known = _kind(path) is not None and path.rpartition("/")[2] not in _METADATA_FILES
            left_out["hidden"] += hidden
            left_out["of other kinds"] += not hidden and not known
            files += [path] if known and not hidden else []
        left_out["of other splits"] = len(files)
        files, chosen = self._choose_files(name, files, split)
        left_out["of other splits"] -= len(files)
        inputs = [self._file(io.join(name, path), _kind(path) or ("json", ""), chosen) for path in files]
        inputs += [
            self._saved(io.join(name, folder), "", io.join(name, folder))
            for folder in datasets
            if not _hidden_parts(f"{folder}/")
        ]
        more = ", ".join(f"{count} {reason}" for reason, count in left_out.items() if count)
        if not inputs:
            raise OmniprepError(
                f"{name}: a folder without .jsonl, .json or .parquet files, and not a saved Hugging Face dataset"
                + (f" (files left out: {more})" if more else "")
            )
        splits = "" if chosen else _describe_splits(files)
        self._say(f"{name}: {counted(len(inputs), 'file')}{splits}" + (f"; left out: {more}" if more else ""))
        return inputs

    def _choose_files(self, folder: str, files: list[str], split: str) -> tuple[list[str], str]:
        """The files of the split to read, and its name; all files and no name where names tell of no splits."""
        split_of = {path: _split_of(path) for path in files}
        names = sorted(set(split_of.values()) - {""})
        asked = split or (self._split if self._split in names else "")
        if not asked and "train" in names and len(names) > 1:
            raise OmniprepError(
                f"{folder}: holds the splits {', '.join(names)} (by the names in it): choose one with "
                f"{folder}:train or --split train, or name the files"
            )
        if asked and asked not in names:
            raise OmniprepError(f"{folder}: no split {asked!r}; the names in it tell of {', '.join(names) or 'none'}")
        return ([path for path in files if split_of[path] == asked] if asked else files), asked

    def _saved(self, folder: str, split: str, given: str) -> Input:
        chosen, name, others = saved.choose_split(folder, split, self._split)
        if others:
            self._say(f"{folder}: the split {name}; left out: {', '.join(others)}")
        return Input(given, "hf", uri=chosen, split=name, base=io.local_path(folder))

    def _refuse_table_above(self, folder: str) -> None:
        """Raise an OmniprepError for a folder that is a table, or lies in one."""
        for parent in _with_parents(folder):
            if parent not in self._tables:
                self._tables[parent] = self._table_kind(parent)
            if self._tables[parent]:
                raise OmniprepError(_table_message(parent, self._tables[parent]))

    def _table_kind(self, folder: str) -> str:
        """The kind of table that a folder is, judging by the names in it; empty for none."""
        try:
            names = io.list_folder(folder)
            mark = next((mark for mark in _TABLES if mark in names), None)
            metadata = io.list_folder(io.join(folder, "metadata")) if "metadata" in names and mark is None else []
        except PermissionError:  # only a parent folder: the input's own was listed, or its file was named
            self._say(f"{folder}: may not be listed, so whether it is a table of Delta, Iceberg or Lance is not known")
            return ""
        except OSError as error:
            raise OmniprepError(f"{folder}: {error}") from error
        if mark is not None:
            return _TABLES[mark]
        return "Iceberg" if any(_ICEBERG.search(f"metadata/{name}") for name in metadata) else ""


def _ask(function: Callable[[str], T], name: str) -> T:
    """Call a function of the file system or store; what it raises becomes an OmniprepError that names the input."""
    try:
        return function(name)
    except PermissionError as error:
        raise OmniprepError(f"{error.filename or name}: no permission to read it ({error.strerror})") from error
    except OmniprepError as error:
        raise OmniprepError(f"{name}: {error}") from error
    except (OSError, ImportError, ValueError) as error:
        raise OmniprepError(f"{name}: {error}") from error


def _kind(name: str) -> tuple[Kind, str] | None:
    """Kind and compression of a file by its suffixes; None for files that are not read."""
    stem, suffix = os.path.splitext(name.lower())
    codec = _CODECS.get(suffix, "")
    if codec:
        suffix = os.path.splitext(stem)[1]
    kind = _KINDS.get(suffix)
    return None if kind is None or (codec and kind == "parquet") else (kind, codec)


def _split_of(path: str) -> str:
    """The split that a path belongs to, judging by the names in it; empty for none."""
    return next((name for name, words in _SPLITS.items() if words.search(path)), "")


def _describe_splits(paths: Iterable[str]) -> str:
    """Names the splits other than train among files that are all read; empty for none."""
    counts = Counter(split for path in paths if (split := _split_of(path)) not in ("", "train"))
    splits = ", ".join(f"{count} of the split {name}" for name, count in sorted(counts.items()))
    return f", {splits} (by their names)" if splits else ""


def _hidden_parts(path: str) -> int:
    """Number of hidden names in a path: those that begin with a dot (as for `datasets` and globs), and folders that
    begin with an underscore (`__MACOSX`; Spark's `_temporary`, where failed writes remain).
    """
    *folders, name = path.split(io.REMOTE_MARK, 1)[-1].split("/")
    hidden = sum(part.startswith(("_", ".")) and part.strip(".") != "" for part in folders)
    return hidden + (name.startswith(".") and name.strip(".") != "")


def _with_parents(folder: str) -> Iterator[str]:
    """A folder and its parents, innermost first; in a store at most three parents, since each is a request."""
    if io.is_local(folder):
        path = os.path.abspath(io.local_path(folder))
        yield path
        while path != os.path.dirname(path):
            path = os.path.dirname(path)
            yield path
        return
    scheme, _, path = folder.partition(io.REMOTE_MARK)
    if scheme in ("http", "https"):  # web servers list no folders
        return
    parts = path.rstrip("/").split("/")
    root = 3 if scheme == "hf" else 1  # a repository of the Hub is datasets/ORG/NAME
    for count in range(len(parts), max(root, len(parts) - 3) - 1, -1):
        yield f"{scheme}{io.REMOTE_MARK}{'/'.join(parts[:count])}"


def _refuse_table_below(folder: str, paths: Iterable[str]) -> None:
    """Raise an OmniprepError for a folder that is a table, or has one in it that is not hidden."""
    for path in paths:
        parts = path.split("/")
        tables = [(parts[:depth], _TABLES[part]) for depth, part in enumerate(parts[:-1]) if part in _TABLES]
        if _ICEBERG.search(path):
            tables.append((parts[:-2], "Iceberg"))
        for parents, kind in tables:
            if not _hidden_parts("/".join([*parents, ""])):
                raise OmniprepError(_table_message(io.join(folder, *parents), kind))


def _table_message(folder: str, kind: str) -> str:
    return (
        f"{folder}: is a {kind} table; read file by file it would bring back rows that were deleted or replaced. "
        "Write its current rows to a folder of Parquet first, and give that"
    )
