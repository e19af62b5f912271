"""Applies --where to the rows of a split, one by one or as a table of Arrow has them.

Of a table the columns that the expression names are read first; the others only of row groups, files or fragments that
have a chosen row. Rows that are not chosen are `SKIPPED`, so that lines keep their numbers.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import repeat
from typing import Any

import pyarrow as pa

from omniprep.errors import OmniprepError, Reject, RejectCode
from omniprep.rows import saved
from omniprep.rows.where import Bounds, Compare, IsNull, Like, MismatchError, OneOf, Path, column_name
from omniprep.rows.where_parser import parse_where

SKIPPED = object()
"""In place of a row that is not chosen."""
MOST_NAMES = 64
"""Names of columns that are kept for the hint of an error."""
Decision = bool | Reject


class Chooser:
    """Decides for the rows of one split, and notes which columns they have."""

    def __init__(self, text: str, *, cells: bool = False) -> None:
        """`cells`: the rows are of CSV (see `Where.holds`)."""
        self.where, self._cells = parse_where(text), cells
        self.missing: set[Path] = set(self.where.paths)
        """Columns of the expression that no row or table had so far."""
        self.names: set[str] = set()
        """Some of the names of columns that there are, while any is missing."""

    def decide(self, row: Any) -> Decision:
        """Whether a row is chosen; a reject where that cannot be told, which a row that could not be read is itself."""
        if isinstance(row, Reject):
            return row
        if self.missing and isinstance(row, dict):
            self.missing = {path for path in self.missing if not _has(row, path)}
            self._note(row)
        return self._holds(row)

    def _holds(self, row: Any) -> Decision:
        try:
            return self.where.holds(row, cells=self._cells)
        except MismatchError as error:
            return Reject(RejectCode.WHERE_MISMATCH, f"--where: {error}")

    def _note(self, names: Iterable[Any]) -> None:
        if self.missing and len(self.names) < MOST_NAMES:
            self.names.update([name for name in names if isinstance(name, str)][: MOST_NAMES - len(self.names)])

    def see_schema(self, schema: pa.Schema, uri: str) -> None:
        """Note the columns of a table; OmniprepError where one is of a type that it is not compared with."""
        for leaf in self.where.leaves:
            kind = _type_at(schema, leaf.path, uri)
            if kind is not None:
                self.missing.discard(leaf.path)
                _check_type(leaf, kind, uri)
        self._note(schema.names)

    @property
    def columns(self) -> list[str]:
        """The columns of a table that the expression looks into."""
        return list(dict.fromkeys(path[0] for path in self.where.paths))

    def decisions(self, batches: Iterable[Any]) -> list[Decision]:
        """Of each row of record batches (or tables) that hold the columns of the expression, where they exist."""
        decisions: list[Decision] = []
        for batch in batches:
            if names := [name for name in self.columns if name in batch.schema.names]:
                rows = saved.table_rows(batch.select(names))
                decisions += [row if isinstance(row, Reject) else self._holds(row) for row in rows]
            else:
                decisions += [self._holds({})] * batch.num_rows
        return decisions


def picked(chooser: Chooser | None, row: Any) -> Any:
    """A row that is chosen, `SKIPPED` for one that is not, or a reject."""
    decision = True if chooser is None else chooser.decide(row)
    return row if decision is True else decision if isinstance(decision, Reject) else SKIPPED


def rows_of_table(
    chooser: Chooser | None, batches: Callable[[list[str] | None], Iterable[Any]], schema: pa.Schema, uri: str
) -> Iterator[Any]:
    """The rows of a table's part.

    Args:
        chooser: Decides for each row; None for all rows.
        batches: Gives the record batches of the part, with some columns or (None) all, in one order of rows.
        schema: Of the table.
        uri: Of the table, for messages.
    """
    if chooser is None:
        for batch in batches(None):
            yield from saved.table_rows(batch)
        return
    chooser.see_schema(schema, uri)
    names = [name for name in chooser.columns if name in schema.names]
    # Without a column of the expression only the number of rows is needed: any column gives it.
    decisions = chooser.decisions(batches(names or schema.names[:1]))
    if not any(decision is not False for decision in decisions):
        yield from repeat(SKIPPED, len(decisions))
        return
    first = 0
    for batch in batches(None):
        own = decisions[first : first + batch.num_rows]
        yield from chosen_rows(batch, own)
        first += len(own)
        del batch
    if first != len(decisions):
        raise OmniprepError(f"{uri}: was changed while it was read")


def chosen_rows(batch: Any, decisions: list[Decision]) -> Iterator[Any]:
    """The rows of a record batch, its rejects, and `SKIPPED` for the others."""
    chosen = [decision is True for decision in decisions]
    if not any(chosen):
        rows: Iterator[Any] = iter(())
    else:
        rows = saved.table_rows(batch if all(chosen) else batch.filter(pa.array(chosen)))
    for decision in decisions:
        if decision is True:
            yield next(rows)
        else:
            yield decision if isinstance(decision, Reject) else SKIPPED


def _has(row: dict[str, Any], path: Path) -> bool:
    value: Any = row
    for name in path:
        if not isinstance(value, dict) or name not in value:
            return False
        value = value[name]
    return True


def _type_at(schema: pa.Schema, path: Path, uri: str) -> pa.DataType | None:
    """Type of a column or a field of a struct; None where there is none of that name."""
    if schema.names.count(path[0]) != 1:
        return None
    kind = schema.field(path[0]).type
    for depth, name in enumerate(path[1:], 1):
        if not pa.types.is_struct(kind):
            raise OmniprepError(
                f"{uri}: --where: column {column_name(path[:depth])} is of type {kind}, so it has no field "
                f"{column_name(path[depth:])}"
            )
        if (number := kind.get_field_index(name)) < 0:
            return None
        kind = kind.field(number).type
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _check_type(leaf: Compare | OneOf | Like | IsNull, kind: pa.DataType, uri: str) -> None:
    """Refuse a comparison that would reject every row of a table."""
    types = pa.types
    if isinstance(leaf, IsNull) or types.is_null(kind):
        return
    literals = leaf.literals if isinstance(leaf, OneOf) else (leaf.pattern if isinstance(leaf, Like) else leaf.literal,)
    for literal in literals:
        if isinstance(literal, bool):
            fits = types.is_boolean(kind)
        elif isinstance(literal, str):
            fits = types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
            fits = fits or (not isinstance(leaf, Like) and (types.is_date(kind) or types.is_timestamp(kind)))
        else:
            fits = types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind)
        if not fits:
            raise OmniprepError(
                f"{uri}: --where: column {column_name(leaf.path)} is of type {kind}, which cannot be compared with "
                f"{literal!r}"
            )


def parquet_bounds(metadata: Any, group: int) -> Callable[[Path], Bounds | None]:
    """What the statistics of a row group of a `pyarrow.parquet.FileMetaData` say of a column."""
    row_group = metadata.row_group(group)
    numbers: dict[str, list[int]] = {}
    for number in range(row_group.num_columns):
        numbers.setdefault(row_group.column(number).path_in_schema, []).append(number)

    def bounds(path: Path) -> Bounds | None:
        # A column "a.b" and a field b of a struct a have the same name here: of two nothing is said.
        found = numbers.get(".".join(path), [])
        if len(found) != 1 or metadata.schema.column(found[0]).max_repetition_level:
            return None
        statistics = row_group.column(found[0]).statistics
        if statistics is None:
            return None
        counted = statistics.has_null_count
        if counted and statistics.null_count == row_group.num_rows:
            return Bounds(None, None, only_nulls=True)
        if not statistics.has_min_max:
            return None
        return Bounds(statistics.min, statistics.max, has_nulls=not counted or statistics.null_count > 0)

    return bounds
