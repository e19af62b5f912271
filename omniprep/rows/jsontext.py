"""JSON as the reference reads it: a line of a .jsonl file, or the values of a .json file one after the other.

The reference loads JSON through `datasets` 3.6: pyarrow's reader takes lines, pandas' reader takes a whole array where
pyarrow cannot. What they accept, refuse and make of NaN was found by running both; tests/test_inputs_json.py holds the
table. Rows that neither would read are rejected, each for itself.
"""

import codecs
import json
import math
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

from omniprep.errors import OmniprepError, Reject, RejectCode
from omniprep.rows.longline import parse_line

__all__ = ["MAX_DEPTH", "parse_row", "read_values"]

MAX_DEPTH = 128
"""Lists and objects inside one another. Arrow, through which the reference reads, ends at 64; a fixed number and not
Python's own limit, which depends on how deep in the program the row is read."""
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_SURROGATE_BYTES = re.compile(rb"\\u[dD][89a-fA-F]")
_TOO_DEEP = f"lists and objects are nested more than {MAX_DEPTH} deep"
_MESSAGE_COLUMNS = frozenset({"messages", "conversation", "conversations", "history"})


class _TwiceError(ValueError):
    """A key stands twice in one object."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of a line; pyarrow refuses a key that stands there twice, and which of the two counts is a guess."""
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _TwiceError(f"the key {twice!r} is written twice in one object")
    return found


_LINE = json.JSONDecoder(object_pairs_hook=_once)
_ARRAY = json.JSONDecoder(strict=False)
"""pandas takes control characters inside text, and the last of two equal keys."""


def parse_row(text: bytes) -> Any:
    """The row on a line of JSON lines, or a `Reject` that says why there is none.

    NaN becomes null, as in an array: pyarrow refuses the file where other rows have text in that column. It stays NaN
    as the `loss` of a message, where pyarrow keeps it and null would mean "as the strategy says".
    """
    try:
        row = parse_line(text, _LINE.decode)
    except UnicodeDecodeError as error:
        hint = "; it holds zero bytes, as UTF-16 text does" if b"\0" in text else ""
        return Reject(RejectCode.BAD_JSON, f"the line is not UTF-8 (byte {error.start + 1}: {error.reason}){hint}")
    except RecursionError:
        return Reject(RejectCode.BAD_JSON, _TOO_DEEP)
    except ValueError as error:
        hint = ""
        if b"\0" in text:
            hint = "; the line holds zero bytes, as UTF-16 text does"
        elif "Extra data" in str(error):
            hint = "; one object a line is needed"
        return Reject(RejectCode.BAD_JSON, f"{error}{hint}")
    brackets = text.count(b"[") + text.count(b"{")
    return _checked(row, brackets, surrogates=_SURROGATE_BYTES.search(text) is not None, nan=b"NaN" in text, lines=True)


def _checked(row: Any, brackets: int, *, surrogates: bool, nan: bool, lines: bool) -> Any:
    """The row, or why it cannot be used. The flags say what may be in it, so that most rows are not looked through."""
    if brackets > MAX_DEPTH and _deeper_than(row, MAX_DEPTH):
        return Reject(RejectCode.BAD_JSON, _TOO_DEEP)
    if surrogates and (column := _half_character(row)) is not None:
        code = RejectCode.BAD_MESSAGE if column in _MESSAGE_COLUMNS else RejectCode.BAD_COLUMN
        return Reject(code, f"column {column!r} holds half of a surrogate pair: the text is not valid Unicode")
    return _without_nan(row, keep_loss=lines) if nan else row


def _deeper_than(row: Any, limit: int) -> bool:
    """Whether lists and objects nest deeper, found level by level: no recursion, whatever the depth."""
    level = [row]
    for _ in range(limit):
        level = [value for value in level if isinstance(value, list | dict)]
        if not level:
            return False
        level = [inner for value in level for inner in (value.values() if isinstance(value, dict) else value)]
    return any(isinstance(value, list | dict) for value in level)


def _half_character(row: Any) -> str | None:
    """The column whose text no encoding can write, or None. Of a row that is no object: "row"."""
    for name, value in row.items() if isinstance(row, dict) else [("row", row)]:
        try:
            json.dumps([name, value], ensure_ascii=False).encode()
        except UnicodeEncodeError:
            return str(name)
    return None


def _without_nan(value: Any, *, keep_loss: bool) -> Any:
    if isinstance(value, dict):
        return {
            key: inner if keep_loss and key == "loss" else _without_nan(inner, keep_loss=keep_loss)
            for key, inner in value.items()
        }
    if isinstance(value, list):
        return [_without_nan(inner, keep_loss=keep_loss) for inner in value]
    return None if isinstance(value, float) and math.isnan(value) else value


