"""Untrusted JSON (and YAML) as a frozen record of declared types, or one error that names the field.

A value is never converted: a number is not read from text, 1.0 is not an integer, true is not a number. Keys that the
record does not declare are dropped.
"""

import dataclasses
import math
import types
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from omniprep.errors import DamagedDataError, UsageError

MOST = 1 << 63
"""Integers are below this, as in the tables beside the manifest: larger ones would overflow where they are used."""
Record = TypeVar("Record")


def typed_record(cls: type[Record], content: Any, where: str) -> Record:
    """A dataclass from a JSON object.

    Args:
        cls: A dataclass; its fields are int, float, str, bool, Literal, dataclasses, tuples and mappings of these, or
            `X | None`; Any, which the class checks itself. Fields without a default must be there.
        content: The parsed JSON.
        where: File and key, for messages: "packed/manifest.json: config".

    Raises:
        DamagedDataError: Not an object; a field is absent, of another type, or refused by the class itself.
    """
    if not isinstance(content, dict):
        raise DamagedDataError(f"{where}: expected an object, found {shown(content)}")
    hints = _type_hints(cls)  # type: ignore[arg-type]  # mypy takes no class for hashable
    values: dict[str, Any] = {}
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]  # always a dataclass
        if field.name in content:
            values[field.name] = _checked(hints[field.name], content[field.name], f"{where}: {field.name}")
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise DamagedDataError(f"{where}: {field.name!r} is absent")
    try:
        return cls(**values)
    except UsageError as error:  # refused by the class itself, such as a negative length
        raise DamagedDataError(f"{where}: {error}") from error


@lru_cache(maxsize=64)
def _type_hints(cls: type[Any]) -> dict[str, Any]:
    """The types of a record's fields; get_type_hints evaluates each anew, 30 µs a field."""
    return get_type_hints(cls)


def _checked(hint: Any, value: Any, where: str) -> Any:
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if value is None:
            return None
        return _checked(next(part for part in args if part is not type(None)), value, where)
    if origin is Literal:
        if not isinstance(value, str) or value not in args:
            raise DamagedDataError(f"{where}: expected one of {', '.join(args)}, found {shown(value)}")
        return value
    if origin is tuple:
        if not isinstance(value, list):
            raise DamagedDataError(f"{where}: expected a list, found {shown(value)}")
        return tuple(_checked(args[0], item, f"{where}[{number}]") for number, item in enumerate(value))
    if hint is Any:
        return value
    if origin in (Mapping, dict):
        if not isinstance(value, dict):
            raise DamagedDataError(f"{where}: expected an object, found {shown(value)}")
        items = {_text(name, where): _checked(args[1], item, f"{where}: {name:.80}") for name, item in value.items()}
        return items
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return typed_record(hint, value, where)
    if hint is str:
        return _text(value, where)
    if hint is bool:
        good, what = isinstance(value, bool), "true or false"
    elif hint is int:
        good = isinstance(value, int) and not isinstance(value, bool) and -MOST < value < MOST
        what = "a whole number of 64 bits"
    else:
        assert hint is float, f"{where}: no rule for {hint}"
        good = isinstance(value, int | float) and not isinstance(value, bool) and _finite(value)
        what = "a finite number"
    if not good:
        raise DamagedDataError(f"{where}: expected {what}, found {shown(value)}")
    return value


def _finite(value: int | float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond the largest float
        return False


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise DamagedDataError(f"{where}: expected text, found {shown(value)}")
    try:
        value.encode()
    except UnicodeEncodeError as error:  # a lone surrogate, which cannot be encoded
        raise DamagedDataError(f"{where}: text that is not valid Unicode: {shown(value)}") from error
    return value


def shown(value: Any) -> str:
    """A value for a message: printable ASCII, at most 80 characters of it."""
    try:
        text = ascii(value)
    except (RecursionError, ValueError):  # ValueError: an integer of more digits than Python prints
        return f"a {type(value).__name__}"
    return text if len(text) <= 80 else text[:77] + "..."


def parse_json(data: bytes, where: str) -> Any:
    """JSON in UTF-8; DamagedDataError for anything else, nesting too deep and numbers of too many digits."""
    import json

    try:
        return json.loads(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise DamagedDataError(f"{where}: not UTF-8 (byte {error.start})") from error
    except RecursionError as error:
        raise DamagedDataError(f"{where}: not valid JSON: nested too deep") from error
    except ValueError as error:
        raise DamagedDataError(f"{where}: not valid JSON: {error}") from error


def parse_yaml(data: bytes, where: str) -> Any:
    """YAML in UTF-8, of plain values. Aliases are refused: a few nested lines of them expand to gigabytes."""
    import yaml

    class PlainLoader(yaml.SafeLoader):
        def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
            if self.check_event(yaml.AliasEvent):
                raise yaml.YAMLError("aliases (*NAME) are not read: write the value out")
            return super().compose_node(parent, index)

    try:
        return PlainLoader(data.decode("utf-8")).get_single_data()
    except UnicodeDecodeError as error:
        raise DamagedDataError(f"{where}: not UTF-8 (byte {error.start})") from error
    except RecursionError as error:
        raise DamagedDataError(f"{where}: not valid YAML: nested too deep") from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: February 31, a number of 5,000 digits
        raise DamagedDataError(f"{where}: not valid YAML: {' '.join(str(error).split())[:200]}") from error
