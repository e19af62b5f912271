"""Read single bins: one `preadv` (or one range request) into a buffer that is reused.

A bin is read and not mapped: 20 MB bins arrive at 7 GB/s in a buffer whose pages exist, at 2.8 GB/s through a memory
map, where the first touch of each page is a fault. The arrays of a bin are views of its buffer, so nothing is copied.
A buffer becomes free when its last view is garbage collected. Shards are opened on first use and the last 64 stay
open. A `ShardReader` belongs to one process: it notices a fork and opens its own files.
"""

import os
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import xxhash

from omniprep import io
from omniprep.errors import DamagedDataError
from omniprep.lru import BoundedCache
from omniprep.shards.cache import BinCache
from omniprep.shards.codecs import codec_of, source
from omniprep.shards.codecs.base import PatchCodec
from omniprep.shards.content import check_media, check_rows, item_sizes
from omniprep.shards.message import read_batch
from omniprep.shards.schema import Column, Layout, storage_dtype

_OPEN_FILES = 64
_KEPT_BUFFERS = 8
_SCHEMA_BYTES = 64 << 10
# Read and hashed in pieces of this size, bytes are still in the CPU's cache when they are hashed: 20 % faster than
# hashing after the read.
_HASHED_BYTES = 256 << 10


def read_schema(uri: str) -> pa.Schema:
    """The schema of a shard, from its first bytes (one small request); DamagedDataError where that fails."""
    try:
        head = io.read_range(uri, 0, _SCHEMA_BYTES)
        return pa.ipc.read_schema(pa.ipc.read_message(pa.py_buffer(head)[8:]))
    except (OSError, pa.ArrowException, EOFError, MemoryError, UnicodeDecodeError) as error:
        raise DamagedDataError(
            f"{uri}: cannot read the start of the shard: {' '.join(str(error).split()):.300}"
        ) from error


class BufferPool:
    """Byte buffers that are reused once no array refers to them.

    Whether a buffer is free is read off CPython's reference count, so callers never give one back. At most
    `_KEPT_BUFFERS` are kept; more may be alive as long as somebody holds their arrays.
    """

    def __init__(self) -> None:
        self._start()

    def _start(self) -> None:
        self._pid = os.getpid()
        self._buffers = [np.empty(0, np.uint8)]
        self._lock = threading.Lock()
        # Reference count of a buffer that only the pool refers to, measured the way `take` measures it.
        self._idle_references = sys.getrefcount(self._buffers[0])

    def take(self, size: int) -> np.ndarray:
        """uint8 (size,) at the start of a buffer that nothing else refers to."""
        if os.getpid() != self._pid:
            # After a fork another thread's lock would stay locked, and its buffers would never become free.
            self._start()
        with self._lock:
            idle = [
                number
                for number in range(len(self._buffers))
                if sys.getrefcount(self._buffers[number]) <= self._idle_references
            ]
            fitting = [number for number in idle if self._buffers[number].size >= size]
            if fitting:
                return self._buffers[min(fitting, key=lambda number: self._buffers[number].size)][:size]
            # A quarter more than asked for, so that the next bin of about this size fits too.
            fresh = np.empty(size + (size >> 2), np.uint8)
            if idle:
                self._buffers[idle[0]] = fresh
            elif len(self._buffers) < _KEPT_BUFFERS:
                self._buffers.append(fresh)
            return fresh[:size]


class _File:
    """A file descriptor that closes with its last reference, so that no thread loses one it is reading from."""

    __slots__ = ("descriptor",)

    def __init__(self, path: str) -> None:
        self.descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))

    # `close` is bound here because the interpreter empties this module before it deletes the last files at its end.
    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        if hasattr(self, "descriptor"):  # absent where os.open failed
            close(self.descriptor)


class ShardReader:
    """Reads bins of the shards of one dataset; `cache` keeps those of remote shards."""

    def __init__(self, uris: Sequence[str], cache: BinCache | None = None) -> None:
        self._uris, self._cache = uris, cache
        self._start()

    def _start(self) -> None:
        self._pid = os.getpid()
        self._files: BoundedCache[int, _File] = BoundedCache(_OPEN_FILES)
        self._lock = threading.Lock()
        self._pool = BufferPool()

    def read(self, shard: int, offset: int, length: int, checksum: int | None = None, before: int = 0) -> np.ndarray:
        """The bytes of one record batch and `before` in front of it, uint8 (before + length,), in a pooled buffer.

        `checksum` is the XXH3 of the index, of the record batch; None reads without a check. DamagedDataError names the
        file.
        """
        uri = self._uris[shard]
        read = self._read_local if io.is_local(uri) else self._read_remote
        offset, length = offset - before, length + before
        try:
            data, available, digest = read(shard, offset, length, None if checksum is None else before)
        except OSError as error:
            raise DamagedDataError(f"{uri}: cannot read bytes {offset} to {offset + length}: {error}") from error
        if available != length:
            raise DamagedDataError(f"{uri}: ends at byte {offset + available}, but a bin reaches to {offset + length}")
        if checksum is not None and digest != checksum:
            if self._cache is not None:
                self._cache.drop(uri, offset, length)
            raise DamagedDataError(f"{uri} is damaged: bytes {offset} to {offset + length} have another checksum")
        return data

    def _read_local(
        self, shard: int, offset: int, length: int, hashed_from: int | None
    ) -> tuple[np.ndarray, int, int | None]:
        """The bytes, how many of them the file has, and the XXH3 of those from `hashed_from` on (None: no hash)."""
        file = self._open(shard)
        # Compared before memory is taken: an index may claim any length.
        remaining = os.fstat(file.descriptor).st_size - offset
        if remaining < length:
            return np.empty(0, np.uint8), remaining, None
        data = self._pool.take(length)
        digest = None if hashed_from is None else xxhash.xxh3_64()
        position = 0
        while position < length:
            view = data.data[position:] if digest is None else data.data[position : position + _HASHED_BYTES]
            count = os.preadv(file.descriptor, [view], offset + position)  # may end early: at 2 GiB, or at a signal
            if count == 0:
                break
            if digest is not None:
                digest.update(view[max((hashed_from or 0) - position, 0) : count])
            position += count
        return data, position, None if digest is None else digest.intdigest()

    def _read_remote(
        self, shard: int, offset: int, length: int, hashed_from: int | None
    ) -> tuple[np.ndarray, int, int | None]:
        uri = self._uris[shard]
        if self._cache is None:
            content = io.read_range(uri, offset, offset + length)
        else:
            content = self._cache.read(uri, offset, length)
        data = self._pool.take(len(content))
        data[:] = np.frombuffer(content, np.uint8)
        digest = None if hashed_from is None else xxhash.xxh3_64_intdigest(memoryview(content)[hashed_from:])
        return data, len(content), digest

    def _open(self, shard: int) -> _File:
        if os.getpid() != self._pid:  # forked: the parent keeps its files and buffers
            self._start()
        with self._lock:
            return self._files.get(shard) or self._files.put(shard, _File(io.local_path(self._uris[shard])))

    def close(self) -> None:
        """Close the files; a later read opens them again."""
        with self._lock:
            self._files = BoundedCache(_OPEN_FILES)


