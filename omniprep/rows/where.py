"""The meaning of --where: which rows of the inputs are read, by an expression on their columns.

A subset of SQL (rows/where_parser.py reads its text): comparisons of a column with a literal (=, !=, <>, <, <=, >, >=,
BETWEEN, IN, LIKE, IS NULL; a column of true and false also alone), joined by AND, OR, NOT and parentheses. What it
means is defined here and not left to the library of a format, so that a row is chosen or not whatever file it lies in;
docs/inputs.md states it. A row is chosen where the expression is true: as in SQL a comparison with a null is neither
true nor false.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from functools import lru_cache
from typing import Any

Path = tuple[str, ...]
"""A column, and the fields of structs (objects) that lead into it."""
Literal = str | bool | int | float
Outcomes = frozenset[bool | None]
"""What a part of an expression may be for rows of which only bounds are known: True, False, None (null)."""
ANY: Outcomes = frozenset({True, False, None})
NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")
"""A number as a literal or a cell of CSV writes it."""


class MismatchError(Exception):
    """A value is of another type than what it is compared with."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """What is known of a column in many rows: least and greatest value (not null), and which nulls there may be."""

    low: Any
    high: Any
    has_nulls: bool = True
    """False where no value is null."""
    only_nulls: bool = False


@dataclass(frozen=True, slots=True)
class Compare:
    """`path OPERATOR literal`."""

    path: Path
    operator: str
    literal: Literal


@dataclass(frozen=True, slots=True)
class OneOf:
    """`path IN (literals)`."""

    path: Path
    literals: tuple[Literal, ...]


@dataclass(frozen=True, slots=True)
class Like:
    """`path LIKE pattern`."""

    path: Path
    pattern: str


@dataclass(frozen=True, slots=True)
class IsNull:
    """`path IS NULL`."""

    path: Path


@dataclass(frozen=True, slots=True)
class Not:
    """`NOT part`."""

    part: "Node"


@dataclass(frozen=True, slots=True)
class Joined:
    """`left AND right`, or with `OR`."""

    left: "Node"
    right: "Node"
    both: bool


Node = Compare | OneOf | Like | IsNull | Not | Joined
Leaf = Compare | OneOf | Like | IsNull


@dataclass(frozen=True)
class Where:
    """A parsed expression."""

    text: str
    root: Node

    @property
    def leaves(self) -> list[Leaf]:
        """Its comparisons, from left to right."""
        return list(_leaves(self.root))

    @property
    def paths(self) -> list[Path]:
        """The columns that it names, each once."""
        return list(dict.fromkeys(leaf.path for leaf in self.leaves))

    def holds(self, row: Any, *, cells: bool = False) -> bool:
        """Whether a row is chosen; MismatchError where a comparison is of two types.

        Args:
            row: The row as read. One that is no object has no columns: all of them are null.
            cells: The values are cells of CSV, which have no types: a comparison says what its cell is read as.
        """
        return _evaluate(self.root, row if isinstance(row, dict) else {}, cells) is True

    def may_hold(self, bounds: Callable[[Path], Bounds | None]) -> bool:
        """Whether it may be true for any of many rows, of which `bounds` tells what is known of a column."""
        return True in _outcomes(self.root, bounds)


def _leaves(node: Node) -> Iterator[Leaf]:
    if isinstance(node, Not):
        yield from _leaves(node.part)
    elif isinstance(node, Joined):
        yield from _leaves(node.left)
        yield from _leaves(node.right)
    else:
        yield node


def column_name(path: Path) -> str:
    """A column as an expression names it."""
    return ".".join(name if re.fullmatch(r"\w+", name) else f'"{name}"' for name in path)


# One row


def _evaluate(node: Node, row: dict[str, Any], cells: bool) -> bool | None:
    if isinstance(node, Not):
        result = _evaluate(node.part, row, cells)
        return None if result is None else not result
    if isinstance(node, Joined):
        left = _evaluate(node.left, row, cells)
        # The right side is not looked at where the left decides, so kind = 'a' AND score > 1 may guard a type.
        if left is (not node.both):
            return left
        right = _evaluate(node.right, row, cells)
        if right is (not node.both):
            return right
        return None if left is None or right is None else node.both
    value = _value(row, node.path)
    if isinstance(node, IsNull):
        return value is None
    return None if value is None else _compare_leaf(node, value, cells)


def _value(row: dict[str, Any], path: Path) -> Any:
    value: Any = row
    for depth, name in enumerate(path):
        if value is None:
            return None
        if not isinstance(value, dict):
            raise MismatchError(
                f"column {column_name(path[:depth])} is {kind_of(value)}: it has no field {column_name(path[depth:])}"
            )
        value = value.get(name)
    return value


def _compare_leaf(node: Compare | OneOf | Like, value: Any, cells: bool) -> bool:
    if isinstance(node, Like):
        if not isinstance(value, str):
            raise MismatchError(f"column {column_name(node.path)} is {kind_of(value)}, LIKE takes a text")
        return _pattern(node.pattern).fullmatch(value) is not None
    if isinstance(node, OneOf):
        # Every literal is looked at, so that a wrong type is not found by the order of the list.
        pairs = [comparable(node.path, value, literal, cells) for literal in node.literals]
        return any(own == other for own, other in pairs)
    own, other = comparable(node.path, value, node.literal, cells)
    return _order(own, node.operator, other)


def _order(own: Any, operator: str, other: Any) -> bool:
    if operator == "=":
        return bool(own == other)
    if operator == "!=":
        return bool(own != other)
    if operator in ("<", "<="):
        return bool(own < other or (operator == "<=" and own == other))
    return bool(own > other or (operator == ">=" and own == other))


@lru_cache(maxsize=64)
def _pattern(like: str) -> re.Pattern[str]:
    """LIKE: % for any letters, _ for one; there is no way to escape them.

    What stands between two % is taken where it is found first and not looked for again (an atomic group): if any place
    lets the rest match, the first does. Tried anew at each place, `%a%a%a%b` on a text of 2,000 letters took minutes.
    """
    first, *others = (
        "".join("." if letter == "_" else re.escape(letter) for letter in part) for part in like.split("%")
    )
    if not others:
        return re.compile(first, re.DOTALL)
    *between, last = others
    middle = "".join(f"(?>.*?{part})" for part in between if part)
    return re.compile(f"{first}{middle}.*{last}", re.DOTALL)


def kind_of(value: Any) -> str:
    """What a value is, for messages."""
    kinds: tuple[tuple[Any, str], ...] = (
        (bool, "true or false"),
        (str, "a text"),
        (int | float | Decimal, "a number"),
        (datetime, "a time"),
        (date, "a day"),
        (dict, "an object"),
        (list, "a list"),
        (bytes, "bytes"),
    )
    return next((name for kind, name in kinds if isinstance(value, kind)), f"of type {type(value).__name__}")


def comparable(path: Path, value: Any, literal: Literal, cells: bool) -> tuple[Any, Any]:
    """A value that is not null and a literal, as two values of one type."""
    if cells and isinstance(value, str) and not isinstance(literal, str):
        value = _typed_cell(value, literal)
    same_kind = isinstance(value, bool) == isinstance(literal, bool)
    if isinstance(value, Decimal) and isinstance(literal, int | float) and same_kind:
        return value, Decimal(repr(literal))  # as it was written: the float nearest to 0.1 is not 0.1
    if isinstance(value, int | float) and isinstance(literal, int | float) and same_kind:
        return value, literal
    if isinstance(value, str) and isinstance(literal, str):
        return value, literal
    if isinstance(value, date) and isinstance(literal, str):
        return value, _time_like(path, value, literal)
    raise MismatchError(
        f"column {column_name(path)} is {kind_of(value)}, it is compared with {kind_of(literal)} ({literal!r})"
    )


def _typed_cell(cell: str, literal: Literal) -> Any:
    """A cell of CSV as what it is compared with; the cell itself where it is none."""
    if isinstance(literal, bool):
        return {"true": True, "false": False}.get(cell.lower(), cell)
    if not NUMBER.fullmatch(cell):
        return cell
    return int(cell) if re.fullmatch(r"[+-]?\d+", cell) else float(cell)


def _time_like(path: Path, value: date, literal: str) -> date:
    """The literal as a day or a time, as the value is; a time without zone is UTC where the value has a zone."""
    where = f"column {column_name(path)} is {kind_of(value)}, it is compared with {literal!r}"
    try:
        if not isinstance(value, datetime):
            return date.fromisoformat(literal)
        time = datetime.fromisoformat(literal)
    except ValueError as error:
        form = "YYYY-MM-DDTHH:MM:SS" if isinstance(value, datetime) else "YYYY-MM-DD"
        raise MismatchError(f"{where}, which is not of the form {form}") from error
    if value.tzinfo is not None:
        return time if time.tzinfo else time.replace(tzinfo=UTC)
    if time.tzinfo is not None:
        raise MismatchError(f"{where}, which has a time zone; the column has none")
    return time


# Many rows, of which only bounds are known


def _outcomes(node: Node, bounds: Callable[[Path], Bounds | None]) -> Outcomes:
    if isinstance(node, Not):
        return frozenset(None if one is None else not one for one in _outcomes(node.part, bounds))
    if isinstance(node, Joined):
        left, right = _outcomes(node.left, bounds), _outcomes(node.right, bounds)
        return frozenset(_joined(one, other, node.both) for one in left for other in right)
    known = bounds(node.path)
    if known is None:
        return frozenset({True, False}) if isinstance(node, IsNull) else ANY
    nulls = known.has_nulls or known.only_nulls
    if isinstance(node, IsNull):
        return frozenset(([True] if nulls else []) + ([] if known.only_nulls else [False]))
    if known.only_nulls:
        return frozenset({None})
    try:
        found = _of_bounds(node, known)
    except (MismatchError, TypeError):
        return ANY
    return frozenset(found | ({None} if nulls else set()))


def _joined(left: bool | None, right: bool | None, both: bool) -> bool | None:
    if left is (not both) or right is (not both):
        return not both
    return None if left is None or right is None else both


def _of_bounds(node: Compare | OneOf | Like, known: Bounds) -> set[bool | None]:
    if isinstance(node, Like) or known.low is None or known.high is None:
        return {True, False}
    literals = node.literals if isinstance(node, OneOf) else (node.literal,)
    equal: set[bool | None] = {False}
    results: set[bool | None] = set()
    for literal in literals:
        low, other = comparable(node.path, known.low, literal, False)
        high, other_high = comparable(node.path, known.high, literal, False)
        if isinstance(node, OneOf) or node.operator in ("=", "!="):
            if low <= other and other_high <= high:
                equal.add(True)
                if low == other and high == other_high:
                    equal.discard(False)
            continue
        # An order is true for the one end or the other, or for neither.
        results |= {_order(low, node.operator, other), _order(high, node.operator, other_high)}
    if isinstance(node, OneOf) or node.operator in ("=", "!="):
        results = equal if isinstance(node, OneOf) or node.operator == "=" else {not one for one in equal}
    if isinstance(known.low, float):
        # Statistics leave out NaN, which is unequal to everything and in no order to anything.
        results.add(isinstance(node, Compare) and node.operator == "!=")
    return results
