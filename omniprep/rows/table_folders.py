"""Finds out which folders are tables of Delta, Iceberg, Lance or Hudi, whose files must not be read one by one."""

import os
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Literal

from omniprep import io
from omniprep.errors import OmniprepError
from omniprep.rows.names import hidden_parts

READABLE: dict[str, Literal["delta", "iceberg", "lance"]] = {"Delta": "delta", "Iceberg": "iceberg", "Lance": "lance"}
"""The tables that can be read, with the kind of their inputs; others are refused."""
CATALOG = "iceberg://"
"""What begins the name of a table in a catalog of pyiceberg: iceberg://CATALOG/NAMESPACE.TABLE."""
_MARKS = {"_delta_log": "Delta", "_versions": "Lance", ".hoodie": "Hudi"}
"""Names of folders that mark the folder they lie in as a table."""
_ICEBERG = re.compile(r"(?:^|/)metadata/(?:[^/]*\.metadata\.json|version-hint\.text)$")


class TableFolders:
    """Which folders are tables; remembered, since each look into a store is a request."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._kinds: dict[str, str] = {}

    def kind(self, folder: str) -> str:
        """Delta, Iceberg, Lance or Hudi, judging by the names in a folder; empty for none."""
        if folder not in self._kinds:
            self._kinds[folder] = self._look(folder)
        return self._kinds[folder]

    def refuse_above(self, folder: str) -> None:
        """Raise an OmniprepError for a folder that is a table, or lies in one."""
        for parent in _with_parents(folder):
            if self.kind(parent):
                raise OmniprepError(refusal(parent, self.kind(parent)))

    def _look(self, folder: str) -> str:
        try:
            names = io.list_folder(folder)
            mark = next((mark for mark in _MARKS if mark in names), None)
            metadata = io.list_folder(io.join(folder, "metadata")) if "metadata" in names and mark is None else []
        except PermissionError:  # only a parent folder: the input's own was listed, or its file was named
            self._say(f"{folder}: may not be listed, so whether it is a table of Delta, Iceberg or Lance is not known")
            return ""
        except OSError as error:
            raise OmniprepError(f"{folder}: {error}") from error
        if mark is not None:
            return _MARKS[mark]
        return "Iceberg" if any(_ICEBERG.search(f"metadata/{name}") for name in metadata) else ""


def refuse_below(folder: str, paths: Iterable[str]) -> None:
    """Raise an OmniprepError for a folder that has a table in it that is not hidden; `paths` are those of its files."""
    for path in paths:
        parts = path.split("/")
        tables = [(parts[:depth], _MARKS[part]) for depth, part in enumerate(parts[:-1]) if part in _MARKS]
        if _ICEBERG.search(path):
            tables.append((parts[:-2], "Iceberg"))
        for parents, kind in tables:
            if not hidden_parts("/".join([*parents, ""])):
                raise OmniprepError(refusal(io.join(folder, *parents), kind))


def refusal(folder: str, kind: str) -> str:
    """Why files of a table are not read one by one, and what to do."""
    way_out = (
        f"give the table itself ({folder}, or {folder}@VERSION)"
        if kind in READABLE
        else "write its current rows to a folder of Parquet first, and give that"
    )
    return f"{folder}: is a {kind} table; its files one by one would bring back deleted and replaced rows: {way_out}"


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
