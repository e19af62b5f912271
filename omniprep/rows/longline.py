"""Parses a JSON line that may hold hundreds of MB of inline media, with little more memory than its values take."""

import json
import re
from collections.abc import Callable
from typing import Any

LONG_LINE = 1 << 20
"""From this length on, base64 strings are cut out of a line before it is parsed."""
_BASE64 = re.compile(rb'(?<!\\)"((?:data:[\w/.+-]{0,99};base64,)?[A-Za-z0-9+/]{4096,}={0,2})"')


def parse_line(text: bytes, loads: Callable[[str], Any] = json.loads) -> Any:
    """Parse a line in UTF-8; ValueError where it is not UTF-8 or not JSON.

    A long line is not decoded whole, which could take four bytes a character: its base64 strings are replaced by marks
    and put back into the result. Bytes are not passed to json.loads, which would guess their encoding.
    """
    spans = [match.span(1) for match in _BASE64.finditer(text)] if len(text) >= LONG_LINE else []
    if not spans:
        return loads(text.decode())
    mark = "omniprep-"
    while mark.encode() in text:
        mark += "-"
    pieces, previous_end = [], 0
    for number, (start, end) in enumerate(spans):
        pieces += [text[previous_end:start], f"{mark}{number}".encode()]
        previous_end = end
    row = loads(b"".join([*pieces, text[previous_end:]]).decode())
    values = {f"{mark}{number}": str(memoryview(text)[start:end], "ascii") for number, (start, end) in enumerate(spans)}
    return _put_back(row, values)


def _put_back(value: Any, values: dict[str, str]) -> Any:
    if isinstance(value, str):
        return values.get(value, value)
    if isinstance(value, dict):
        return {values.get(key, key): _put_back(entry, values) for key, entry in value.items()}
    return [_put_back(entry, values) for entry in value] if isinstance(value, list) else value
