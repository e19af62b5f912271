"""Finds the files to read for the inputs of the command line: files, globs, folders, saved datasets, Hub datasets.

Nothing is read or left out silently: the number of files of a folder or glob is printed, hidden files are counted, and
the user must choose where a folder has several splits. A folder that is a table (Delta, Iceberg, Lance) is read by the
table's own library, never file by file, since its files also hold deleted rows.
"""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

from omniprep import io
from omniprep.errors import OmniprepError, shown_name
from omniprep.printable import counted
from omniprep.rows import energon, saved
from omniprep.rows.names import expand_braces, hidden_parts
from omniprep.rows.table_folders import CATALOG, READABLE, TableFolders, refusal, refuse_below

T = TypeVar("T")
Kind = Literal["jsonl", "json", "parquet", "hf", "delimited", "tar", "delta", "iceberg", "lance"]
_KINDS: dict[str, Kind] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".parquet": "parquet",
    ".csv": "delimited",
    ".tsv": "delimited",
    ".tar": "tar",
}
_CODECS = {".gz": "gz", ".zst": "zst"}
_COMPRESSED_KINDS = ("jsonl", "json", "delimited")
_UNKNOWN = f"not a kind of file that is known ({', '.join(_KINDS)}, with .gz or .zst after JSON, CSV and TSV)"
_FOLDER_KINDS: tuple[tuple[str, ...], ...] = (("jsonl", "json", "parquet"), ("tar",), ("delimited",))
"""Of a folder the first of these that it has is read: beside JSON lines a tar holds their media, a CSV metadata."""
_METADATA_FILES = frozenset({"config.json", "dataset_info.json", "dataset_infos.json"})
"""Files without rows beside the data of a dataset; `datasets` ignores them too (data_files.FILES_TO_IGNORE)."""
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
    version: str = ""
    """Of TABLE@VERSION; empty for the current one."""
    draw: tuple[int, int] | None = None
    """For INPUT#N: its number on the command line, and N. The rows are drawn from all files of that argument."""


