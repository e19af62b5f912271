"""Cuts inputs into splits and reads the rows of a split.

A split is the unit of planning: a byte range of a .jsonl file, cut at line ends, so that many workers read one large
file; a whole compressed file or JSON array; what a module of rows/formats/ says of other inputs. A worker numbers lines
within its split; adding up the lines of the splits before gives the line of the source (`numbered` here,
`lines_before` of omniprep/compiler/output/manifest.py). A line that cannot be parsed becomes a `Reject`.
"""

import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

import numpy as np

from omniprep import io
from omniprep.errors import OmniprepError, Reject, RejectCode
from omniprep.rows.choosing import SKIPPED, Chooser, picked
from omniprep.rows.formats import format_of
from omniprep.rows.inputs import Input
from omniprep.rows.jsontext import parse_row, read_values
from omniprep.rows.opening import MAX_LINE_BYTES, find_form, next_line, open_file, open_text
from omniprep.rows.split import Split
from omniprep.rows.where import Path

SPLIT_BYTES = 16 << 20
"""Bytes of JSON lines in a split."""
_OPEN_THREADS = 16
"""Remote files whose headers are read at the same time; each costs some requests."""
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class RawRow:
    """A row as read."""

    line: int
    """Line within the split, from 0."""
    content: Any
    """The parsed row, or a `Reject`."""
    size: int
    """Bytes that it took in the file, or about as many as its values take."""


def find_splits(
    inputs: list[Input], split_bytes: int = SPLIT_BYTES, seed: int = 0, say: Callable[[str], None] = lambda text: None,
    where: str = "",
) -> list[Split]:  # fmt: skip
    """Cut inputs into splits of `split_bytes`, in input order; `say` takes a line for each draw of INPUT#N.

    `where` is the expression of --where: the splits give the rows that it chooses, and INPUT#N draws from those.
    """
    with ThreadPoolExecutor(_OPEN_THREADS) as pool:
        remote = any(not io.is_local(entry.uri or entry.source) for entry in inputs)
        each: Any = pool.map if remote else map
        by_input = list(each(lambda entry: [replace(s, where=where) for s in _splits_of(entry, split_bytes)], inputs))
        drawn = [split for entry, splits in zip(inputs, by_input, strict=True) if entry.draw for split in splits]
        counts = dict(zip(drawn, each(_count_rows, drawn), strict=True))
    by_draw: defaultdict[tuple[int, int], list[Split]] = defaultdict(list)
    for entry, splits in zip(inputs, by_input, strict=True):
        if entry.draw is not None:
            by_draw[entry.draw] += splits
    chosen = {split: rows for draw, splits in by_draw.items() for split, rows in _draw(draw, splits, counts, seed, say)}
    return [chosen.get(split, split) for splits in by_input for split in splits]


def _draw(
    draw: tuple[int, int], splits: list[Split], counts: dict[Split, int], seed: int, say: Callable[[str], None]
) -> Iterator[tuple[Split, Split]]:
    """Each split of INPUT#N, and the same split with the rows that were drawn.

    Which rows depends on the seed, the input's number on the command line, N and the number of rows; not on names, nor
    on how files are cut into splits.
    """
    number, rows = draw
    total = sum(counts[split] for split in splits)
    names = list(dict.fromkeys(split.source for split in splits)) or ["an input"]
    name = names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
    if rows > total:
        raise OmniprepError(f"{name}: #{rows} draws more rows than there are ({total})")
    order = np.sort(np.random.default_rng((seed, number)).choice(total, rows, replace=False, shuffle=False))
    say(f"{name}: {rows:,} of {total:,} rows, drawn with seed {seed}")
    first = 0
    for split in splits:
        end = first + counts[split]
        inside = order[np.searchsorted(order, first) : np.searchsorted(order, end)] - first
        yield split, replace(split, chosen=tuple(inside.tolist()))
        first = end


