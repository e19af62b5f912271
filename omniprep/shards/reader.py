"""Read single bins: one `preadv` (or one range request) into a buffer that is used again.

A bin is read, not mapped: 20 MB bins come at 7 GB/s into a buffer whose pages exist, at 2.8 GB/s through a memory
map, since each first touch of a page is a fault. The arrays of a bin are views of its buffer, so nothing is copied;
the buffer goes back to the pool by itself when the last view of it is gone, never earlier. Shards are opened when
they are first needed and the last 64 stay open. Everything here belongs to one process; `ShardReader` notices a fork
and starts anew.
"""

import os
import sys
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash

from omniprep import io
from omniprep.errors import DamagedDataError
from omniprep.shards.cache import BinCache
from omniprep.shards.codecs import decode_pixels
from omniprep.shards.content import check_media, check_rows, item_sizes
from omniprep.shards.message import read_batch
from omniprep.shards.schema import Column, Layout, storage_dtype

__all__ = ["BufferPool", "ShardReader", "arrays_of", "buffers_of", "decode", "read_schema"]

_OPEN_FILES = 64
_KEPT_BUFFERS = 8
_SCHEMA_BYTES = 64 << 10
_HASHED_BYTES = 256 << 10  # read and hashed in such pieces, the bytes are still in the cache: a fifth faster than apart


def read_schema(uri: str) -> pa.Schema:
    """The schema of a shard, from its first bytes (one small request).

    Raises:
        DamagedDataError: The file is absent, or does not begin as an Arrow file.
    """
    try:
        head = io.read_range(uri, 0, _SCHEMA_BYTES)
        return pa.ipc.read_schema(pa.ipc.read_message(pa.py_buffer(head)[8:]))
    except (OSError, pa.ArrowException, EOFError, MemoryError, UnicodeDecodeError) as error:
        raise DamagedDataError(
            f"{uri}: cannot read the start of the shard: {' '.join(str(error).split()):.300}"
        ) from error


class BufferPool:
    """Byte buffers that are used again once no array looks into them.

    Whether one is free is read off CPython's reference count, so nothing has to be given back. At most
    `_KEPT_BUFFERS` free ones are kept; more may be alive as long as somebody holds their arrays.
    """

    def __init__(self) -> None:
        self._start()

    def _start(self) -> None:
        self._pid = os.getpid()
        self._buffers = [np.empty(0, np.uint8)]
        self._lock = threading.Lock()
        # References to a buffer that only the pool knows, counted the way `take` counts them.
        self._idle = sys.getrefcount(self._buffers[0])

    def take(self, size: int) -> np.ndarray:
        """A uint8 array of at least `size` bytes that nothing else refers to."""
        if os.getpid() != self._pid:  # forked: another thread may have held the lock, and holds the buffers for ever
            self._start()
        with self._lock:
            idle = [i for i in range(len(self._buffers)) if sys.getrefcount(self._buffers[i]) <= self._idle]
            fitting = [i for i in idle if self._buffers[i].size >= size]
            if fitting:
                return self._buffers[min(fitting, key=lambda i: self._buffers[i].size)]
            fresh = np.empty(size + (size >> 2), np.uint8)  # a quarter more, so that the next bin likely fits too
            if idle:
                self._buffers[idle[0]] = fresh
            elif len(self._buffers) < _KEPT_BUFFERS:
                self._buffers.append(fresh)
            return fresh


class _File:
    """A file descriptor that closes with its last reference, so that no thread loses one it reads from."""

    __slots__ = ("number",)

    def __init__(self, path: str) -> None:
        self.number = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))

    def __del__(self) -> None:
        if hasattr(self, "number"):  # not set where the file could not be opened
            os.close(self.number)


