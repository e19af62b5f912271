"""Write bins into one shard: a file that appears whole or not at all, hashed while it is written.

Each bin becomes a record batch of one row. Token columns are wrapped without a copy; those of media are copied once,
end to end, into a buffer that is reused for the next bin (one media item alone is not copied). Arrow's writes go to the
file and through SHA-256 (the file) and XXH3 (the batch), so nothing is read again. Memory: the largest bin, twice.

The bytes are a pure function of the schema and the bins: no clock, file name or order of threads reaches them.
"""

import hashlib
import math
import os
from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np
import pyarrow as pa
import xxhash

from omniprep import io
from omniprep.shards.codecs import codec_of, source
from omniprep.shards.codecs.base import CompressedItem, PatchCodec
from omniprep.shards.files import FilePlaces, distinct
from omniprep.shards.index import BatchEntry
from omniprep.shards.schema import PREFERENCE_COLUMNS, Bin, Column, Layout, read_layout, storage_dtype

_MAGIC_SIZE = 8  # "ARROW1" and two zeros open an IPC file
SYNC_BYTES = 32 << 20
"""Bytes after which the disk is told to begin writing, so that the fsync at the end has little left."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardInfo:
    """Size and hash of a finished shard."""

    bytes: int
    sha256: str


class ShardWriter:
    """Context manager that writes one shard; see the module."""

    def __init__(self, uri: str, schema: pa.Schema) -> None:
        self._schema = schema
        self._layout = read_layout(schema, uri)
        self._target: AbstractContextManager[BinaryIO] = io.atomic_writer(uri)
        self._local = io.is_local(uri)
        self._sink: _HashingSink | None = None
        self._info: ShardInfo | None = None
        self._scratch: dict[str, np.ndarray] = {}
        self._places = FilePlaces()

    def __enter__(self) -> Self:
        self._sink = _HashingSink(self._target.__enter__(), header=_MAGIC_SIZE + self._schema.serialize().size)
        # Arrow writes magic and schema with the first batch, and a footer on close.
        self._file = pa.PythonFile(self._sink, mode="w")
        self._writer = pa.ipc.new_file(self._file, self._schema)
        return self

    def write(self, item: Bin) -> BatchEntry:
        """Append a bin, whose arrays may be reused afterwards; byte range and XXH3 of its record batch."""
        assert self._sink is not None and self._info is None
        self._sink.begin_batch()
        reused = self._places.reused(distinct(item.files.values()), self._sink.batch_start)
        starts: dict[str, dict[str, int]] = {}
        arrays = _arrays(item, self._layout, self._scratch, reused, starts)
        batch = pa.RecordBatch.from_arrays(arrays, schema=self._schema)
        length = pa.ipc.get_record_batch_size(batch)
        self._writer.write_batch(batch)
        offset = self._sink.position - length
        assert offset == self._sink.batch_start, (offset, self._sink.batch_start)
        if self._local:
            self._sink.sync(SYNC_BYTES)
        for name, column_start in _column_starts(batch, starts).items():
            self._places.record({key: offset + column_start + start for key, start in starts[name].items()})
        # A multiple of 64, so that the record batch is as aligned in a reader's buffer as it is in the file.
        before = -(-max(reused.values(), default=0) // 64) * 64
        return BatchEntry(offset=offset, length=length, checksum=self._sink.batch_hash.intdigest(), before=before)

    def close(self) -> ShardInfo:
        """Finish the shard (footer, fsync, rename), as leaving the block does; size and SHA-256, at each call."""
        if self._info is None:
            assert self._sink is not None
            try:
                self._writer.close()
            except BaseException as error:
                self._target.__exit__(type(error), error, error.__traceback__)
                raise
            info = ShardInfo(bytes=self._sink.position, sha256=self._sink.file_hash.hexdigest())
            self._target.__exit__(None, None, None)
            self._info = info
        return self._info

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        elif self._info is None:
            self._target.__exit__(kind, error, trace)


def serialize_bin(item: Bin, schema: pa.Schema) -> np.ndarray:
    """The record batch that a shard holds for a bin, as uint8 (bytes,)."""
    batch = pa.RecordBatch.from_arrays(_arrays(item, read_layout(schema), {}, {}, {}), schema=schema)
    return np.frombuffer(batch.serialize(), np.uint8).copy()


class _HashingSink:
    """A file for Arrow to write to, which hashes what is written, `header` first (magic and schema)."""

    closed = False

    def __init__(self, file: BinaryIO, header: int) -> None:
        self._file = file
        self._header = header
        self.position = 0
        self.synced = 0
        self.batch_start = 0
        self.file_hash = hashlib.sha256()
        self.batch_hash = xxhash.xxh3_64()

    def begin_batch(self) -> None:
        """Start the hash of the next batch."""
        self.batch_start = max(self.position, self._header)
        self.batch_hash = xxhash.xxh3_64()

    def write(self, data: Any) -> int:
        """Write bytes or a buffer of Arrow's."""
        view = memoryview(data)
        self.file_hash.update(view)
        if self.position >= self.batch_start:
            self.batch_hash.update(view)
        self._file.write(view)
        self.position += view.nbytes
        return view.nbytes

    def sync(self, size: int) -> None:
        """Flush to the disk if more than `size` bytes were written since the last time."""
        if self.position - self.synced > size:
            self._file.flush()
            os.fsync(self._file.fileno())
            self.synced = self.position

    def tell(self) -> int:
        return self.position

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self.closed = True

    def readable(self) -> bool:
        return False

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False


