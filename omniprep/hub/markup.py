r"""Text of others in a card of the Hub: YAML that reads back equal, and Markdown in which it is shown and never obeyed.

Names of inputs, columns, models and codes come from whoever made the data. In a card they stand in inline code and in
tables alone. Where a renderer might still take a letter of them for markup (a backtick ends the code, a pipe the cell,
an angle bracket may begin a tag), and where a letter is not printed or turns the line around, its escape is written
instead, as Python writes it: ` becomes \x60.
"""

import json
import re
import unicodedata
from typing import Any

import yaml

__all__ = ["as_code", "as_json_block", "front_matter", "hub_name", "repository_name"]

LONGEST = 300
"""Letters of a text that are shown: names of files are shorter, and a table with longer ones cannot be read."""
_MARKUP = frozenset("`|<>")
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)


def as_code(text: object) -> str:
    """A text as inline code, on one line: safe in a paragraph, a list and a table cell."""
    whole = str(text)
    cut = whole if len(whole) <= LONGEST else whole[: LONGEST - 1] + "…"
    escaped = "".join(letter if _is_plain(letter) else _escape(letter) for letter in cut)
    # Inline code is not empty, and loses one space at both ends where it has them.
    return f"`{escaped}`" if escaped.strip() else "`(empty)`"


def _is_plain(letter: str) -> bool:
    # Z: separators (only the space is printed as one); C: control, format, surrogate and unassigned letters.
    return letter == " " or (letter not in _MARKUP and unicodedata.category(letter)[0] not in "ZC")


def _escape(letter: str) -> str:
    code = ord(letter)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def as_json_block(value: Any) -> str:
    """A value as a fenced block of JSON, which reads back equal. No letter in it can end the block or begin a tag."""
    text = json.dumps(value, ensure_ascii=False, indent=1)
    # Outside of strings JSON has none of these letters, and inside of them each may be written as an escape.
    safe = "".join(letter if letter == "\n" or _is_plain(letter) else _json_escape(letter) for letter in text)
    return f"```json\n{safe}\n```"


def _json_escape(letter: str) -> str:
    units = letter.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[n] << 8 | units[n + 1]:04x}" for n in range(0, len(units), 2))


def front_matter(values: dict[str, Any]) -> str:
    """The YAML head of a card, between its two marks; what is read back is what was given."""
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=False, width=1000, default_flow_style=False)
    return f"---\n{text}---\n"


def hub_name(text: object) -> str | None:
    """ORG/NAME, if the text is one; None for folders and everything else, which say nothing to others."""
    return str(text) if _HUB_NAME.fullmatch(str(text)) else None


def repository_name(repo_id: str) -> str:
    """The last part of ORG/NAME, for a heading."""
    name = repo_id.rsplit("/", 1)[-1]
    return name if re.fullmatch(r"[\w.-]+", name, re.ASCII) else as_code(name)
