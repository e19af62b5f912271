"""What was given on the command line → the files to read: globs, folders with all below them, saved datasets' splits.

Nothing is taken or left out in silence: how many files a folder or glob gave is said, hidden files are counted, and
folders that are tables (Delta, Iceberg, Lance, Hudi) are refused, since their files hold rows that were deleted. A
folder that holds several splits is asked about.
"""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

from omniprep import io
from omniprep.errors import OmniprepError, did_you_mean, shown_name
from omniprep.rows import saved

__all__ = ["Input", "Kind", "find_inputs"]

T = TypeVar("T")
Kind = Literal["jsonl", "json", "parquet", "hf"]
_KINDS: dict[str, Kind] = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".parquet": "parquet"}
_CODECS = {".gz": "gz", ".zst": "zst"}
_UNKNOWN = f"not a kind of file that is known ({', '.join(_KINDS)}, with .gz or .zst after JSON)"
_NO_ROWS = frozenset({"config.json", "dataset_info.json", "dataset_infos.json"})
"""Files beside the data of datasets, passed over in folders as `datasets` does (data_files.FILES_TO_IGNORE)."""
_TABLES = {"_delta_log": "Delta", "_versions": "Lance", ".hoodie": "Hudi"}
"""Folders that make the folder they lie in a table."""
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
    """As the user named it, for rows.parquet and messages."""
    kind: Kind
    codec: str = ""
    uri: str = ""
    """Where it lies, where that is not `source`: the folder of the chosen split, the dataset on the Hub."""
    split: str = ""
    """The split that was chosen, of an input that has splits."""
    base: str = ""
    """The folder that media paths are relative to."""
    draw: tuple[int, int] | None = None
    """Of INPUT#N: its number on the command line, and N; the rows are drawn from all files that it gave."""


def find_inputs(
    patterns: tuple[str, ...], split: str | None = None, say: Callable[[str], None] = lambda text: None
) -> list[Input]:
    """Expand what was given on the command line, in the order given.

    Args:
        patterns: Files, globs, folders, saved datasets, datasets on the Hub; each may end in :NAME, a split, and #N,
            how many rows to draw.
        split: The split of inputs that have splits and name none themselves.
        say: Told how many files each folder and glob gave.

    Raises:
        OmniprepError: A file is absent, a glob matches nothing, a file is of no known kind, or a folder is a table.
    """
    search = _Search(split or "", say)
    found: list[Input] = []
    for number, given in enumerate(patterns):
        pattern, rows = _drawn(given)
        entries = search.find(pattern)
        found += entries if rows is None else [replace(entry, draw=(number, rows)) for entry in entries]
    if not found:
        raise OmniprepError("no input: give at least one .jsonl, .json or .parquet file, or a dataset folder")
    for entry in found:
        _check_name(entry.source)
    found = list(dict.fromkeys(found))
    twice = [source for source, count in Counter(entry.source for entry in found).items() if count > 1]
    if twice:  # a row is known by source and line, which must be one row
        raise OmniprepError(f"{twice[0]}: is given twice, with other numbers of rows to draw")
    return found


def _drawn(pattern: str) -> tuple[str, int | None]:
    """Name and N of INPUT#N; a name that exists with its # is no such thing."""
    name, mark, digits = pattern.rpartition("#")
    if not mark or not digits.isdecimal() or (io.is_local(pattern) and os.path.lexists(pattern)):
        return pattern, None
    if not int(digits):
        raise OmniprepError(f"{pattern}: draws no row; N must be 1 or more")
    return name, int(digits)


def _check_name(name: str) -> None:
    """Refuse names that are not UTF-8 (of archives packed under another encoding): no table or manifest can hold them.

    Raises:
        OmniprepError: It is not; shows the bytes.
    """
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise OmniprepError(f"{shown_name(name)}: the name is not valid UTF-8; rename the file or folder") from error