_SPACE = re.compile(r"[ \t\n\r]*")
_SYNTAX = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{}]', re.DOTALL)
_PIECE = 1 << 20
_SEARCH = 1 << 20
"""Characters through which the end of an element is looked for that Python's parser cannot go through (a second)."""
_TAIL = 16
"""An error this close to the end of what was read may be a value that goes on: `Infinit`, `\\u00e`."""


class _Text:
    """The text of a file from a place on, read further when it is asked for."""

    def __init__(self, file: BinaryIO, source: str, limit: int) -> None:
        self._file, self._source, self._limit = file, source, limit
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self.held, self.at, self.ended = "", 0, False

    def more(self) -> bool:
        """Read on; False at the end. What stands before `at` is dropped. As much is read as is held: a value that needs
        many pieces is tried a few times only.
        """
        if self.ended:
            return False
        left = len(self.held) - self.at
        if left > self._limit:
            raise OmniprepError(
                f"{self._source}: an element has more than {self._limit} bytes (--max-line-bytes); give one row a "
                "line (.jsonl) to have such rows rejected alone"
            )
        data = self._file.read(min(max(_PIECE, left), self._limit - left + _PIECE))
        self.ended = not data
        try:
            self.held = self.held[self.at :] + self._decoder.decode(data, self.ended)
        except UnicodeDecodeError as error:
            raise OmniprepError(f"{self._source}: not UTF-8: {error.reason}") from error
        self.at = 0
        return not self.ended or bool(self.held)

    def next_letter(self) -> str:
        """The next letter that is no space, left where it is; empty at the end."""
        while True:
            match = _SPACE.match(self.held, self.at)
            assert match is not None
            self.at = match.end()
            if self.at < len(self.held):
                return self.held[self.at]
            if not self.more():
                return ""


def read_values(file: BinaryIO, source: str, limit: int) -> Iterator[tuple[Any, int]]:
    """The elements of a JSON array, or values one after the other, read as they are needed.

    Args:
        file: In UTF-8.
        source: Its name, for messages.
        limit: Most bytes that an element may take.

    Yields:
        (row, bytes that it takes); the row is a `Reject` where it is nested too deep or holds half characters.

    Raises:
        OmniprepError: It is not valid JSON, or an element is too long.
    """
    text = _Text(file, source, limit)
    first = text.next_letter()
    array = first == "["
    text.at += array
    number = 1
    while letter := text.next_letter():
        if array and letter == "]" and number == 1:
            break
        yield _next_value(text, source, number, array=array)
        number += 1
        if array:
            letter = text.next_letter()
            if letter == "]":
                break
            if letter != ",":
                raise OmniprepError(_invalid(source, number - 1, "a comma or ] must follow" if letter else "it is cut"))
            text.at += 1
            if text.next_letter() in ("]", ""):
                raise OmniprepError(_invalid(source, number, "a comma and then no element"))
    if not array:
        return
    if not letter:
        raise OmniprepError(_invalid(source, number, "the array is cut"))
    text.at += 1
    if text.next_letter():
        raise OmniprepError(_invalid(source, number, "more follows after the end of the array"))


def _invalid(source: str, number: int, why: str) -> str:
    return f"{source}: not valid JSON (element {number}: {why}); one object a line is .jsonl"


def _next_value(text: _Text, source: str, number: int, *, array: bool) -> tuple[Any, int]:
    decoder = _ARRAY if array else _LINE
    while True:
        start = text.at
        try:
            row, end = decoder.raw_decode(text.held, start)
            if end == len(text.held) and text.more():  # a number may go on in what was not read yet
                continue
        except (RecursionError, _TwiceError) as error:
            why = str(error) if isinstance(error, _TwiceError) else _TOO_DEEP
            after = _end_of_value(text.held, start)
            if after is None:
                if len(text.held) - start < _SEARCH and text.more():
                    continue
                what = "it is cut" if text.ended else f"{why}, and its end is not near"
                raise OmniprepError(_invalid(source, number, what)) from error
            row, end = Reject(RejectCode.BAD_JSON, why), after
        except ValueError as error:
            at = getattr(error, "pos", len(text.held))
            cut = at >= len(text.held) - _TAIL or str(error).startswith("Unterminated string")
            if cut and text.more():
                continue
            raise OmniprepError(_invalid(source, number, str(error).split(": line")[0])) from error
        break
    text.at = end
    if isinstance(row, Reject):
        return row, end - start
    brackets = text.held.count("[", start, end) + text.held.count("{", start, end)
    surrogates = _SURROGATE.search(text.held, start, end) is not None
    nan = text.held.find("NaN", start, end) >= 0
    return _checked(row, brackets, surrogates=surrogates, nan=nan, lines=not array), end - start


def _end_of_value(text: str, start: int) -> int | None:
    """Where the list or object that begins at `start` ends, without going down into it; None where that is not near."""
    depth = 0
    for match in _SYNTAX.finditer(text, start, start + _SEARCH):
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(match.group()[0], 0)
        if depth == 0:
            return match.end()
    return None