def _column_starts(batch: pa.RecordBatch, names: Collection[str]) -> dict[str, int]:
    """Where in the message of a record batch the values of binary columns begin."""
    if not names:
        return {}
    message = batch.serialize()
    columns = pa.ipc.read_record_batch(message, batch.schema)  # views of the message
    return {name: columns.column(name).buffers()[-1].address - message.address for name in names}


def _arrays(
    item: Bin, layout: Layout, buffers: dict[str, np.ndarray], reused: Mapping[str, int],
    starts: dict[str, dict[str, int]],
) -> list[pa.Array]:  # fmt: skip
    """The columns of a bin; `starts` gets, by column, where in its bytes each file begins that is stored in it.

    `reused` are files of earlier bins (`FilePlaces.reused`).
    """
    tokens, rows = len(item.input_ids), len(item.row_ids)
    assert item.labels.shape == (tokens,) and item.cu_seqlens.shape == (rows + 1,), (tokens, rows)
    assert item.cu_seqlens[0] == 0 and item.cu_seqlens[-1] == tokens and (np.diff(item.cu_seqlens) > 0).all()
    assert item.row_items.shape == (rows, len(layout.modalities)), item.row_items.shape
    assert item.position_ids is None or item.position_ids.shape == (3, tokens)
    assert (item.loss_scale is not None) == layout.weighted
    preferences = [getattr(item, name) for name in PREFERENCE_COLUMNS] if layout.preferences else []
    assert all(values is not None and values.shape == (rows,) for values in preferences), preferences
    assert layout.preferences or item.pair_ids is None
    unknown = set(item.media) - {c.name for c in layout.columns}
    assert not unknown, unknown
    fixed = [
        _list(item.input_ids, np.int32),
        _list(item.labels, np.int32),
        _list(item.loss_scale, np.float32),
        _list(item.position_ids, np.int32),
        _list(item.cu_seqlens, np.int32),
        _list(item.row_ids, np.int32),
        _list(item.row_items, np.int32),
        *(_list(values, np.int32) for values in preferences),
    ]
    counts = dict(zip(layout.modalities, item.row_items.sum(axis=0).tolist(), strict=True))
    holding = dict(zip(layout.modalities, (item.row_items > 0).sum(axis=0).tolist(), strict=True))
    companions = {c.companion: c for c in layout.columns if c.companion}
    media = []
    for column in layout.columns:
        if column.name in companions:
            parts = _companion_values(companions[column.name], item)
        else:
            parts = item.media.get(column.name, [])
        if column.kind == "tokens":
            values = np.concatenate(parts)
            assert values.shape == (tokens,), (column.name, values.shape, tokens)
            media.append(_list(values, storage_dtype(column.dtype).type))
            continue
        codec = codec_of(column) if "codec" in column.params else None
        if isinstance(codec, source.Codec):
            stored_items = item.files.get(column.name, [])
            assert len(stored_items) == counts[column.modality], (column.name, len(stored_items), counts)
            if stored_items:
                data, starts[column.name] = codec.encode(stored_items, reused)
            media.append(_binary(data) if stored_items else pa.nulls(1, pa.large_binary()))
            continue
        expected = holding if column.kind == "rows" else counts
        assert len(parts) == expected[column.modality], (column.name, len(parts), counts)
        if parts and isinstance(codec, PatchCodec):
            sizes = item.media.get(column.size_source()[0]) or _companion_values(column, item)
            media.append(_binary(codec.encode_items(column, parts, sizes)))
            continue
        media.append(_media(column, parts, buffers))
    return fixed + media