class ShardReader:
    """Reads bins of the shards of one dataset.

    Args:
        uris: The shards, by number.
        cache: Where bins of remote shards are kept.
    """

    def __init__(self, uris: Sequence[str], cache: BinCache | None = None) -> None:
        self._uris, self._cache = uris, cache
        self._start()

    def _start(self) -> None:
        self._pid = os.getpid()
        self._files: OrderedDict[int, _File] = OrderedDict()
        self._lock = threading.Lock()
        self._pool = BufferPool()
        self._blank = np.empty(0, np.uint8)

    def blank(self, length: int) -> np.ndarray:
        """A uint8 array (length or more,) for the head of a record batch; pages never written to take no memory."""
        self._start_if_forked()
        if len(self._blank) < length:
            self._blank = np.empty(2 * length, np.uint8)
        return self._blank

    def read(self, shard: int, offset: int, length: int, checksum: int | None = None) -> np.ndarray:
        """The bytes of one record batch, uint8 (length,), at the start of a pooled buffer.

        Args:
            shard: Number of the shard.
            offset: First byte of the batch in it.
            length: Bytes of the batch.
            checksum: XXH3 of the batch from the index, or None to take the bytes as they are.

        Raises:
            DamagedDataError: The file is absent or too short, or its bytes have another checksum; names the file.
        """
        if self.is_local(shard):
            self.check_size(shard, offset, length)
            data = self.buffer(length)
            self.read_into(shard, offset, [data], checksum)
            return data
        uri = self._uris[shard]
        try:
            if self._cache is None:
                got = io.read_range(uri, offset, offset + length)
            else:
                got = self._cache.read(uri, offset, length)
        except OSError as error:
            raise DamagedDataError(f"{uri}: cannot read bytes {offset} to {offset + length}: {error}") from error
        if len(got) != length:
            raise DamagedDataError(f"{uri}: ends at byte {offset + len(got)}, but a bin reaches to {offset + length}")
        data = self.buffer(length)
        data[:] = np.frombuffer(got, np.uint8)
        if checksum is not None and xxhash.xxh3_64_intdigest(data.data) != checksum:
            if self._cache is not None:
                self._cache.drop(uri, offset, length)
            raise DamagedDataError(f"{uri} is damaged: bytes {offset} to {offset + length} have another checksum")
        return data

    def read_into(self, shard: int, offset: int, views: Sequence[np.ndarray], checksum: int | None = None) -> None:
        """Read bytes of a local shard, one after the other, into some uint8 arrays.

        Raises:
            DamagedDataError: As `read`.
        """
        uri, length = self._uris[shard], sum(len(view) for view in views)
        digest = None if checksum is None else xxhash.xxh3_64()
        try:
            got = _read_local(self._open(shard), offset, views, digest)
        except OSError as error:
            raise DamagedDataError(f"{uri}: cannot read bytes {offset} to {offset + length}: {error}") from error
        if got != length:
            raise DamagedDataError(f"{uri}: ends at byte {offset + got}, but a bin reaches to {offset + length}")
        if digest is not None and digest.intdigest() != checksum:
            raise DamagedDataError(f"{uri} is damaged: bytes {offset} to {offset + length} have another checksum")

    def check_size(self, shard: int, offset: int, length: int) -> None:
        """Raise where a local shard ends before these bytes do: memory is taken for what is there, not for what an
        index says.

        Raises:
            DamagedDataError: It is absent or too short; names the file.
        """
        uri = self._uris[shard]
        try:
            size = os.fstat(self._open(shard).number).st_size
        except OSError as error:
            raise DamagedDataError(f"{uri}: cannot read bytes {offset} to {offset + length}: {error}") from error
        if offset + length > size:
            raise DamagedDataError(f"{uri}: ends at byte {size}, but a bin reaches to {offset + length}")

    def expect(self, shard: int, offset: int, length: int) -> None:
        """Tell the kernel that bytes of a local shard are read soon, where it takes such advice."""
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._open(shard).number, offset, length, os.POSIX_FADV_WILLNEED)

    def buffer(self, length: int) -> np.ndarray:
        """A uint8 array (length,) at the start of a pooled buffer that nothing else refers to."""
        self._start_if_forked()
        return self._pool.take(length)[:length]

    def is_local(self, shard: int) -> bool:
        """Whether a shard is a file of this machine."""
        return io.is_local(self._uris[shard])

    def name(self, shard: int) -> str:
        """URI of a shard."""
        return self._uris[shard]

    def _start_if_forked(self) -> None:
        if os.getpid() != self._pid:  # leave the parent its files and buffers
            self._start()

    def _open(self, shard: int) -> _File:
        self._start_if_forked()
        with self._lock:
            if shard in self._files:
                self._files.move_to_end(shard)
                return self._files[shard]
            file = _File(io.local_path(self._uris[shard]))
            self._files[shard] = file
            if len(self._files) > _OPEN_FILES:
                self._files.popitem(last=False)
            return file

    def close(self) -> None:
        """Close the files; a later read opens them again."""
        with self._lock:
            self._files.clear()