def decode(
    data: np.ndarray, schema: pa.Schema, layout: Layout, *, before: int = 0, check: bool = True,
    pixels: Literal["arrays", "files", "none"] = "arrays",
) -> dict[str, Any]:  # fmt: skip
    """The arrays of one record batch, as writable views of `data`.

    Args:
        data: uint8, the whole record batch; must own its memory or be a slice of an array that does.
        schema: Schema of the shard.
        layout: What the schema declares.
        before: Bytes of `data` in front of the record batch, which hold files of earlier bins.
        check: Whether pixels that are made of files are compared with the hashes of those that the build saw.
        pixels: "arrays" decodes them; "files" leaves those in the codec source as they are, lists of `StoredItem` under
            the key "files"; "none" leaves out all that are in a codec.

    Returns:
        The fixed columns under their names, position_ids as (3, L), row_items as (R, M); items columns as (items,
        *shape), columns of rows as (rows with such items, *shape), those of tokens as (L,); flat columns as (units,
        *shape), or one flat array where items differ in shape and for spectrograms (load "mel"), whose items are
        transposed (`omniprep.shards.content.split_items` gives the items). Null columns are absent. bfloat16 is uint16.
        "columns" declares the family's columns, "modalities" names the M of row_items, "layout" is all that the shard
        declares.

    Raises:
        DamagedDataError: It is no record batch of this schema, or what it holds is no bin.
        OtherPixelsError: Files do not give the build's pixels here.
    """
    earlier, data = data[:before], data[before:]
    arrays: dict[str, Any] = {"columns": layout.columns, "modalities": layout.modalities, "layout": layout}
    declared = {column.name: column for column in layout.columns}
    coded: dict[str, np.ndarray] = {}
    for field, array in zip(schema, read_batch(data, schema).columns, strict=True):
        if array.null_count:
            continue
        name, column = field.name, declared.get(field.name)
        values = array.buffers()[-1]  # an empty column may have none
        start, size = (values.address - data.ctypes.data, values.size) if values else (0, 0)
        if not 0 <= start <= start + size <= len(data):
            raise DamagedDataError(f"column {name!r} lies outside its record batch")
        if column is not None and "codec" in column.params:
            coded[name] = data[start : start + size]
            continue
        if column is None or column.kind != "flat":
            dtype = np.dtype(field.type.value_type.to_pandas_dtype())
        else:
            dtype = storage_dtype(column.dtype)
        if size % (dtype.itemsize * (1 if column is None else column.unit)):
            raise DamagedDataError(f"column {name!r}: {size} bytes are no whole number of values")
        arrays[name] = data[start : start + size].view(dtype)
        if column is not None and column.dtype == "bool":  # any byte but 0 and 1 is no bool to numpy and torch
            arrays[name] = arrays[name].view(np.uint8) != 0
        if column is not None and column.load != "mel" and not column.varies:
            arrays[name] = arrays[name].reshape(-1, *column.shape)
    check_rows(arrays, layout)
    check_media(arrays, layout, coded)
    for name, stored in coded.items() if pixels != "none" else ():
        column = declared[name]
        codec = codec_of(column)
        if isinstance(codec, source.Codec):
            items = codec.stored_items(column, stored, earlier, check=check)
            if pixels == "files":
                arrays.setdefault("files", {})[name] = items
                continue
            arrays[name] = _room(column, arrays)
            codec.decode(column, items, arrays[column.size_source()[0]], arrays[name], check=check)
        else:
            assert isinstance(codec, PatchCodec), name
            arrays[name] = _room(column, arrays)
            codec.decode_items(column, stored, arrays[column.size_source()[0]], arrays[name])
    return arrays


_PICTURES = BufferPool()


def _room(column: Column, arrays: Mapping[str, Any]) -> np.ndarray:
    """A pooled buffer for the units of a column, uint8 (units, *shape)."""
    units = int(item_sizes(column, arrays).sum())
    return _PICTURES.take(units * column.unit).reshape(-1 if column.varies else (units, *column.shape))