def _companion_values(column: Column, item: Bin) -> list[np.ndarray]:
    return [companion_value(column, part) for part in item.media.get(column.name, [])]


def companion_value(column: Column, part: np.ndarray | CompressedItem) -> np.ndarray:
    """What the companion of a flat column holds of an item: its units, or its shape."""
    return np.array(part.shape) if column.varies else np.asarray(part.size // column.unit)


def _media(column: Column, parts: list[np.ndarray], buffers: dict[str, np.ndarray]) -> pa.Array:
    dtype = storage_dtype(column.dtype)
    if column.kind != "flat":
        for part in parts:
            assert np.shape(part) == column.shape, (column.name, np.shape(part))
        return _list(np.asarray(parts, dtype) if parts else None, dtype.type)
    for part in parts:
        assert part.dtype == dtype and part.size % column.unit == 0, (column.name, part.dtype, part.shape)
    if len(parts) == 1 and parts[0].flags.c_contiguous:
        return _binary(parts[0].reshape(-1).view(np.uint8))
    if not parts:
        return pa.nulls(1, pa.large_binary())
    data = _scratch(buffers, column.name, sum(part.nbytes for part in parts))
    start = 0
    for part in parts:
        target = data[start : start + part.nbytes].view(dtype).reshape(part.shape)
        target[...] = part
        start += part.nbytes
    return _binary(data)


def _scratch(buffers: dict[str, np.ndarray], name: str, size: int) -> np.ndarray:
    # Reused for the next bin: the page faults of a new buffer take longer than the copy itself.
    if name not in buffers or buffers[name].size < size:
        buffers[name] = np.empty(2 ** math.ceil(math.log2(max(size, 1 << 16))), np.uint8)
    return buffers[name][:size]


def _list(values: np.ndarray | None, dtype: type[np.generic]) -> pa.Array:
    if dtype is np.bool_:  # stored as bytes
        dtype, values = np.uint8, None if values is None else values.astype(np.bool_)
    kind = pa.from_numpy_dtype(dtype)
    if values is None:
        return pa.nulls(1, pa.list_(kind))
    flat = np.ascontiguousarray(values, dtype).reshape(-1)
    offsets = pa.array(np.array([0, flat.size], np.int32))
    return pa.ListArray.from_arrays(offsets, pa.array(flat))


def _binary(data: np.ndarray) -> pa.Array:
    offsets = np.array([0, data.size], np.int64)
    return pa.Array.from_buffers(pa.large_binary(), 1, [None, pa.py_buffer(offsets), pa.py_buffer(data)])
