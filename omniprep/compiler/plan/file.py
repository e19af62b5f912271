"""The plan on disk: an Arrow file a split, columnar, read back row by row without loading it.

A record batch holds a chunk of rows. Tokens stand there before expansion, one placeholder an item, so the plan of a
picture row takes a few hundred bytes; bytes that came inline (base64, parquet) are kept, since no path leads to them
again.
"""

import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from omniprep import io
from omniprep.compiler.plan.planned import PlannedRow
from omniprep.errors import DamagedDataError, Reject
from omniprep.families.kinds import as_json
from omniprep.garbage import collect_young
from omniprep.media.source import Source
from omniprep.modalities import MEDIA_COLUMNS, MODALITIES
from omniprep.rows.preference import Verdict

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
        ("rejected", pa.bool_()),
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
        ("verdict", pa.int8()),
        ("chosen_length", pa.int32()),
        ("chosen_ids", pa.int32()),
        ("chosen_runs", pa.int32()),
        ("shared", pa.uint8()),
        ("repeated_patches", pa.int64()),
        ("repeated_frames", pa.int64()),
    ]
)
"""A line a row. line: within the split, from 0; length: tokens after expansion, 0 where rejected; raw: the row as JSON,
where rejected; trained: labeled tokens; control: control tokens were typed in the text;
content_hash: as --dedup exact needs it (content_hash.py), else 0;
notes: bits of rows.columns.Note; verdict: a `Verdict`. Of a pair all numbers are of both answers together, ids and runs
those of the preferred answer and then those of the rejected one: chosen_length, chosen_ids and chosen_runs are how many
tokens, ids and runs the first has; shared: bits of the modalities (in the order of MODALITIES) whose items both have,
repeated_patches and repeated_frames the work of the rejected answer on them, which no shard stores again."""

LISTS = ("ids", "run_lengths", "run_weights")
KEPT_BYTES = 128 << 20
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
PREFERENCE_FACTS: dict[str, Any] = {
    "verdict": np.int8,
    **dict.fromkeys(("chosen_length", "repeated_patches", "repeated_frames"), np.int32),
}
"""What they need beside that where there are preference rows: 13 bytes."""


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
        numbers(lambda row: row.total("length")),
        [None if reject is None else str(reject.code) for reject in rejects],
        [None if reject is None else reject.message for reject in rejects],
        _texts(raws),
        *(_lists([None if row is None else _joined(row, name) for row in planned], name) for name in LISTS),
        numbers(lambda row: row.total("patches")),
        numbers(lambda row: row.total("audio_frames")),
        numbers(lambda row: row.file_bytes),
        [0.0 if row is None else row.pixel_share for row in planned],
        *(numbers(partial(_stored_count, modality=modality)) for modality in MODALITIES),
        numbers(lambda row: row.total("trained")),
        [row is not None and row.control_tokens for row in planned],
        numbers(lambda row: row.notes),
        *([int.from_bytes(one[half : half + 8], "big") for one in hashes or [b""] * len(rows)] for half in (0, 8)),
        _media(planned),
        [int(Verdict.NONE) if row is None else int(row.verdict) for row in planned],
        numbers(lambda row: row.length),
        numbers(lambda row: len(row.ids)),
        numbers(lambda row: len(row.run_lengths)),
        numbers(_shared_bits),
        numbers(lambda row: row.repeated_patches),
        numbers(lambda row: row.repeated_frames),
    ]
    arrays = [
        pa.array(values, field.type) if isinstance(values, list) else values
        for values, field in zip(columns, SCHEMA, strict=True)
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=SCHEMA)


def _joined(row: PlannedRow, name: str) -> NDArray[Any]:
    values: NDArray[Any] = getattr(row, name)
    return values if row.rejected is None else np.concatenate([values, getattr(row.rejected, name)])


def _stored_count(row: PlannedRow, modality: str) -> int:
    return sum(name == modality for _, name, _ in row.stored_items())


def _shared_bits(row: PlannedRow) -> int:
    shared = row.rejected.shared if row.rejected is not None else frozenset()
    return sum(1 << number for number, modality in enumerate(MODALITIES) if modality in shared)


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
    if not any(row is not None and any(any(part.items.values()) for part in row.sequences) for row in rows):
        return pa.ListArray.from_arrays(pa.array(np.zeros(len(rows) + 1, np.int32)), pa.array([], _ITEM))
    numbers = {modality: number for number, modality in enumerate(MODALITIES)}
    values = [
        []
        if row is None
        else [
            {
                "modality": numbers[modality],
                "tokens": item.tokens,
                "audio": item.audio,
                "meta": json.dumps(as_json(item.meta)),
                "sources": [_source(source) for source in item.sources],
                "rejected": rejected,
            }
            for rejected, modality, item in row.stored_items()
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
            large = batch.nbytes > KEPT_BYTES // 4
            del batch  # not held while the next is made
            if large:  # Arrow's pool keeps what it was given for a while
                collect_young()
                pa.default_memory_pool().release_unused()


def open_split(uri: str, columns: Iterable[str] = ()) -> pa.ipc.RecordBatchFileReader:
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
    reader = open_split(uri, names)
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
    reader, first = open_split(uri, ("line", "code", "message", "raw")), 0
    for chunk in range(reader.num_record_batches):
        batch = read_batch(reader, chunk, uri)
        line, code, message, raw = (batch.column(name) for name in ("line", "code", "message", "raw"))
        texts = views(raw.cast(pa.large_binary()))
        for index in pc.indices_nonzero(code.is_valid()).to_pylist():
            text = texts[index] or memoryview(b"null")
            yield PlannedReject(first + index, line[index].as_py(), code[index].as_py(), message[index].as_py(), text)
        first += batch.num_rows


def views(data: pa.LargeBinaryArray) -> list[memoryview | None]:
    """The values without a copy (a scalar of Arrow is one)."""
    _, buffer, content = data.buffers()
    offsets = np.frombuffer(buffer, np.int64, len(data) + 1, 8 * data.offset).tolist()
    valid = data.is_valid().to_pylist()
    view = memoryview(content if content is not None else b"").cast("B")
    return [view[start:end] if good else None for (start, end), good in zip(pairwise(offsets), valid, strict=True)]
