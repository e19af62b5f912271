"""CSV and TSV: a row each, with the names of the columns in the first; a file is a split.

A cell is text. One that begins as a JSON list or object and is one is read as such, so that lists of media, messages
and tools can be written; an empty cell is a null.
"""

import csv
import io as _io
import json
from collections.abc import Iterator
from typing import Any

from omniprep import io
from omniprep.errors import OmniprepError, Reject, RejectCode
from omniprep.rows.choosing import Chooser, picked
from omniprep.rows.inputs import Input
from omniprep.rows.opening import find_encoding, open_text
from omniprep.rows.split import Split


def splits(entry: Input) -> Iterator[Split]:
    """As `Format.splits`."""
    uri = entry.uri or entry.source
    yield Split(entry.source, "delimited", 0, 0, uri, entry.base, entry.codec, find_encoding(uri, entry.codec))


def count_rows(split: Split) -> int:
    """As `Format.count_rows`."""
    return sum(1 for _ in read_rows(split, 1 << 30))


def fingerprint(split: Split) -> dict[str, Any]:
    """As `Format.fingerprint`."""
    return io.fingerprint(split.uri)


def read_rows(split: Split, max_row_bytes: int, chooser: Chooser | None = None) -> Iterator[Any]:
    """As `Format.read_rows`."""
    csv.field_size_limit(max_row_bytes)
    with open_text(split.uri, split.codec, split.encoding) as file:
        text = _io.TextIOWrapper(file, "utf-8-sig", errors="surrogateescape", newline="")
        delimiter = "\t" if _stem(split.uri).endswith(".tsv") else ","
        reader = csv.reader(text, delimiter=delimiter, strict=True)
        names: list[str] | None = None
        while True:
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                # What is a cell is not known after the fault, so no later row can be trusted.
                raise OmniprepError(
                    f"{split.uri}: line {reader.line_num}: {error}; if it is a cell longer than "
                    f"{max_row_bytes:,} bytes, see --max-line-bytes"
                ) from error
            if not cells:
                continue  # a blank line
            if names is None:
                names = _header(split.uri, cells)
                if chooser is not None:  # an empty cell is no column of its row
                    chooser.decide(dict.fromkeys(names))
            else:
                yield picked(chooser, _row(names, cells, reader.line_num))


def _stem(uri: str) -> str:
    return uri.lower().removesuffix(".gz").removesuffix(".zst")


def _header(uri: str, cells: list[str]) -> list[str]:
    if repeated := {name for name in cells if cells.count(name) > 1}:
        raise OmniprepError(f"{uri}: the first line names the column {min(repeated)!r} twice")
    try:
        "".join(cells).encode()
    except UnicodeEncodeError as error:
        raise OmniprepError(f"{uri}: the first line is not UTF-8; save the file as UTF-8") from error
    return cells


def _row(names: list[str], cells: list[str], line: int) -> dict[str, Any] | Reject:
    if len(cells) != len(names):
        return Reject(RejectCode.BAD_ROW, f"line {line} has {len(cells)} cells, the first line {len(names)} names")
    try:
        "".join(cells).encode()
    except UnicodeEncodeError:
        return Reject(RejectCode.BAD_ROW, f"line {line} is not UTF-8")
    return {name: _value(cell) for name, cell in zip(names, cells, strict=True) if cell}


def _value(cell: str) -> Any:
    if cell.startswith(("[", "{")):
        try:
            return json.loads(cell)
        except (ValueError, RecursionError):
            return cell
    return cell
