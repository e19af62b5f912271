"""JSON of a line that may hold hundreds of MB of inline media, in little more memory than its values take."""

import json
import re
from collections.abc import Callable
from typing import Any

__all__ = ["parse_line"]

LONG_LINE = 1 << 20
"""Base64 texts are taken out of lines of this length before they are parsed."""
_BASE64 = re.compile(rb'(?<!\\)"((?:data:[\w/.+-]{0,99};base64,)?[A-Za-z0-9+/]{4096,}={0,2})"')


def parse_line(text: bytes, loads: Callable[[str], Any] = json.loads) -> Any:
    """What `loads` gives of a line in UTF-8, without its copies of a long line (one may take four bytes a letter).

    json.loads itself would take bytes too, but guesses their encoding: a line of a UTF-16 file becomes other letters.

    Args:
        text: The line.
        loads: What parses JSON text.

    Raises:
        ValueError: It is not UTF-8, or not JSON.
    """
    found = [match.span(1) for match in _BASE64.finditer(text)] if len(text) >= LONG_LINE else []
    if not found:
        return loads(text.decode())
    mark = "omniprep-"
    while mark.encode() in text:
        mark += "-"
    short, at = [], 0
    for number, (start, end) in enumerate(found):
        short += [text[at:start], f"{mark}{number}".encode()]
        at = end
    row = loads(b"".join([*short, text[at:]]).decode())
    values = {f"{mark}{number}": str(memoryview(text)[start:end], "ascii") for number, (start, end) in enumerate(found)}
    return _put_back(row, values)


def _put_back(value: Any, values: dict[str, str]) -> Any:
    if isinstance(value, str):
        return values.get(value, value)
    if isinstance(value, dict):
        return {values.get(key, key): _put_back(entry, values) for key, entry in value.items()}
    return [_put_back(entry, values) for entry in value] if isinstance(value, list) else value
