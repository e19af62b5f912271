"""The plan on disk: an Arrow file a split, columnar, read back row by row without loading it.

A record batch holds a chunk of rows. Tokens stand there before expansion, one placeholder an item, so the plan of a
picture row takes a few hundred bytes; bytes that came inline (base64, parquet) are kept, since no path leads to them
again.
"""

import json
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from omniprep import io
from omniprep.compiler.plan.probe import PlannedItem
from omniprep.compiler.plan.rows import PlannedRow
from omniprep.compiler.run.tasks import plan_path
from omniprep.errors import DamagedDataError, Reject
from omniprep.families.registry import Item, as_json, from_json
from omniprep.media.source import Source
from omniprep.modalities import MEDIA_COLUMNS, MODALITIES

_SOURCE = pa.struct([("path", pa.string()), ("uri", pa.string()), ("data", pa.large_binary()), ("root", pa.string())])
_ITEM = pa.struct(
    [
        ("modality", pa.int8()),
        ("tokens", pa.int32()),
        ("audio", pa.int32()),
        ("meta", pa.string()),
        ("sources", pa.list_(_SOURCE)),
    ]
)
SCHEMA = pa.schema(
    [
        ("line", pa.int64()),
        ("length", pa.int32()),
        ("code", pa.string()),
        ("message", pa.string()),
        ("raw", pa.large_string()),
        ("ids", pa.list_(pa.int32())),
        ("run_lengths", pa.list_(pa.int32())),
        ("run_weights", pa.list_(pa.float32())),
        ("patches", pa.int64()),
        ("audio_frames", pa.int64()),
        *((name, pa.int32()) for name in MEDIA_COLUMNS),
        ("trained", pa.int32()),
        ("control", pa.bool_()),
        ("notes", pa.uint8()),
        ("media", pa.list_(_ITEM)),
    ]
)
"""A line a row. line: within the split, from 0; length: tokens after expansion, 0 where rejected; raw: the row as JSON,
where rejected; trained: labeled tokens; control: control tokens were typed in the text;
notes: bits of rows.columns.Note."""

_LISTS = ("ids", "run_lengths", "run_weights")
_KEPT_BYTES = 128 << 20
FACTS: dict[str, Any] = {
    "line": np.int32,
    "length": np.int32,
    "code": object,
    **dict.fromkeys(("patches", "audio_frames", *MEDIA_COLUMNS, "trained"), np.int32),
    "control": np.bool_,
    "notes": np.uint8,
}
"""What packing and rows.parquet need of each row, and as what the driver holds it: 42 bytes."""


@dataclass(frozen=True, slots=True)
class PlannedLine:
    """A planned row with its place in the split; `raw` is kept for rejects alone."""

    line: int
    row: PlannedRow | Reject
    raw: bytes | None = None


def to_batch(lines: list[PlannedLine]) -> pa.RecordBatch:
    """A chunk as a record batch."""
    rows = [entry.row for entry in lines]
    good = [row if isinstance(row, PlannedRow) else None for row in rows]
    bad = [row if isinstance(row, Reject) else None for row in rows]
    counts = {m: [0 if row is None else len(row.items[m]) for row in good] for m in MODALITIES}
    columns = [
        pa.array([entry.line for entry in lines], pa.int64()),
        pa.array([0 if row is None else row.length for row in good], pa.int32()),
        pa.array([None if row is None else str(row.code) for row in bad], pa.string()),
        pa.array([None if row is None else row.message for row in bad], pa.string()),
        _texts([entry.raw for entry in lines]),
        _lists([None if row is None else row.ids for row in good], np.int32),
        _lists([None if row is None else row.run_lengths for row in good], np.int32),
        _lists([None if row is None else row.run_weights for row in good], np.float32),
        pa.array([0 if row is None else row.patches for row in good], pa.int64()),
        pa.array([0 if row is None else row.audio_frames for row in good], pa.int64()),
        *(pa.array(counts[m], pa.int32()) for m in MODALITIES),
        pa.array([0 if row is None else int(row.run_lengths[row.run_weights > 0].sum()) for row in good], pa.int32()),
        pa.array([row is not None and row.control_tokens for row in good], pa.bool_()),
        pa.array([0 if row is None else int(row.notes) for row in good], pa.uint8()),
        _media(good),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=SCHEMA)


def _lists(arrays: list[NDArray[Any] | None], dtype: type[np.generic]) -> pa.Array:
    lengths = np.array([0 if a is None else len(a) for a in arrays])
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    present = [a for a in arrays if a is not None]
    values = np.concatenate(present) if present else np.empty(0, dtype)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values.astype(dtype, copy=False)))