class _Search:
    """One expansion: what it was asked for, and the folders it has looked into."""

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
            raise OmniprepError(f"{name}: no such file{_near(name)}")
        if _ask(io.is_folder, name):
            return self._folder(name, split, pattern)
        if split:
            raise OmniprepError(f"{name}: a file has no splits, so there is no split {split!r} in it")
        kind = _kind(name)
        if kind is None:
            raise OmniprepError(f"{name}: {_UNKNOWN}")
        return [self._file(name, kind)]

    def _parts(self, pattern: str) -> tuple[str, str]:
        """Name and split of FOLDER:NAME; a name that exists with its colon is no such thing."""
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
            if _hidden_parts(name + "/" * folder) <= _hidden_parts(pattern + "/" * folder)  # not asked for by name
        ]
        if not names:
            raise OmniprepError(f"{pattern}: no file matches")
        found = []
        for name, folder in names:
            kind = None if folder else _kind(name)
            if kind is not None:
                found.append(self._file(name, kind))
            elif folder:
                found += self._folder(name, "", name)
            else:
                raise OmniprepError(f"{name}: {_UNKNOWN} ({pattern} matches it)")
        found = list(dict.fromkeys(found))
        plain = re.split(r"[*?\[]", pattern)[0].rpartition("/")[0]  # the folders that were named as they are
        named = _named_splits(entry.source.removeprefix(plain) for entry in found)
        self._say(f"{pattern}: {_count(len(found), 'file')}{named}")
        return found

    def _folder(self, name: str, split: str, given: str) -> list[Input]:
        paths = _ask(io.walk, name)
        inside: defaultdict[str, set[str]] = defaultdict(set)
        for path in paths:
            folder, _, file = path.rpartition("/")
            inside[folder].add(file)
        if saved.is_saved(inside[""]):
            return [self._saved(name, split, given)]
        _refuse_table_below(name, paths)
        self._refuse_table_above(name)
        datasets: list[str] = []
        for folder in sorted(inside):
            if saved.is_saved(inside[folder]) and not folder.startswith(tuple(f"{other}/" for other in datasets)):
                datasets.append(folder)
        loose = [path for path in paths if not path.startswith(tuple(f"{folder}/" for folder in datasets))]
        left = Counter[str]()
        files = []
        for path in loose:
            hidden = _hidden_parts(path) > 0
            known = _kind(path) is not None and path.rpartition("/")[2] not in _NO_ROWS
            left["hidden"] += hidden
            left["of other kinds"] += not hidden and not known
            files += [path] if known and not hidden else []
        left["of other splits"] = len(files)
        files, chosen = self._of_split(name, files, split)
        left["of other splits"] -= len(files)
        found = [self._file(io.join(name, path), _kind(path) or ("json", ""), chosen) for path in files]
        found += [
            self._saved(io.join(name, folder), "", io.join(name, folder))
            for folder in datasets
            if not _hidden_parts(f"{folder}/")
        ]
        more = ", ".join(f"{count} {what}" for what, count in left.items() if count)
        if not found:
            raise OmniprepError(
                f"{name}: a folder without .jsonl, .json or .parquet files, and not a saved Hugging Face dataset"
                + (f" (files left out: {more})" if more else "")
            )
        named = "" if chosen else _named_splits(files)
        self._say(f"{name}: {_count(len(found), 'file')}{named}" + (f"; left out: {more}" if more else ""))
        return found

    def _of_split(self, folder: str, files: list[str], split: str) -> tuple[list[str], str]:
        """The files of the split that was asked for, and its name; all where their names tell of no others.

        Raises:
            OmniprepError: There are several and none was chosen, or there is no such split.
        """
        of = {path: _split_of(path) for path in files}
        names = sorted(set(of.values()) - {""})
        asked = split or (self._split if self._split in names else "")
        if not asked and "train" in names and len(names) > 1:
            raise OmniprepError(
                f"{folder}: holds the splits {', '.join(names)} (by the names in it): choose one with "
                f"{folder}:train or --split train, or name the files"
            )
        if asked and asked not in names:
            raise OmniprepError(f"{folder}: no split {asked!r}; the names in it tell of {', '.join(names) or 'none'}")
        return ([path for path in files if of[path] == asked] if asked else files), asked

    def _saved(self, folder: str, split: str, given: str) -> Input:
        chosen, name, others = saved.choose_split(folder, split, self._split)
        if others:
            self._say(f"{folder}: the split {name}; left out: {', '.join(others)}")
        return Input(given, "hf", uri=chosen, split=name, base=io.local_path(folder))

    def _refuse_table_above(self, folder: str) -> None:
        """Refuse a folder that is a table, or lies in one.

        Raises:
            OmniprepError: It does.
        """
        for place in _with_parents(folder):
            if place not in self._tables:
                self._tables[place] = self._table(place)
            if self._tables[place]:
                raise OmniprepError(_table_text(place, self._tables[place]))

    def _table(self, folder: str) -> str:
        """What kind of table a folder is, by the names in it; empty for none."""
        try:
            names = io.list_folder(folder)
            mark = next((mark for mark in _TABLES if mark in names), None)
            inside = io.list_folder(io.join(folder, "metadata")) if "metadata" in names and mark is None else []
        except PermissionError:  # of a folder above: what lies in the input's own was listed, or is named in full
            self._say(f"{folder}: may not be listed, so whether it is a table of Delta, Iceberg or Lance is not known")
            return ""
        except OSError as error:
            raise OmniprepError(f"{folder}: {error}") from error
        if mark is not None:
            return _TABLES[mark]
        return "Iceberg" if any(_ICEBERG.search(f"metadata/{name}") for name in inside) else ""


