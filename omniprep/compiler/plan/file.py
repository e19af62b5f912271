"""The plan on disk: an Arrow file a split, columnar, read back row by row without loading it.

A record batch holds a chunk of rows. Tokens stand there before expansion, one placeholder an item, so the plan of a
picture row takes a few hundred bytes; bytes that came inline (base64, parquet) are kept, since no path leads to them
again.
"""

import dataclasses
import json
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from omniprep import io
from omniprep.compiler.output.paths import plan_path
from omniprep.compiler.plan.rows import PlannedRow
from omniprep.errors import DamagedDataError, Reject
from omniprep.families.kinds import Item, as_json, from_json
from omniprep.garbage import collect_young
from omniprep.io.tar import Member
from omniprep.lru import BoundedCache
from omniprep.media.source import Source
from omniprep.modalities import MEDIA_COLUMNS, MODALITIES

_SOURCE = pa.struct(
    [
        ("path", pa.string()),
        ("uri", pa.string()),
        ("data", pa.large_binary()),
        ("root", pa.string()),
        ("member", pa.struct([("name", pa.string()), ("offset", pa.int64()), ("size", pa.int64())])),
        ("mark", pa.string()),
        ("length", pa.int64()),
    ]
)
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
        ("file_bytes", pa.int64()),
        ("pixel_share", pa.float32()),
        *((name, pa.int32()) for name in MEDIA_COLUMNS),
        ("trained", pa.int32()),
        ("control", pa.bool_()),
        ("notes", pa.uint8()),
        ("content_hash_high", pa.uint64()),
        ("content_hash_low", pa.uint64()),
        ("media", pa.list_(_ITEM)),
    ]
)
"""A line a row. line: within the split, from 0; length: tokens after expansion, 0 where rejected; raw: the row as JSON,
where rejected; trained: labeled tokens; control: control tokens were typed in the text;
content_hash: as --dedup exact needs it (content_hash.py), else 0;
notes: bits of rows.columns.Note."""

_LISTS = ("ids", "run_lengths", "run_weights")
_KEPT_BYTES = 128 << 20
FACTS: dict[str, Any] = {
    "line": np.int32,
    "length": np.int32,
    "code": object,
    **dict.fromkeys(("patches", "audio_frames", *MEDIA_COLUMNS, "trained"), np.int32),
    "file_bytes": np.int64,
    "pixel_share": np.float32,
    "control": np.bool_,
    "notes": np.uint8,
}
"""What packing and rows.parquet need of each row, and as what the driver holds it: 54 bytes."""


def to_batch(
    lines: list[int], rows: list[PlannedRow | Reject], raws: list[bytes | None], hashes: list[bytes] | None = None
) -> pa.RecordBatch:
    """What `plan_rows` made of a chunk of rows as a record batch.

    Args:
        lines: Of each row, within the split.
        rows: Planned or rejected.
        raws: The rejected ones as JSON.
        hashes: 16 bytes of each row (none of a rejected one), or None.
    """
    planned = [row if isinstance(row, PlannedRow) else None for row in rows]
    rejects = [row if isinstance(row, Reject) else None for row in rows]

    def numbers(value: Callable[[PlannedRow], int]) -> list[int]:
        return [0 if row is None else int(value(row)) for row in planned]

    columns = [
        lines,
        numbers(lambda row: row.length),
        [None if reject is None else str(reject.code) for reject in rejects],
        [None if reject is None else reject.message for reject in rejects],
        _texts(raws),
        *(_lists([None if row is None else getattr(row, name) for row in planned], name) for name in _LISTS),
        numbers(lambda row: row.patches),
        numbers(lambda row: row.audio_frames),
        numbers(lambda row: row.file_bytes),
        [0.0 if row is None else row.pixel_share for row in planned],
        *(numbers(lambda row, modality=modality: len(row.items[modality])) for modality in MODALITIES),  # type: ignore[misc]
        numbers(lambda row: row.run_lengths[row.run_weights > 0].sum()),
        [row is not None and row.control_tokens for row in planned],
        numbers(lambda row: row.notes),
        *([int.from_bytes(one[half : half + 8], "big") for one in hashes or [b""] * len(rows)] for half in (0, 8)),
        _media(planned),
    ]
    arrays = [
        pa.array(values, field.type) if isinstance(values, list) else values
        for values, field in zip(columns, SCHEMA, strict=True)
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=SCHEMA)