def _texts(values: list[bytes | None]) -> pa.LargeStringArray:
    """Without the copies that Arrow would make of a text of hundreds of MB."""
    present = [value for value in values if value is not None]
    data = present[0] if len(present) == 1 else b"".join(present)
    offsets = np.cumsum([0, *(0 if value is None else len(value) for value in values)], dtype=np.int64)
    valid = pa.array([value is not None for value in values]).buffers()[1]
    return pa.LargeStringArray.from_buffers(len(values), pa.py_buffer(offsets), pa.py_buffer(data), valid)


def _media(rows: list[PlannedRow | None]) -> pa.Array:
    if not any(row is not None and any(row.items.values()) for row in rows):
        return pa.ListArray.from_arrays(pa.array(np.zeros(len(rows) + 1, np.int32)), pa.array([], _ITEM))
    values = [
        []
        if row is None
        else [
            {
                "modality": number,
                "tokens": planned.item.tokens,
                "audio": planned.item.audio,
                "meta": json.dumps(as_json(planned.item.meta)),
                "sources": [{"path": s.path, "uri": s.uri, "data": s.data, "root": s.root} for s in planned.sources],
            }
            for number, m in enumerate(MODALITIES)
            for planned in row.items[m]
        ]
        for row in rows
    ]
    return pa.array(values, pa.list_(_ITEM))


def write_plan(uri: str, batches: Iterable[pa.RecordBatch]) -> None:
    """Write the plan of a split, chunk by chunk; it appears when it is whole."""
    with io.atomic_writer(uri) as file, pa.ipc.new_file(pa.PythonFile(file, mode="w"), SCHEMA) as writer:
        for batch in batches:
            writer.write_batch(batch)
            large = batch.nbytes > _KEPT_BYTES // 4
            del batch  # not held while the next is made
            if large:  # Arrow's pool keeps what it was given for a while
                pa.default_memory_pool().release_unused()


def _open(uri: str, columns: Iterable[str] = ()) -> pa.ipc.RecordBatchFileReader:
    """The plan of a split; with `columns`, those alone are read (inline media stay where they are)."""
    options = pa.ipc.IpcReadOptions(included_fields=[SCHEMA.get_field_index(name) for name in columns])
    try:
        if io.is_local(uri):
            reader = pa.ipc.open_file(pa.memory_map(io.local_path(uri), "r"), options=options)
        else:
            reader = pa.ipc.open_file(pa.PythonFile(io.open_input(uri), mode="r"), options=options)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _damaged(uri, error) from error
    wanted = set(columns) or set(SCHEMA.names)
    if reader.schema != pa.schema([field for field in SCHEMA if field.name in wanted]):
        raise _damaged(uri, ValueError("its columns are not those of a plan"))
    return reader


def _batch(reader: pa.ipc.RecordBatchFileReader, number: int, uri: str) -> pa.RecordBatch:
    """A record batch of a plan, whose offsets are within its buffers.

    Raises:
        DamagedDataError: The file is cut or its bytes were changed.
    """
    try:
        batch = reader.get_batch(number)
        batch.validate(full=True)
    except (pa.ArrowException, OSError, ValueError, IndexError) as error:
        raise _damaged(uri, error) from error
    return batch


def _damaged(uri: str, error: Exception) -> DamagedDataError:
    return DamagedDataError(
        f"{uri}: the plan cannot be read ({error}); remove this file, and the same command plans it again"
    )


def read_facts(uri: str) -> dict[str, NDArray[Any]]:
    """What packing and rows.parquet need of a split, an array a column; `code` is a list of texts or None."""
    reader = _open(uri, FACTS)
    batches = [_batch(reader, i, uri).select(list(FACTS)) for i in range(reader.num_record_batches)]
    table = pa.Table.from_batches(batches, pa.schema([SCHEMA.field(name) for name in FACTS]))
    return {name: table[name].to_numpy() for name in FACTS}


@dataclass(frozen=True, slots=True)
class RejectedRow:
    """A row that planning rejected."""

    at: int
    """Which row of the split."""
    line: int
    """Its line in the split, from 0."""
    code: str
    message: str
    raw: memoryview
    """The row as JSON: bytes of the plan."""


def read_rejects(uri: str) -> Iterator[RejectedRow]:
    """The rejected rows of a split, in order."""
    reader, first = _open(uri, ("line", "code", "message", "raw")), 0
    for number in range(reader.num_record_batches):
        batch = _batch(reader, number, uri)
        line, code, message, raw = (batch.column(name) for name in ("line", "code", "message", "raw"))
        texts = _views(raw.cast(pa.large_binary()))
        for at in pc.indices_nonzero(code.is_valid()).to_pylist():
            text = texts[at] or memoryview(b"null")
            yield RejectedRow(first + at, line[at].as_py(), code[at].as_py(), message[at].as_py(), text)
        first += batch.num_rows