def _ask(question: Callable[[str], T], name: str) -> T:
    """Ask the disk or store about a name.

    Raises:
        OmniprepError: It does not answer; says why.
    """
    try:
        return question(name)
    except PermissionError as error:
        raise OmniprepError(f"{error.filename or name}: no permission to read it ({error.strerror})") from error
    except OmniprepError as error:
        raise OmniprepError(f"{name}: {error}") from error
    except (OSError, ImportError, ValueError) as error:
        raise OmniprepError(f"{name}: {error}") from error


def _near(name: str) -> str:
    """The file in the same folder that may have been meant."""
    if not io.is_local(name):
        return ""
    folder, word = os.path.split(io.local_path(name))
    return did_you_mean(word, os.listdir(folder or ".") if os.path.isdir(folder or ".") else [], folder)


def _kind(name: str) -> tuple[Kind, str] | None:
    stem, suffix = os.path.splitext(name.lower())
    codec = _CODECS.get(suffix, "")
    if codec:
        suffix = os.path.splitext(stem)[1]
    kind = _KINDS.get(suffix)
    return None if kind is None or (codec and kind == "parquet") else (kind, codec)


def _split_of(path: str) -> str:
    """The split that the names in a path tell of; empty for none."""
    return next((name for name, words in _SPLITS.items() if words.search(path)), "")


def _named_splits(paths: Iterable[str]) -> str:
    """What to say of files that are all read though their names tell of splits that are not for training."""
    counts = Counter(split for path in paths if (split := _split_of(path)) not in ("", "train"))
    told = ", ".join(f"{count} of the split {name}" for name, count in sorted(counts.items()))
    return f", {told} (by their names)" if told else ""


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _hidden_parts(path: str) -> int:
    """How many names in a path are hidden: those that begin with a dot (as `datasets` and globs have it), and folders
    that begin with an underscore (`__MACOSX`; `_temporary` of Spark, where writes that failed lie).
    """
    *folders, name = path.split(io.REMOTE_MARK, 1)[-1].split("/")
    hidden = sum(part.startswith(("_", ".")) and part.strip(".") != "" for part in folders)
    return hidden + (name.startswith(".") and name.strip(".") != "")


def _with_parents(folder: str) -> Iterator[str]:
    """A folder and those that it lies in, from within; of a store at most three, since each is a request."""
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
    root = 3 if scheme == "hf" else 1  # of a repository of the Hub: datasets/ORG/NAME
    for count in range(len(parts), max(root, len(parts) - 3) - 1, -1):
        yield f"{scheme}{io.REMOTE_MARK}{'/'.join(parts[:count])}"


def _refuse_table_below(folder: str, paths: Iterable[str]) -> None:
    """Refuse a folder that is a table or has one in it.

    Raises:
        OmniprepError: It is.
    """
    for path in paths:
        parts = path.split("/")
        for at, part in enumerate(parts[:-1]):
            if part in _TABLES and not _hidden_parts("/".join([*parts[:at], ""])):
                raise OmniprepError(_table_text(io.join(folder, *parts[:at]), _TABLES[part]))
        if _ICEBERG.search(path) and not _hidden_parts("/".join([*parts[:-2], ""])):
            raise OmniprepError(_table_text(io.join(folder, *parts[:-2]), "Iceberg"))


def _table_text(folder: str, kind: str) -> str:
    return (
        f"{folder}: is a {kind} table; read file by file it would bring back rows that were deleted or replaced. "
        "Write its current rows to a folder of Parquet first, and give that"
    )
