"""Reads the text of --where: sqlglot parses it as SQL, and what is not of the subset of rows/where.py is refused."""

import re
from functools import lru_cache
from typing import Any

from omniprep.errors import UsageError
from omniprep.rows.where import NUMBER, Compare, IsNull, Joined, Like, Literal, Node, Not, OneOf, Path, Where

_FORM = "write such as: lang = 'en' AND score >= 0.5 (docs/inputs.md, Choosing rows)"
MOST_LETTERS = 100_000
"""Letters of an expression; the options of a dataset may be a stranger's."""


@lru_cache(maxsize=64)
def parse_where(text: str) -> Where:
    """Parse an expression; UsageError says what in it cannot be used."""
    import sqlglot
    from sqlglot.errors import SqlglotError

    if not text.strip():
        raise UsageError(f"--where is empty; {_FORM}")
    if len(text) > MOST_LETTERS:
        raise UsageError(f"--where has {len(text):,} letters, more than {MOST_LETTERS:,}")
    try:
        statements = sqlglot.parse(text)
    except SqlglotError as error:
        reason = re.sub(r"\x1b\[\d+m", "", " ".join(str(error).split()))
        raise UsageError(
            f"--where {text!r:.200}: {reason:.200}; a column whose name is a word of SQL goes in double quotes; {_FORM}"
        ) from error
    except RecursionError as error:
        raise UsageError("--where: is nested too deeply") from error
    if len(statements) != 1 or statements[0] is None:
        raise UsageError(f"--where {text!r:.200}: is not one expression; {_FORM}")
    try:
        return Where(text, _Reading(text).node(statements[0]))
    except RecursionError as error:
        raise UsageError("--where: is nested too deeply") from error


_OPERATORS = {"EQ": "=", "NEQ": "!=", "LT": "<", "LTE": "<=", "GT": ">", "GTE": ">="}
_FLIPPED = {"=": "=", "!=": "!=", "<": ">", "<=": ">=", ">": "<", ">=": "<="}


class _Reading:
    """Turns sqlglot's tree into ours; whatever is not of the subset is refused by its text."""

    def __init__(self, text: str) -> None:
        self.text = text

    def refuse(self, part: Any, why: str) -> UsageError:
        shown = part.sql() if hasattr(part, "sql") else str(part)
        return UsageError(f"--where {self.text!r:.200}: {shown[:100]}: {why}; {_FORM}")

    def node(self, part: Any) -> Node:
        # An argument that is set and not looked at would change the meaning silently, such as the `negate` of a LIKE.
        kind = type(part).__name__
        arguments = {name for name, value in part.args.items() if value not in (None, False, [])}
        if kind == "Paren" and arguments == {"this"}:
            return self.node(part.this)
        if kind in ("And", "Or") and arguments == {"this", "expression"}:
            return self.joined(part, kind)
        if kind == "Not" and arguments == {"this"}:
            return Not(self.node(part.this))
        if kind == "Column":
            return Compare(self.path(part), "=", True)
        if kind in _OPERATORS and arguments == {"this", "expression"}:
            return self.comparison(part, _OPERATORS[kind])
        if kind == "Is" and arguments == {"this", "expression"}:
            if type(part.expression).__name__ != "Null":
                raise self.refuse(part, "only IS NULL and IS NOT NULL are known")
            return IsNull(self.path(part.this))
        if kind == "In" and arguments == {"this", "expressions"}:
            return OneOf(self.path(part.this), tuple(self.literal(entry) for entry in part.expressions))
        if kind == "Between" and arguments == {"this", "low", "high"}:
            path = self.path(part.this)
            low, high = (self.ordered(part, self.literal(part.args[name])) for name in ("low", "high"))
            return Joined(Compare(path, ">=", low), Compare(path, "<=", high), both=True)
        if kind == "Like" and arguments - {"negate"} == {"this", "expression"}:
            pattern = self.literal(part.expression)
            if not isinstance(pattern, str):
                raise self.refuse(part, "LIKE takes a text in single quotes")
            like = Like(self.path(part.this), pattern)
            return Not(like) if part.args.get("negate") else like
        raise self.refuse(part, "is not known here")

    def joined(self, part: Any, kind: str) -> Node:
        # sqlglot nests a long chain to the left: walked in a loop, since each level of a recursion is a stack frame.
        parts = []
        while type(part).__name__ == kind:
            parts.append(part.expression)
            part = part.this
        node = self.node(part)
        for right in reversed(parts):
            node = Joined(node, self.node(right), both=kind == "And")
        return node

    def comparison(self, part: Any, operator: str) -> Compare:
        left, right = part.this, part.expression
        if self.is_path(left) and self.is_path(right):
            hint = ""
            if type(right).__name__ == "Column" and right.this.args.get("quoted"):
                hint = f" (a text goes in single quotes: '{right.name}')"
            raise self.refuse(part, f"compares two columns; a column is compared with a literal{hint}")
        if not self.is_path(left):
            left, right, operator = right, left, _FLIPPED[operator]
        path, literal = self.path(left), self.literal(right)
        return Compare(path, operator, literal if operator in ("=", "!=") else self.ordered(part, literal))

    def ordered(self, part: Any, literal: Literal) -> Literal:
        if isinstance(literal, bool):
            raise self.refuse(part, "true and false have no order")
        return literal

    def is_path(self, part: Any) -> bool:
        return type(part).__name__ in ("Column", "Dot")

    def path(self, part: Any) -> Path:
        if type(part).__name__ == "Dot":
            return (*self.path(part.this), self.name(part.expression))
        if type(part).__name__ != "Column":
            raise self.refuse(part, "a column is expected here, by its name")
        names = [part.args.get(name) for name in ("catalog", "db", "table", "this")]
        return tuple(self.name(name) for name in names if name is not None)

    def name(self, part: Any) -> str:
        if type(part).__name__ != "Identifier":
            raise self.refuse(part, "is no name of a column")
        return str(part.this)

    def literal(self, part: Any) -> Literal:
        kind = type(part).__name__
        if kind == "Neg" and type(part.this).__name__ == "Literal" and not part.this.is_string:
            return -self.number(part.this)
        if kind == "Literal":
            return str(part.this) if part.is_string else self.number(part)
        if kind == "Boolean":
            return bool(part.this)
        if kind == "Null":
            raise self.refuse(part, "nothing equals NULL; write IS NULL or IS NOT NULL")
        raise self.refuse(part, "a literal is expected here: 'text', a number, true or false")

    def number(self, part: Any) -> int | float:
        text = str(part.this)
        if not NUMBER.fullmatch(text):
            raise self.refuse(part, "is no number")
        return int(text) if text.isdecimal() else float(text)
