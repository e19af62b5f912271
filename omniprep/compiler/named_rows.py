"""Rows that a command names: SOURCE:LINE, a file of those, or patterns of sources.

`remove` takes them out of a dataset, `repack --exclude` leaves them away.
"""

import fnmatch
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from omniprep import io
from omniprep.errors import UsageError, did_you_mean
from omniprep.rows.longline import parse_line

RowKeys = tuple[dict[str, int], NDArray[np.integer], NDArray[np.int64]]
"""As `PackedDataset.row_keys`: sources with a number each; that number of each row, and its line."""
Options = tuple[str, str, str]
"""How the command spells the three ways."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RowNames:
    """What a command line gives."""

    rows: tuple[str, ...] = ()
    """SOURCE:LINE of rows; the source as given to the build."""
    rows_file: str = ""
    """A file with SOURCE:LINE, or a JSON object with source and line (as rejected.jsonl has), on each line."""
    sources: tuple[str, ...] = ()
    """Patterns (`*`, `?`, `[a-z]`) of sources all of whose rows are meant."""
    options: Options = ("--row", "--rows", "--source")
    deed: str = "nothing was removed"
    """What a message says has not been done."""

    def __bool__(self) -> bool:
        """Whether anything is named."""
        return bool(self.rows or self.rows_file or self.sources)

    def find(self, keys: RowKeys, uri: str) -> NDArray[np.bool_]:
        """Which rows are meant.

        Raises:
            UsageError: A row, source or pattern that there is none of, a file that cannot be read, nothing named.
        """
        if not self:
            row, rows, source = self.options
            raise UsageError(f"nothing to remove: give {row} SOURCE:LINE, {rows} FILE or {source} PATTERN")
        names, codes, lines = keys
        found = np.zeros(len(lines), bool)
        numbers = codes.astype(np.int64) << 40 | lines  # a source has fewer lines than 2^40
        order = np.argsort(numbers, kind="stable")
        for where, name, line in self._named():
            if name not in names:
                raise UsageError(f"{where}: {name} is no input of {uri}{did_you_mean(name, names)}; {self.deed}")
            number = names[name] << 40 | line
            first, last = (int(np.searchsorted(numbers, number, side, sorter=order)) for side in ("left", "right"))
            if first == last:
                raise UsageError(f"{where}: {name} has no row {line} in {uri} (from 1); {self.deed}")
            found[order[first:last]] = True
        for pattern in self.sources:
            fitting = [code for name, code in names.items() if fnmatch.fnmatchcase(name, pattern)]
            if not fitting:
                where = f"{self.options[2]} {pattern}"
                raise UsageError(f"{where}: no source fits{did_you_mean(pattern, names)}; {self.deed}")
            found |= np.isin(codes, fitting)
        return found

    def described(self) -> list[str]:
        """What is named, for a manifest; a file by the hash of its rows, since it may be a list of people."""
        listed = sorted(f"{name}:{line}" for _, name, line in self._listed())
        digest = hashlib.sha256(json.dumps(listed).encode()).hexdigest()
        files = [f"{len(listed)} rows of a file, sha256 {digest}"] if self.rows_file else []
        return [*sorted(set(self.rows)), *(f"source {pattern}" for pattern in sorted(set(self.sources))), *files]

    def _named(self) -> Iterator[tuple[str, str, int]]:
        """Where each row is named, for messages, and its source and line."""
        for text in self.rows:
            where = f"{self.options[0]} {text}"
            yield (where, *_source_and_line(text, where))
        yield from self._listed()

    def _listed(self) -> Iterator[tuple[str, str, int]]:
        if not self.rows_file:
            return
        try:
            data = io.read_bytes(self.rows_file)
        except OSError as error:
            raise UsageError(f"{self.options[1]} {self.rows_file}: {error.strerror or error}") from error
        for number, line in enumerate(data.splitlines(), 1):
            where, text = f"{self.rows_file}:{number}", line.decode("utf-8-sig", errors="replace").strip()
            if text.startswith("{"):
                try:
                    entry = parse_line(line)
                    yield where, str(entry["source"]), int(entry["line"])
                except (ValueError, KeyError, TypeError) as error:
                    raise UsageError(f"{where}: a JSON object here has source and line ({error})") from error
            elif text:
                yield (where, *_source_and_line(text, where))


def _source_and_line(text: str, where: str) -> tuple[str, int]:
    source, _, line = text.rpartition(":")
    if not source or not line.isdecimal():
        raise UsageError(f"{where}: write it as SOURCE:LINE, such as chats.jsonl:12")
    return source, int(line)


def exclusions(rows: Sequence[str], rows_file: str, sources: Sequence[str]) -> RowNames:
    """The rows that `repack --exclude` leaves away."""
    return RowNames(
        rows=tuple(rows),
        rows_file=rows_file,
        sources=tuple(sources),
        options=("--exclude", "--exclude-rows", "--exclude-source"),
        deed="nothing was written",
    )