def _count_rows(split: Split) -> int:
    """Rows of a split: its lines that are not blank, those that cannot be parsed included; with --where those that it
    chooses.
    """
    if split.where:
        return sum(1 for _ in read_split(split))
    if split.kind == "lines":
        return sum(1 for _ in _read_lines(split, Tally(), MAX_LINE_BYTES, parse=False))
    if split.kind == "values":
        return sum(1 for _ in read_split(split))
    return format_of(split.kind).count_rows(split)


def _splits_of(entry: Input, split_bytes: int) -> Iterator[Split]:
    uri = entry.uri or entry.source
    if entry.kind not in ("jsonl", "json"):
        yield from format_of(entry.kind).splits(entry)
    else:
        form, encoding, size = find_form(uri, entry.codec, entry.kind)
        if form == "values" or entry.codec or encoding:
            yield Split(entry.source, form, 0, 0, uri, entry.base, entry.codec, encoding)
            return
        for start in range(0, size, split_bytes):
            yield Split(entry.source, "lines", start, min(start + split_bytes, size), uri, entry.base)


def fingerprint(split: Split) -> dict[str, Any]:
    """Facts that change when the input of a split does, cheap to get; empty for a dataset on the Hub."""
    return io.fingerprint(split.uri) if split.kind in ("lines", "values") else format_of(split.kind).fingerprint(split)


@dataclass(slots=True)
class Tally:
    """What `read_split` counts while it reads a split to its end."""

    lines: int = 0
    """Lines of the split, rows of a table."""
    filtered: int = 0
    """Rows that --where does not choose."""
    other_part: int = 0
    """Rows of the other dataset of --split-by, which who reads the split counts."""
    missing: tuple[Path, ...] = ()
    """Columns of --where that no row of the split has."""
    names: tuple[str, ...] = ()
    """Some of the columns that the rows have, where any is missing."""


def read_split(split: Split, tally: Tally | None = None, max_line_bytes: int = MAX_LINE_BYTES) -> Iterator[RawRow]:
    """Read the rows of a split. Blank lines are counted but are no rows, and neither are rows that --where leaves out.

    No reference to a row is kept while the next is read: with inline media a row may have hundreds of MB. A line beyond
    `max_line_bytes` becomes a reject. `tally` is filled in at the end.
    """
    tally = Tally() if tally is None else tally
    chooser = Chooser(split.where, cells=split.kind == "delimited") if split.where else None
    chosen = None if split.chosen is None else frozenset(split.chosen)
    if split.kind == "lines" and chooser is None:
        yield from _read_lines(split, tally, max_line_bytes, chosen)
        return
    lines = split.kind == "lines"
    rows = _read_lines(split, tally, max_line_bytes) if lines else _contents(split, max_line_bytes, chooser)
    number = 0
    for raw in rows:
        if chooser is not None and split.kind in ("lines", "values"):
            raw = replace(raw, content=picked(chooser, raw.content))
        if not lines:
            tally.lines = raw.line + 1
        if raw.content is SKIPPED:
            tally.filtered += 1
        else:
            number += 1
            if chosen is None or number - 1 in chosen:
                yield raw
        del raw
    if chooser is not None:
        tally.missing, tally.names = tuple(sorted(chooser.missing)), tuple(sorted(chooser.names))


def _contents(split: Split, max_line_bytes: int, chooser: Chooser | None) -> Iterator[RawRow]:
    if split.kind == "values":
        with open_text(split.uri, split.codec, split.encoding) as file:
            for line, (content, size) in enumerate(read_values(_skip_bom(file), split.uri, max_line_bytes)):
                yield RawRow(line, content, size)
                del content
        return
    for line, content in enumerate(format_of(split.kind).read_rows(split, max_line_bytes, chooser)):
        yield RawRow(line, content, _value_size(content))
        del content


def _skip_bom(file: BinaryIO) -> BinaryIO:
    """Move past a byte order mark."""
    if file.peek(len(_BOM))[: len(_BOM)] == _BOM:  # type: ignore[attr-defined]  # files of open_text are buffered
        file.read(len(_BOM))
    return file


