"""Columns that hold a list or object as text, and values that are written as JSON text, as in the reference."""

import ast
import json
import re
from typing import Any

from omniprep.errors import Reject, RejectCode

_JSON_WORD = re.compile(r"\b(?:true|false|null|NaN|Infinity)\b")


def read_literal(text: str, name: str) -> Any:
    """Parse a column that holds a list as text (core.py default_repair_messages: ast.literal_eval).

    Raises:
        Reject: bad_message, where it is no Python literal. JSON text is one unless it has true, false or null.
    """
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        message = f"{name} is text, but not a Python literal"
        try:
            json.loads(text)
        except (ValueError, RecursionError):
            message += ", nor JSON"
        else:
            word = _JSON_WORD.search(text)
            known = f" with {word.group()}" if word else ""
            message += f": it is JSON text{known}, which the reference does not read; store a list instead of its text"
        raise Reject(RejectCode.BAD_MESSAGE, message) from error


def json_text(value: Any, code: RejectCode, name: str) -> str:
    """Write a value as JSON, as the reference does; rejects with `code` what has no JSON form."""
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError) as error:
        raise Reject(code, f"{name} cannot be written as JSON: {error}") from error


def parse_json(text: Any) -> Any:
    """Parse text as JSON, else as a Python literal, else None; a value that is not text is returned (base.py
    _parse_json).

    Raises:
        Reject: bad_tools, for a number of more than 4,300 digits, at which the reference fails too.
    """
    if not isinstance(text, str):
        return text
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        try:
            return ast.literal_eval(text)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            return None
    except ValueError as error:
        raise Reject(RejectCode.BAD_TOOLS, f"JSON text that cannot be read: {error}") from error