class PlanReader:
    """Reads single planned rows of many splits; keeps the files used last open.

    Args:
        out: Folder of the build.
        generation: Part of the names of its plans.
        keep: Plans that are kept open.
    """

    def __init__(self, out: str, generation: str = "", keep: int = 64) -> None:
        """Open nothing yet."""
        self._out, self._generation, self._keep = out, generation, keep
        self._edges: dict[int, list[int]] = {}
        self._files: OrderedDict[int, pa.ipc.RecordBatchFileReader] = OrderedDict()
        self._chunks: OrderedDict[tuple[int, int], _Chunk] = OrderedDict()
        self._bytes = 0

    def read(self, split: int, number: int) -> PlannedRow:
        """Planned row `number` of a split. Inline media are views of the plan's bytes."""
        if split not in self._edges:
            uri = self._path(split, ".json")
            try:
                self._edges[split] = list(accumulate(json.loads(io.read_bytes(uri))["chunks"], initial=0))
            except (ValueError, KeyError, TypeError) as error:
                raise _damaged(uri, error) from error
        edges = self._edges[split]
        chunk = bisect_right(edges, number) - 1
        key = (split, chunk)
        if key not in self._chunks:
            self._chunks[key] = _Chunk(_batch(self._file(split), chunk, self._path(split, ".arrow")))
            self._bytes += self._chunks[key].nbytes
            # Rows with inline media make batches of hundreds of MB: bounded by bytes, not by number alone.
            # Rows come in packed order, from anywhere, and opening a batch costs more than a row: many are kept.
            while len(self._chunks) > 1 and self._bytes > _KEPT_BYTES:
                self._bytes -= self._chunks.popitem(last=False)[1].nbytes
        try:
            return self._chunks[key].row(number - edges[chunk])
        except (LookupError, ValueError, TypeError) as error:  # values that no plan has
            raise _damaged(self._path(split, ".arrow"), error) from error

    def _path(self, split: int, suffix: str) -> str:
        return plan_path(self._out, split, suffix, self._generation)

    def _file(self, split: int) -> pa.ipc.RecordBatchFileReader:
        if split in self._files:
            self._files.move_to_end(split)
            return self._files[split]
        uri = self._path(split, ".arrow")
        reader = _open(uri)
        if io.size(uri) < _KEPT_BYTES // 2:  # a larger one is opened for each batch: what is mapped counts as held
            self._files[split] = reader
            if len(self._files) > self._keep:
                self._files.popitem(last=False)
        return reader


class _Chunk:
    """A record batch of a plan; what its columns look into is found once and not for every row."""

    def __init__(self, batch: pa.RecordBatch) -> None:
        self.nbytes = batch.nbytes
        columns = {name: batch.column(SCHEMA.get_field_index(name)) for name in (*_LISTS, "length", "media")}
        self._edges = {name: columns[name].offsets.to_numpy() for name in (*_LISTS, "media")}
        self._values = {name: columns[name].values.to_numpy() for name in _LISTS}
        self._lengths = columns["length"].to_numpy()
        self._media = columns["media"]

    def row(self, at: int) -> PlannedRow:
        """A planned row."""
        ids, run_lengths, run_weights = (
            self._values[name][self._edges[name][at] : self._edges[name][at + 1]] for name in _LISTS
        )
        row = PlannedRow(ids, run_lengths, run_weights, length=int(self._lengths[at]))
        first, last = self._edges["media"][at : at + 2].tolist()
        if first != last:
            for item, sources in _items(self._media.values.slice(first, last - first)):
                row.items[item.modality].append(PlannedItem(item, sources))
        return row


def _items(items: pa.StructArray) -> Iterator[tuple[Item, list[Source]]]:
    edges = items.field("sources").offsets.to_numpy()
    sources = items.field("sources").values.slice(edges[0], edges[-1] - edges[0])
    paths, uris, roots = (sources.field(name).to_pylist() for name in ("path", "uri", "root"))
    found = [Source(*facts) for facts in zip(paths, uris, _views(sources.field("data")), roots, strict=True)]
    names = ("modality", "tokens", "audio", "meta")
    for n, facts in enumerate(zip(*(items.field(name).to_pylist() for name in names), strict=True)):
        modality, tokens, audio, meta = facts
        item = Item(tuple(MODALITIES)[modality], from_json(json.loads(meta)), tokens, audio)
        yield item, found[edges[n] - edges[0] : edges[n + 1] - edges[0]]


def _views(data: pa.LargeBinaryArray) -> list[memoryview | None]:
    """The values without a copy (a scalar of Arrow is one)."""
    _, offsets, content = data.buffers()
    edges = np.frombuffer(offsets, np.int64, len(data) + 1, 8 * data.offset).tolist()
    valid = data.is_valid().to_pylist()
    view = memoryview(content if content is not None else b"").cast("B")
    return [view[a:b] if good else None for a, b, good in zip(edges[:-1], edges[1:], valid, strict=True)]