def _value_size(value: Any) -> int:
    """About how many bytes a row takes, so that chunks of rows with inline media stay small."""
    if isinstance(value, str | bytes):
        return len(value)
    if isinstance(value, dict):
        return sum(map(_value_size, value.values()))
    return sum(map(_value_size, value)) if isinstance(value, list) else 8


def numbered(
    splits: Iterable[Split], wanted: Callable[[range], bool] | None = None, max_line_bytes: int = MAX_LINE_BYTES
) -> Iterator[tuple[Split, int, RawRow]]:
    """The rows of splits with their lines in the source, from 1; splits without a `wanted` line are counted alone."""
    before = Counter[str]()
    for split in splits:
        first = before[split.source] + 1
        lines: list[int] = []
        if wanted is not None and split.in_ranges:
            lines.append(count_lines(split))
        if not lines or (wanted is not None and wanted(range(first, first + lines[0]))):
            tally = Tally()
            for raw in read_split(split, tally, max_line_bytes):
                yield split, first + raw.line, raw
            lines = [tally.lines]
        before[split.source] += lines[0]


def count_lines(split: Split) -> int:
    """Lines of a split of JSON lines, rows of any other; the next split's numbers begin behind them."""
    if not split.in_ranges:
        tally = Tally()
        for _ in read_split(split, tally):
            pass
        return tally.lines
    with open_file(split.uri) as file:
        start = _first_line(file, split)
        file.seek(start)
        # One line begins at `start`, and one behind each line end except at the split's last byte.
        lines, left = int(start < split.end), split.end - 1 - start
        while left > 0 and (block := file.read(min(left, 8 << 20))):
            lines += block.count(b"\n")
            left -= len(block)
        return lines


def _first_line(file: BinaryIO, split: Split) -> int:
    """Offset of the first line that begins in a byte range; the range's end where none does.

    A line belongs to the range that holds its first byte. The search ends with the range, since a line of gigabytes
    would otherwise be read once for each range that it crosses.
    """
    if split.start == 0:
        return 0
    offset = split.start - 1
    file.seek(offset)
    while offset < split.end and (block := file.readline(min(1 << 20, split.end - offset))):
        offset += len(block)
        if block.endswith(b"\n"):
            return offset
    return split.end


def _read_lines(
    split: Split, tally: Tally, max_line_bytes: int, chosen: frozenset[int] | None = None, *, parse: bool = True,
) -> Iterator[RawRow]:  # fmt: skip
    """Rows of JSON lines: the `chosen` ones, or all; without `parse` they have no content."""
    number = 0
    with open_text(split.uri, split.codec, split.encoding) as file:
        offset, end = 0, sys.maxsize
        if split.in_ranges:
            offset, end = _first_line(file, split), split.end
            file.seek(offset)
        line = 0
        while offset < end:
            text, size = next_line(file, max_line_bytes)
            if not size:
                break
            offset += size
            row = None
            if text is None or not _is_blank(text):
                if chosen is None or number in chosen:
                    row = _parse(line, text, size, max_line_bytes) if parse else RawRow(line, None, size)
                number += 1
            del text  # freed before the row is planned: with inline media it may have hundreds of MB
            line += 1
            if row is not None:
                yield row
                del row
        tally.lines = line


def _is_blank(text: bytes) -> bool:
    return text.isspace() or (text.startswith(_BOM) and not text[len(_BOM) :].strip())


def _parse(line: int, text: bytes | None, size: int, max_line_bytes: int) -> RawRow:
    if text is None:
        message = f"the line has {size:,} bytes, the limit is {max_line_bytes:,} (--max-line-bytes)"
        return RawRow(line, Reject(RejectCode.LINE_TOO_LONG, message), 0)
    # Concatenated files have a byte order mark before a line in the middle.
    return RawRow(line, parse_row(text.removeprefix(_BOM)), size)