def _lists(arrays: list[NDArray[Any] | None], name: str) -> pa.Array:
    offsets = np.cumsum([0, *(0 if array is None else len(array) for array in arrays)], dtype=np.int32)
    present = [array for array in arrays if array is not None]
    dtype = SCHEMA.field(name).type.value_type.to_pandas_dtype()
    values = np.concatenate(present).astype(dtype, copy=False) if present else np.empty(0, dtype)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values))


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
                "tokens": item.tokens,
                "audio": item.audio,
                "meta": json.dumps(as_json(item.meta)),
                "sources": [_source(source) for source in item.sources],
            }
            for number, modality in enumerate(MODALITIES)
            for item in row.items[modality]
        ]
        for row in rows
    ]
    return pa.array(values, pa.list_(_ITEM))


def _source(source: Source) -> dict[str, Any]:
    plain: dict[str, Any] = {"path": source.path, "uri": source.uri, "data": source.data, "root": source.root}
    if source.uri is not None:
        plain |= {"mark": source.mark, "length": source.length}
    return plain if source.member is None else {**plain, "member": dataclasses.asdict(source.member)}


def write_plan(uri: str, batches: Iterable[pa.RecordBatch]) -> None:
    """Write the plan of a split, chunk by chunk; it appears when it is whole."""
    with io.atomic_writer(uri) as file, pa.ipc.new_file(pa.PythonFile(file, mode="w"), SCHEMA) as writer:
        for batch in batches:
            writer.write_batch(batch)
            large = batch.nbytes > _KEPT_BYTES // 4
            del batch  # not held while the next is made
            if large:  # Arrow's pool keeps what it was given for a while
                collect_young()
                pa.default_memory_pool().release_unused()


def _open(uri: str, columns: Iterable[str] = ()) -> pa.ipc.RecordBatchFileReader:
    """The plan of a split; with `columns`, those alone are read (inline media stay where they are)."""
    return open_plan(uri, SCHEMA, columns)


def open_plan(uri: str, schema: pa.Schema, columns: Iterable[str] = ()) -> pa.ipc.RecordBatchFileReader:
    """A file of the plan that must have a schema; with `columns`, those alone are read."""
    options = pa.ipc.IpcReadOptions(included_fields=[schema.get_field_index(name) for name in columns])
    try:
        if io.is_local(uri):
            reader = pa.ipc.open_file(pa.memory_map(io.local_path(uri), "r"), options=options)
        else:
            reader = pa.ipc.open_file(pa.PythonFile(io.open_input(uri), mode="r"), options=options)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise damaged_plan(uri, error) from error
    wanted = set(columns) or set(schema.names)
    if reader.schema != pa.schema([field for field in schema if field.name in wanted]):
        raise damaged_plan(uri, ValueError("its columns are not those of a plan"))
    return reader


def read_batch(reader: pa.ipc.RecordBatchFileReader, number: int, uri: str) -> pa.RecordBatch:
    """A record batch of a plan, its offsets within its buffers; DamagedDataError where bytes were changed."""
    try:
        batch = reader.get_batch(number)
        batch.validate(full=True)
    except (pa.ArrowException, OSError, ValueError, IndexError) as error:
        raise damaged_plan(uri, error) from error
    return batch


def damaged_plan(uri: str, error: Exception) -> DamagedDataError:
    """The error for a file of the plan whose bytes are not what was written."""
    return DamagedDataError(
        f"{uri}: the plan cannot be read ({error}); remove this file, and the same command plans it again"
    )


def read_facts(uri: str, more: Sequence[str] = ()) -> dict[str, NDArray[Any]]:
    """What packing and rows.parquet need of a split, an array a column; `code` is a list of texts or None; `more` names
    further columns.
    """
    names = [*FACTS, *more]
    reader = _open(uri, names)
    batches = [read_batch(reader, i, uri).select(names) for i in range(reader.num_record_batches)]
    table = pa.Table.from_batches(batches, pa.schema([SCHEMA.field(name) for name in names]))
    return {name: table[name].to_numpy() for name in names}


@dataclass(frozen=True, slots=True)
class PlannedReject:
    """A row that planning rejected."""

    number: int
    """Within the split, from 0."""
    line: int
    """Its line in the split, from 0."""
    code: str
    message: str
    raw: memoryview
    """The row as JSON: bytes of the plan."""


def read_rejects(uri: str) -> Iterator[PlannedReject]:
    """The rejected rows of a split, in order."""
    reader, first = _open(uri, ("line", "code", "message", "raw")), 0
    for chunk in range(reader.num_record_batches):
        batch = read_batch(reader, chunk, uri)
        line, code, message, raw = (batch.column(name) for name in ("line", "code", "message", "raw"))
        texts = _views(raw.cast(pa.large_binary()))
        for index in pc.indices_nonzero(code.is_valid()).to_pylist():
            text = texts[index] or memoryview(b"null")
            yield PlannedReject(first + index, line[index].as_py(), code[index].as_py(), message[index].as_py(), text)
        first += batch.num_rows