def find_inputs(
    patterns: tuple[str, ...], split: str | None = None, say: Callable[[str], None] = lambda text: None
) -> list[Input]:
    """Expand the inputs of the command line, in their order: files, globs, folders, tables, saved datasets, the Hub.

    Each may end in :NAME (a split; default: `split`), @VERSION (of a table) and #N (rows to draw). `say` takes a line
    on how many files each folder and glob has.
    """
    search = _Search(split or "", say)
    inputs: list[Input] = []
    for number, argument in enumerate(patterns):
        pattern, rows = _split_draw(argument)
        entries = [entry for name in expand_braces(pattern) for entry in search.find(name)]
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
    """Expands patterns."""

    def __init__(self, split: str, say: Callable[[str], None]) -> None:
        self._split, self._say = split, say
        self._tables = TableFolders(say)

    def find(self, pattern: str) -> list[Input]:
        if pattern.startswith(CATALOG):
            return [_catalog_table(pattern)]
        name, split = self._parts(pattern)
        table, _, version = name.rpartition("@")
        if table and not _ask(io.exists, name) and _ask(io.is_folder, table):
            return [self._table(table, version, pattern)]
        if saved.is_repository(name) and _kind(name) is None:
            return [Input(pattern, "hf", uri=name, split=split or self._split or "train", base=name)]
        if any(letter in name for letter in "*?[") and not _ask(io.exists, name):
            return self._glob(name)
        if not _ask(io.exists, name):
            raise OmniprepError(f"{name}: {_why_absent(name)}")
        if _ask(io.is_folder, name):
            return self._folder(name, split, pattern)
        if split:
            weight = f"; a weight is the trainer's: omniprep plan --mixture {pattern} shows what it gives"
            hint = weight if re.fullmatch(r"\d*\.?\d+", split) else ""
            raise OmniprepError(f"{name}: a file has no splits, so there is no split {split!r} in it{hint}")
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
            self._tables.refuse_above(folder)
        return Input(name, *kind, split=split, base=folder)

    def _glob(self, pattern: str) -> list[Input]:
        names = [
            (name, folder)
            for name, folder in _ask(io.expand, pattern)
            # A hidden name matches only where the pattern itself spells it out.
            if hidden_parts(name + "/" * folder) <= hidden_parts(pattern + "/" * folder)
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

    def _table(self, name: str, version: str, given: str) -> Input:
        """A folder that must be a table, at a version or (empty) the current one."""
        table = self._tables.kind(name)
        if not table:
            raise OmniprepError(
                f"{given}: {name} is no table of Delta, Iceberg or Lance, so it has no version {version!r}"
            )
        if table not in READABLE:
            raise OmniprepError(refusal(name, table))
        return Input(given, READABLE[table], uri=name, version=version, base=io.local_path(name))

    def _folder(self, name: str, split: str, given: str) -> list[Input]:
        if all(_ask(io.exists, io.join(name, part)) for part in ("manifest.json", "rows.parquet", "shards")):
            raise OmniprepError(f"{name}: is a built dataset, and no input; omniprep repack merges built datasets")
        if self._tables.kind(name):
            if split:
                raise OmniprepError(f"{name}: a table has no splits, so there is no split {split!r} in it")
            return [self._table(name, "", given)]
        paths = _ask(io.walk, name)
        if energon.SPLIT_FILE in paths:
            chosen, tars, others = energon.choose_split(name, split, self._split)
            more = f"; left out: {', '.join(others)}" if others else ""
            self._say(f"{name}: {counted(len(tars), 'tar')} of the split {chosen}{more}")
            return [self._file(io.join(name, path), ("tar", ""), chosen) for path in tars]
        names_in: defaultdict[str, set[str]] = defaultdict(set)
        for path in paths:
            folder, _, file = path.rpartition("/")
            names_in[folder].add(file)
        if saved.is_saved(names_in[""]):
            return [self._saved(name, split, given)]
        refuse_below(name, paths)
        self._tables.refuse_above(name)
        datasets: list[str] = []
        for folder in sorted(names_in):
            if saved.is_saved(names_in[folder]) and not folder.startswith(tuple(f"{outer}/" for outer in datasets)):
                datasets.append(folder)
        loose = [path for path in paths if not path.startswith(tuple(f"{folder}/" for folder in datasets))]
        left_out = Counter[str]()
        files = []
        for path in loose:
            hidden = hidden_parts(path) > 0
            known = _kind(path) is not None and path.rpartition("/")[2] not in _METADATA_FILES
            left_out["hidden"] += hidden
            left_out["of other kinds"] += not hidden and not known
            files += [path] if known and not hidden else []
        kept = _files_with_rows(name, files)
        left_out["of other kinds"] += len(files) - len(kept)
        files = kept
        left_out["of other splits"] = len(files)
        files, chosen = self._choose_files(name, files, split)
        left_out["of other splits"] -= len(files)
        inputs = [self._file(io.join(name, path), _kind(path) or ("json", ""), chosen) for path in files]
        inputs += [
            self._saved(io.join(name, folder), "", io.join(name, folder))
            for folder in datasets
            if not hidden_parts(f"{folder}/")
        ]
        more = ", ".join(f"{count} {reason}" for reason, count in left_out.items() if count)
        if not inputs:
            raise OmniprepError(
                f"{name}: a folder without {', '.join(_KINDS)} files, and no table or saved Hugging Face dataset"
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


def _catalog_table(given: str) -> Input:
    """The input of iceberg://CATALOG/NAMESPACE.TABLE[@VERSION]; who reads it finds where the table lies."""
    uri, _, version = given.partition("@")
    catalog, _, table = uri.removeprefix(CATALOG).partition("/")
    if not catalog or "/" in table or not all(table.split(".")) or "." not in table:
        raise OmniprepError(
            f"{given}: write a table of a catalog as {CATALOG}CATALOG/NAMESPACE.TABLE, with @SNAPSHOT for one that is "
            "not the current"
        )
    return Input(given, "iceberg", uri=uri, version=version)


def _why_absent(name: str) -> str:
    """What is said of an input that is not there."""
    if io.is_local(name):
        if os.path.isfile(io.local_path(name).rstrip("/")):
            return "is a file; leave the slash at its end away"
        for mark in (",", " "):
            names = [part for part in name.split(mark) if part]
            if len(names) > 1 and all(os.path.exists(part) for part in names):
                return f"no such file; give several inputs apart: {' '.join(names)}"
        if re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not os.path.isdir(os.path.dirname(name)) and _kind(name) is None:
            return f"no such file; a dataset of the Hub is {saved.HUB}{name}"
    return f"no such file{io.did_you_mean_file(name)}"


def _ask(function: Callable[[str], T], name: str) -> T:
    """Call a function of the file system or store; what it raises becomes an OmniprepError that names the input."""
    try:
        return function(name)
    except PermissionError as error:
        raise OmniprepError(f"{error.filename or name}: no permission to read it ({error.strerror})") from error
    except OmniprepError as error:
        raise OmniprepError(f"{name}: {error}") from error
    except (OSError, ImportError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)  # an OSError's text names the file once more
        raise OmniprepError(f"{name}: {reason}") from error


def _kind(name: str) -> tuple[Kind, str] | None:
    """Kind and compression of a file by its suffixes; None for files that are not read."""
    stem, suffix = os.path.splitext(name.lower())
    codec = _CODECS.get(suffix, "")
    if codec:
        suffix = os.path.splitext(stem)[1]
    kind = _KINDS.get(suffix)
    return None if kind is None or (codec and kind not in _COMPRESSED_KINDS) else (kind, codec)


def _files_with_rows(folder: str, files: list[str]) -> list[str]:
    """The files of a folder that hold rows rather than what belongs to the rows of others (`_FOLDER_KINDS`)."""
    kinds = {path: (_kind(path) or ("json", ""))[0] for path in files}
    tars = {path.removesuffix(".tar") for path, kind in kinds.items() if kind == "tar"}
    for path, kind in kinds.items():
        # img2dataset writes 00000.tar, 00000.parquet and 00000_stats.json: the rows are in the tar.
        stem = re.sub(r"(_stats)?\.\w+$", "", path)
        if kind != "tar" and stem in tars:
            raise OmniprepError(
                f"{folder}: {path} and {stem}.tar belong together; say which of them has the rows: give "
                f"{io.join(folder, '*.tar')}, or the other files"
            )
    chosen = next((group for group in _FOLDER_KINDS if not set(group).isdisjoint(kinds.values())), ())
    return [path for path in files if kinds[path] in chosen]


def _split_of(path: str) -> str:
    """The split that a path belongs to, judging by the names in it; empty for none."""
    return next((name for name, words in _SPLITS.items() if words.search(path)), "")


def _describe_splits(paths: Iterable[str]) -> str:
    """Names the splits other than train among files that are all read; empty for none."""
    counts = Counter(split for path in paths if (split := _split_of(path)) not in ("", "train"))
    splits = ", ".join(f"{count} of the split {name}" for name, count in sorted(counts.items()))
    return f", {splits} (by their names)" if splits else ""
