r"""Text of users for a terminal: whatever would move the cursor, color the line or turn its order around is escaped.

Rows, file names, reject messages and decoded tokens come from strangers; a terminal obeys what is printed. Everything
of theirs that is printed goes through `printable` (`printable_json` for JSON). An escape sequence is then shown
as `\x1b[2J`, and a name stays on one line.
"""

import json
import logging
import re
import sys
import warnings
from typing import Any

# Control characters (C0, DEL, C1), line and paragraph separators, lone surrogates (names of files that are not UTF-8),
# and the marks that turn the direction of text around (Trojan Source, CVE-2021-42574).
_UNSAFE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff\ufff9-\ufffb\ud800-\udfff]"
)
_SHORT = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}


def printable(text: object, *, lines: bool = False) -> str:
    r"""Text that a terminal shows and does not obey, escaped as Python writes it; `lines` leaves line ends and tabs."""

    def escaped(match: re.Match[str]) -> str:
        character = match.group()
        if lines and character in "\n\t":
            return character
        code = ord(character)
        return _SHORT.get(character) or (f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}")

    return _UNSAFE.sub(escaped, str(text))


def escape_json(text: str) -> str:
    """JSON text that is safe to print: the same characters as JSON's own escapes, so it reads back equal."""
    return _UNSAFE.sub(lambda match: "\n" if match.group() == "\n" else f"\\u{ord(match.group()):04x}", text)


def printable_json(value: Any, *, indent: int | None = None) -> str:
    """A value as JSON text that is safe to print."""
    return escape_json(json.dumps(value, ensure_ascii=False, indent=indent))


def counted(count: int, one: str, many: str = "") -> str:
    """A number with its noun, such as "1 row" or "1,200 rows"; `many` is `one` with an s by default."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def say(text: object, *, error: bool = False) -> None:
    """Print one line on standard output (or standard error), whatever stands in it."""
    print(printable(text), file=sys.stderr if error else sys.stdout, flush=error)


class _PrintableRecord(logging.LogRecord):
    def getMessage(self) -> str:
        return printable(super().getMessage(), lines=True)


def _printable_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    return printable(_format_warning(message, category, filename, lineno, line), lines=True)


_format_warning = warnings.formatwarning


def quote_libraries() -> None:
    """Escape what libraries print by themselves too: their warnings and log lines quote data."""
    logging.setLogRecordFactory(_PrintableRecord)
    warnings.formatwarning = _printable_warning