def _read_local(file: _File, offset: int, views: Sequence[np.ndarray], digest: xxhash.xxh3_64 | None) -> int:
    """One scattering read where nothing is hashed; it may end early: at 2 GiB, or at a signal."""
    waiting = [memoryview(view.data) for view in views if len(view)]
    got = 0
    while waiting:
        asked = waiting if digest is None else [waiting[0][:_HASHED_BYTES]]
        step = os.preadv(file.number, asked, offset + got)
        if step == 0:
            break
        if digest is not None:
            digest.update(waiting[0][:step])
        got += step
        while waiting and step >= len(waiting[0]):
            step -= len(waiting.pop(0))
        if step:
            waiting[0] = waiting[0][step:]
    return got


def decode(data: np.ndarray, schema: pa.Schema, layout: Layout) -> dict[str, Any]:
    """The arrays of one record batch, as writable views of `data`.

    Args:
        data: uint8, the whole record batch; must own its memory or be a slice of an array that does.
        schema: Schema of the shard.
        layout: What the schema declares.

    Returns:
        The fixed columns under their names, position_ids as (3, L), row_items as (R, M); items columns as (items,
        *shape); flat columns as (units, *shape), or for spectrograms (load "mel"), whose items are transposed, one
        flat array. Null columns are absent. bfloat16 is uint16. "columns" declares the media columns, "modalities"
        names the M of row_items, "layout" is all that the shard declares.

    Raises:
        DamagedDataError: It is no record batch of this schema, or what it holds is no bin.
    """
    places = buffers_of(data, schema)
    return arrays_of({name: data[start : start + size] for name, (start, size) in places.items()}, schema, layout)


def buffers_of(data: np.ndarray, schema: pa.Schema) -> dict[str, tuple[int, int]]:
    """First byte and number of bytes of the values of each column that is not null, within a record batch.

    Args:
        data: uint8, as long as the record batch; only its head is looked at.
        schema: Schema of the shard.

    Raises:
        DamagedDataError: As `decode`.
    """
    places = {}
    for field, array in zip(schema, read_batch(data, schema).columns, strict=True):
        if not array.null_count:
            values = array.buffers()[-1]  # an empty column may have none
            start, size = (values.address - data.ctypes.data, values.size) if values else (0, 0)
            if not 0 <= start <= start + size <= len(data):
                raise DamagedDataError(f"column {field.name!r} lies outside its record batch")
            places[field.name] = (start, size)
    return places


def arrays_of(values: Mapping[str, np.ndarray], schema: pa.Schema, layout: Layout) -> dict[str, Any]:
    """What `decode` returns, from the bytes of each column, uint8.

    Raises:
        DamagedDataError: As `decode`.
    """
    arrays: dict[str, Any] = {"columns": layout.columns, "modalities": layout.modalities, "layout": layout}
    kinds = {column.name: column for column in layout.columns}
    coded = []
    for field in schema:
        if field.name not in values:
            continue
        column, data = kinds.get(field.name), values[field.name]
        if column is None or column.kind == "items":
            dtype = np.dtype(field.type.value_type.to_pandas_dtype())
            view = _as_units(field.name, data, dtype, 1 if column is None else column.unit)
            arrays[field.name] = view if column is None else view.reshape(-1, *column.shape)
        elif "codec" in column.params:
            coded.append(column)
        else:
            view = _as_units(field.name, data, storage_dtype(column.dtype), column.unit)
            arrays[field.name] = view if column.load == "mel" else view.reshape(-1, *column.shape)
    check_rows(arrays, layout)
    check_media(arrays, layout, coded)
    for column in coded:
        arrays[column.name] = _decoded(column, values[column.name].view(storage_dtype(column.dtype)), arrays)
    return arrays


def _as_units(name: str, data: np.ndarray, dtype: np.dtype[Any], unit: int) -> np.ndarray:
    if len(data) % (dtype.itemsize * unit):
        raise DamagedDataError(f"column {name!r}: {len(data)} bytes are no whole number of values")
    return data.view(dtype)


_PICTURES = BufferPool()


def _decoded(column: Column, data: np.ndarray, arrays: Mapping[str, Any]) -> np.ndarray:
    units = int(item_sizes(column, arrays).sum())
    size = units * column.unit
    patches = _PICTURES.take(size)[:size].reshape(units, *column.shape)
    decode_pixels(column, data, arrays[column.size_source()[0]], patches)
    return patches
