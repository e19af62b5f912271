"""Says what is wrong with text that is no JSON, in the words of who wrote it: the usual slips have a line each."""

import json
import re

_SHOWN = 24
"""Characters of a line that are quoted: enough to know it again."""
_PYTHON_WORD = re.compile(r"(True|False|None)\b")
_WRITE_JSON = "write rows with json.dumps"


def json_fault(error: ValueError, start: int | None = None) -> str:
    """What a JSON decoder's error means, and where: "column 12: a single quote, where JSON has double ones".

    Args:
        error: What the decoder raised.
        start: Where an element of an array begins in the text that was decoded; None: the text is a line.
    """
    if not isinstance(error, json.JSONDecodeError):
        return str(error)
    text, offset = error.doc[start or 0 :], max(error.pos - (start or 0), 0)
    cause = _cause(text, offset, error.msg, "line" if start is None else "element")
    return f"{'column' if start is None else 'character'} {offset + 1}: {cause}"


def _cause(text: str, offset: int, message: str, what: str) -> str:
    before, after = text[:offset].rstrip(), text[offset:].lstrip()
    if "\0" in text:
        return f"{_lower(message)}; the {what} holds zero bytes, as UTF-16 text does"
    if message.startswith("Unterminated string"):
        line_end = ", or a line end not written as \\n" if what == "line" else ""
        return f"a text begins that does not end in this {what}; was the file cut{line_end}?"
    if not after:
        return f"the {what} ends in the middle of a value; was the file cut?"
    if not before and after[0] not in "{[\"'":
        after = after.rstrip()
        table = "; a table of columns is read as .csv or .tsv" if "," in after or "\t" in after else ""
        return f"no JSON: the {what} begins with {after[:_SHOWN]!r}{table}"
    if after[0] == "'":
        return f"a single quote, where JSON has double ones; {_WRITE_JSON}"
    # Python 3.13 points at the comma, older ones at the bracket.
    if (before.endswith(",") and after[0] in "}]") or re.match(r",\s*[}\]]", after):
        return "a comma before a closing bracket; remove it"
    if word := _PYTHON_WORD.match(after):
        return f"Python's {word[1]}, where JSON has true, false or null; {_WRITE_JSON}"
    if message == "Extra data":
        comma = after[0] == "," and not after[1:].strip()
        return (
            "a comma follows the object; remove it" if comma else "more follows the object; one object a line is needed"
        )
    if message.startswith("Invalid control character"):
        return "a tab or other control character in a text; JSON writes it as \\t or \\u0009"
    if message.startswith("Invalid \\"):
        return "a backslash that escapes nothing; JSON writes a backslash as \\\\"
    return _lower(message)


def _lower(message: str) -> str:
    return message[:1].lower() + message[1:]