class PlanReader:
    """Reads single planned rows of many splits; keeps the files and chunks used last."""

    def __init__(self, out: str, generation: str = "", keep: int = 64) -> None:
        self._out, self._generation = out, generation
        self._chunk_borders: dict[int, list[int]] = {}
        self._files: BoundedCache[int, pa.ipc.RecordBatchFileReader] = BoundedCache(keep)
        # Rows come in packed order, from anywhere, and opening a chunk costs more than a row, so many are kept. Bounded
        # by bytes: rows with inline media make chunks of hundreds of MB.
        self._chunks: BoundedCache[tuple[int, int], _Chunk] = BoundedCache(_KEPT_BYTES, lambda chunk: chunk.nbytes)

    def read(self, split: int, number: int) -> PlannedRow:
        """Planned row `number` of a split. Inline media are views of the plan's bytes."""
        if split not in self._chunk_borders:
            uri = self._path(split, ".json")
            try:
                rows = json.loads(io.read_bytes(uri))["chunks"]
                self._chunk_borders[split] = list(accumulate(rows, initial=0))
            except (ValueError, KeyError, TypeError) as error:
                raise damaged_plan(uri, error) from error
        borders = self._chunk_borders[split]
        index = bisect_right(borders, number) - 1
        chunk = self._chunks.get((split, index))
        if chunk is None:
            uri = self._path(split, ".arrow")
            chunk = self._chunks.put((split, index), _Chunk(read_batch(self._file(split, uri), index, uri)))
        try:
            return chunk.row(number - borders[index])
        except (LookupError, ValueError, TypeError) as error:  # values that no plan has
            raise damaged_plan(self._path(split, ".arrow"), error) from error

    def _path(self, split: int, suffix: str) -> str:
        return plan_path(self._out, split, suffix, self._generation)

    def _file(self, split: int, uri: str) -> pa.ipc.RecordBatchFileReader:
        reader = self._files.get(split)
        if reader is None:
            reader = _open(uri)
            # A larger file is opened for each chunk, since what is mapped counts as held memory.
            if io.size(uri) < _KEPT_BYTES // 2:
                self._files.put(split, reader)
        return reader


class _Chunk:
    """A record batch of a plan; its buffers are looked up once and not for every row."""

    def __init__(self, batch: pa.RecordBatch) -> None:
        self.nbytes = batch.nbytes
        columns = {name: batch.column(SCHEMA.get_field_index(name)) for name in (*_LISTS, "length", "media")}
        self._offsets = {name: columns[name].offsets.to_numpy() for name in (*_LISTS, "media")}
        self._values = {name: columns[name].values.to_numpy() for name in _LISTS}
        self._lengths = columns["length"].to_numpy()
        self._media = columns["media"]

    def row(self, index: int) -> PlannedRow:
        """A planned row."""
        ids, run_lengths, run_weights = (
            self._values[name][self._offsets[name][index] : self._offsets[name][index + 1]] for name in _LISTS
        )
        row = PlannedRow(ids, run_lengths, run_weights, length=int(self._lengths[index]))
        first, last = self._offsets["media"][index : index + 2].tolist()
        if first != last:
            for item in _items(self._media.values.slice(first, last - first)):
                row.items[item.modality].append(item)
        return row


def _items(media: pa.StructArray) -> Iterator[Item]:
    offsets = media.field("sources").offsets.to_numpy()
    offsets, values = offsets - offsets[0], media.field("sources").values.slice(offsets[0], offsets[-1] - offsets[0])
    paths, uris, roots = (values.field(name).to_pylist() for name in ("path", "uri", "root"))
    members = [entry and Member(**entry) for entry in values.field("member").to_pylist()]
    marks = [mark or "" for mark in values.field("mark").to_pylist()]
    lengths = [-1 if length is None else length for length in values.field("length").to_pylist()]
    data = _views(values.field("data"))
    sources = [Source(*facts) for facts in zip(paths, uris, data, roots, members, marks, lengths, strict=True)]
    modalities = tuple(MODALITIES)
    facts = (media.field(name).to_pylist() for name in ("modality", "tokens", "audio", "meta"))
    for number, (modality, tokens, audio, meta) in enumerate(zip(*facts, strict=True)):
        own = sources[offsets[number] : offsets[number + 1]]
        yield Item(modalities[modality], from_json(json.loads(meta)), tokens, audio, own)


def _views(data: pa.LargeBinaryArray) -> list[memoryview | None]:
    """The values without a copy (a scalar of Arrow is one)."""
    _, buffer, content = data.buffers()
    offsets = np.frombuffer(buffer, np.int64, len(data) + 1, 8 * data.offset).tolist()
    valid = data.is_valid().to_pylist()
    view = memoryview(content if content is not None else b"").cast("B")
    return [view[start:end] if good else None for (start, end), good in zip(pairwise(offsets), valid, strict=True)]
