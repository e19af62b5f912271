"""Hugging Face datasets, saved or on the Hub: ranges of `HF_ROWS` rows are splits."""

from collections.abc import Iterator
from typing import Any

from omniprep.rows import saved
from omniprep.rows.choosing import Chooser, chosen_rows
from omniprep.rows.inputs import Input
from omniprep.rows.split import Split

HF_ROWS = 2000
"""Rows of a Hugging Face dataset in a split."""


def splits(entry: Input) -> Iterator[Split]:
    """As `Format.splits`."""
    uri = entry.uri or entry.source
    rows = saved.count_rows(uri, entry.split)
    for start in range(0, rows, HF_ROWS):
        yield Split(entry.source, "hf", start, min(start + HF_ROWS, rows), uri, entry.base, name=entry.split)


def count_rows(split: Split) -> int:
    """As `Format.count_rows`."""
    return split.end - split.start


def read_rows(split: Split, max_row_bytes: int, chooser: Chooser | None = None) -> Iterator[Any]:
    """As `Format.read_rows`."""
    for table in saved.read_tables(split.uri, split.name, split.start, split.end):
        if chooser is None:
            yield from saved.table_rows(table)
        else:  # the file is mapped: columns that are not looked at are not read
            chooser.see_schema(table.schema, split.uri)
            yield from chosen_rows(table, chooser.decisions([table]))


def fingerprint(split: Split) -> dict[str, Any]:
    """As `Format.fingerprint`; empty for a dataset on the Hub."""
    return {} if saved.is_repository(split.uri) else saved.fingerprint(split.uri)
