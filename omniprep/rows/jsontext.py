"""Parses JSON as the reference does: a line of a .jsonl file, or the values of a .json file one after the other.

The reference loads JSON with `datasets` 3.6: pyarrow's reader for lines, pandas' reader for an array where pyarrow
fails. What they accept and what they make of NaN was found by running both; tests/test_inputs_json.py has the table.
The reference fails as a whole where a row cannot be read; here that row alone is rejected.
"""

import codecs
import json
import math
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

from omniprep.errors import OmniprepError, Reject, RejectCode
from omniprep.rows.jsonfaults import json_fault
from omniprep.rows.longline import parse_line

MAX_DEPTH = 128
"""Most levels of lists and objects. The reference reads through Arrow, which ends at 64. The number is fixed because
Python's own limit depends on how deep the call stack is where the row is read."""
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_SURROGATE_BYTES = re.compile(rb"\\u[dD][89a-fA-F]")
_TOO_DEEP = f"lists and objects are nested more than {MAX_DEPTH} deep"
_MESSAGE_COLUMNS = frozenset({"messages", "conversation", "conversations", "history"})


class _DuplicateKeyError(ValueError):
    """A key occurs twice in one object."""


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object on a line. Like pyarrow, refuse a key that occurs twice: which value was meant is unknown."""
    result = dict(pairs)
    if len(result) != len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise _DuplicateKeyError(f"the key {repeated!r} is written twice in one object")
    return result


_LINE = json.JSONDecoder(object_pairs_hook=_without_duplicates)
_ARRAY = json.JSONDecoder(strict=False)
"""Like pandas, accepts control characters inside text, and takes the last of two equal keys."""


def parse_row(text: bytes) -> Any:
    """The row on a line, or a `Reject`.

    NaN becomes null as in an array, since pyarrow fails if another row has text in that column. As the `loss` of a
    message it stays NaN, as in pyarrow, since null there would mean the strategy's own weight.
    """
    try:
        row = parse_line(text, _LINE.decode)
    except UnicodeDecodeError as error:
        hint = "it holds zero bytes, as UTF-16 text does" if b"\0" in text else "save the file as UTF-8"
        return Reject(RejectCode.BAD_JSON, f"the line is not UTF-8 (byte {error.start + 1}: {error.reason}); {hint}")
    except RecursionError:
        return Reject(RejectCode.BAD_JSON, _TOO_DEEP)
    except ValueError as error:
        return Reject(RejectCode.BAD_JSON, json_fault(error))
    brackets = text.count(b"[") + text.count(b"{")
    return _check(row, brackets, surrogates=_SURROGATE_BYTES.search(text) is not None, nan=b"NaN" in text, lines=True)


def _check(row: Any, brackets: int, *, surrogates: bool, nan: bool, lines: bool) -> Any:
    """The row, or a `Reject`. The flags say what may be in its text, so that most rows need not be searched."""
    if brackets > MAX_DEPTH and _deeper_than(row, MAX_DEPTH):
        return Reject(RejectCode.BAD_JSON, _TOO_DEEP)
    if surrogates and (column := _column_with_surrogate(row)) is not None:
        code = RejectCode.BAD_MESSAGE if column in _MESSAGE_COLUMNS else RejectCode.BAD_COLUMN
        return Reject(code, f"column {column!r} holds half of a surrogate pair: the text is not valid Unicode")
    return _without_nan(row, keep_loss=lines) if nan else row


def _deeper_than(row: Any, limit: int) -> bool:
    """Whether lists and objects are nested deeper than `limit`, level by level instead of recursively."""
    level = [row]
    for _ in range(limit):
        level = [value for value in level if isinstance(value, list | dict)]
        if not level:
            return False
        level = [inner for value in level for inner in (value.values() if isinstance(value, dict) else value)]
    return any(isinstance(value, list | dict) for value in level)


def _column_with_surrogate(row: Any) -> str | None:
    """The first column with a lone surrogate, which no encoding can write; "row" for a row that is no object."""
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
_END_SEARCH = 1 << 20
"""Characters searched for the end of an element that Python's parser cannot parse (which takes a second)."""
_TAIL = 16
"""A syntax error this close to the end of the buffer may be a value that is cut there: `Infinit`, `\\u00e`."""


