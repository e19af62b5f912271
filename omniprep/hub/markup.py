r"""Untrusted text in a card of the Hub: YAML that reads back equal, and Markdown that shows it and never obeys it.

Names of inputs, columns, models and codes come from whoever made the data. In a card they appear only as inline code
and in tables. A character that a renderer might take for markup (a backtick ends the code, a pipe the cell, an angle
bracket may begin a tag), that is not printed or that reverses the line is written as Python escapes it: ` becomes \x60.
"""

import json
import re
import unicodedata
from typing import Any

import yaml

LONGEST = 300
"""Characters of a text that are shown: names of files are shorter, and a table with longer ones cannot be read."""
_MARKUP = frozenset("`|<>")
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)


def as_code(text: object) -> str:
    """A text as inline code, on one line: safe in a paragraph, a list and a table cell."""
    whole = str(text)
    cut = whole if len(whole) <= LONGEST else whole[: LONGEST - 1] + "…"
    escaped = "".join(char if _is_plain(char) else _escape(char) for char in cut)
    # Markdown takes empty inline code for text, and strips a space at both ends.
    return f"`{escaped}`" if escaped.strip() else "`(empty)`"


def _is_plain(char: str) -> bool:
    # Z: separators (only the space is printed as one); C: control, format, surrogate and unassigned characters.
    return char == " " or (char not in _MARKUP and unicodedata.category(char)[0] not in "ZC")


def _escape(char: str) -> str:
    code = ord(char)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def as_json_block(value: Any) -> str:
    """A value as a fenced block of JSON, which reads back equal and can neither end the block nor begin a tag."""
    text = json.dumps(value, ensure_ascii=False, indent=1)
    # JSON has none of these characters outside of strings, and inside of strings each may be written as an escape.
    safe = "".join(char if char == "\n" or _is_plain(char) else _json_escape(char) for char in text)
    return f"```json\n{safe}\n```"


def _json_escape(char: str) -> str:
    units = char.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[n] << 8 | units[n + 1]:04x}" for n in range(0, len(units), 2))


def front_matter(values: dict[str, Any]) -> str:
    """The YAML head of a card between its two marks; it reads back equal."""
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=False, width=1000, default_flow_style=False)
    return f"---\n{text}---\n"


def hub_name(text: object) -> str | None:
    """ORG/NAME, if the text is one; None for folders and everything else, which mean nothing to others."""
    return str(text) if _HUB_NAME.fullmatch(str(text)) else None


def repository_name(repo_id: str) -> str:
    """The last part of ORG/NAME, for a heading."""
    name = repo_id.rsplit("/", 1)[-1]
    return name if re.fullmatch(r"[\w.-]+", name, re.ASCII) else as_code(name)