class _TextBuffer:
    """A window of a file's text: `text` from `offset` on is unparsed, and `read_more` extends it."""

    def __init__(self, file: BinaryIO, source: str, limit: int) -> None:
        self._file, self._source, self._limit = file, source, limit
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self.text, self.offset, self.ended = "", 0, False

    def read_more(self) -> bool:
        """Drop the text before `offset` and read on; False at the end of the file.

        The unparsed text doubles each time, so that a long value is parsed only a few times.
        """
        if self.ended:
            return False
        left = len(self.text) - self.offset
        if left > self._limit:
            raise OmniprepError(
                f"{self._source}: an element has more than {self._limit} bytes (--max-line-bytes); give one row a "
                "line (.jsonl) to have such rows rejected alone"
            )
        data = self._file.read(min(max(_PIECE, left), self._limit - left + _PIECE))
        self.ended = not data
        try:
            self.text = self.text[self.offset :] + self._decoder.decode(data, self.ended)
        except UnicodeDecodeError as error:
            raise OmniprepError(f"{self._source}: not UTF-8: {error.reason}") from error
        self.offset = 0
        return not self.ended or bool(self.text)

    def next_character(self) -> str:
        """Move to the next character that is no space and return it; empty at the end."""
        while True:
            match = _SPACE.match(self.text, self.offset)
            assert match is not None
            self.offset = match.end()
            if self.offset < len(self.text):
                return self.text[self.offset]
            if not self.read_more():
                return ""


def read_values(file: BinaryIO, source: str, limit: int) -> Iterator[tuple[Any, int]]:
    """(row, bytes) of the elements of a JSON array, or values one after the other, read incrementally.

    The row is a `Reject` where it is nested too deep or has lone surrogates; an element above `limit` ends the command.
    """
    buffer = _TextBuffer(file, source, limit)
    array = buffer.next_character() == "["
    buffer.offset += array
    number = 1
    while character := buffer.next_character():
        if array and character == "]" and number == 1:
            break
        yield _next_value(buffer, source, number, array=array)
        number += 1
        if array:
            character = buffer.next_character()
            if character == "]":
                break
            if character != ",":
                reason = "a comma or ] must follow" if character else "it is cut"
                raise OmniprepError(_invalid(source, number - 1, reason))
            buffer.offset += 1
            if buffer.next_character() in ("]", ""):
                raise OmniprepError(_invalid(source, number, "a comma and then no element"))
    if not array:
        return
    if not character:
        raise OmniprepError(_invalid(source, number, "the array is cut"))
    buffer.offset += 1
    if buffer.next_character():
        raise OmniprepError(_invalid(source, number, "more follows after the end of the array"))


def _invalid(source: str, number: int, reason: str) -> str:
    return f"{source}: not valid JSON (element {number}: {reason}); one object a line is .jsonl"


def _next_value(buffer: _TextBuffer, source: str, number: int, *, array: bool) -> tuple[Any, int]:
    decoder = _ARRAY if array else _LINE
    while True:
        start = buffer.offset
        try:
            row, end = decoder.raw_decode(buffer.text, start)
            if end == len(buffer.text) and buffer.read_more():  # a number may go on behind the buffer
                continue
        except (RecursionError, _DuplicateKeyError) as error:
            reason = str(error) if isinstance(error, _DuplicateKeyError) else _TOO_DEEP
            value_end = _end_of_value(buffer.text, start)
            if value_end is None:
                if len(buffer.text) - start < _END_SEARCH and buffer.read_more():
                    continue
                reason = "it is cut" if buffer.ended else f"{reason}, and its end is not near"
                raise OmniprepError(_invalid(source, number, reason)) from error
            row, end = Reject(RejectCode.BAD_JSON, reason), value_end
        except ValueError as error:
            error_offset = getattr(error, "pos", len(buffer.text))
            cut = error_offset >= len(buffer.text) - _TAIL or str(error).startswith("Unterminated string")
            if cut and buffer.read_more():
                continue
            raise OmniprepError(_invalid(source, number, json_fault(error, start))) from error
        break
    buffer.offset = end
    if isinstance(row, Reject):
        return row, end - start
    brackets = buffer.text.count("[", start, end) + buffer.text.count("{", start, end)
    surrogates = _SURROGATE.search(buffer.text, start, end) is not None
    nan = buffer.text.find("NaN", start, end) >= 0
    return _check(row, brackets, surrogates=surrogates, nan=nan, lines=not array), end - start


def _end_of_value(text: str, start: int) -> int | None:
    """End of the list or object that begins at `start`, by counting brackets; None where it is too far away."""
    depth = 0
    for match in _SYNTAX.finditer(text, start, start + _END_SEARCH):
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(match.group()[0], 0)
        if depth == 0:
            return match.end()
    return None
