"""Read several bins so that their media lie end to end: what one batch of them needs, without a copy.

Two bins that are read one after the other and then joined cost a read and a copy. Here the head of each record batch
is read first, which tells where its columns lie, and then one scattering `preadv` a bin puts the large columns (pixels
as stored) where the batch wants them and the rest behind. Spectrograms, which are padded, and pixels that must be
decoded are no part of this.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from omniprep.errors import DamagedDataError
from omniprep.shards.reader import ShardReader, arrays_of, buffers_of
from omniprep.shards.schema import Layout

__all__ = ["Place", "adjacent", "read_joined"]

_HEAD_BYTES = 16 << 10
_ALIGN = 64


@dataclass(frozen=True, slots=True)
class Place:
    """A record batch: bytes offset .. offset+length of a shard, and their XXH3, or None to take them as they are."""

    shard: int
    offset: int
    length: int
    checksum: int | None = None


@dataclass(slots=True)
class _Pieces:
    """A record batch in pieces, in the order of the file: (first byte, bytes, column that is joined or None)."""

    ends: list[tuple[int, int, str | None]]
    buffers: dict[str, tuple[int, int]]


def read_joined(
    reader: ShardReader, places: Sequence[Place], schema: pa.Schema, layout: Layout
) -> list[dict[str, Any]]:
    """The arrays of some record batches of local shards, as `decode` gives them, flat columns end to end.

    Args:
        reader: Of the shards.
        places: Where the batches are.
        schema: Schema of the shards.
        layout: What the schema declares.

    Raises:
        DamagedDataError: A file is absent, too short, or its bytes have another checksum; names the file.
    """
    for place in places:
        reader.expect(place.shard, place.offset, place.length)
    joined = {c.name for c in layout.columns if c.kind == "flat" and c.load != "mel" and "codec" not in c.params}
    batches = [_pieces(reader, place, schema, joined) for place in places]
    homes, total = _arrange(batches)
    memory = reader.buffer(total)
    return [
        _read(reader, place, pieces, home, memory, schema, layout)
        for place, pieces, home in zip(places, batches, homes, strict=True)
    ]


def _pieces(reader: ShardReader, place: Place, schema: pa.Schema, joined: set[str]) -> _Pieces:
    reader.check_size(place.shard, place.offset, place.length)
    blank = reader.blank(place.length)
    size = min(_HEAD_BYTES, place.length)
    reader.read_into(place.shard, place.offset, [blank[:size]])
    head = 8 + int(blank[4:8].view(np.int32)[0])
    if not 8 <= head <= place.length:
        raise DamagedDataError(f"{reader.name(place.shard)}: no record batch at byte {place.offset}")
    if head > size:
        reader.read_into(place.shard, place.offset, [blank[:head]])
    buffers = buffers_of(blank[: place.length], schema)
    cuts = sorted((start, size, name) for name, (start, size) in buffers.items() if name in joined and size)
    ends: list[tuple[int, int, str | None]] = []
    at = 0
    for start, size, name in cuts:
        ends += [(at, start - at, None), (start, size, name)]
        at = start + size
    return _Pieces([*ends, (at, place.length - at, None)], buffers)


def _arrange(batches: Sequence[_Pieces]) -> tuple[list[list[int]], int]:
    """Where each piece of each batch goes in one buffer, and the buffer's size."""
    homes = [[0] * len(batch.ends) for batch in batches]
    at = 0
    for name in dict.fromkeys(name for batch in batches for _, _, name in batch.ends if name is not None):
        for batch, home in zip(batches, homes, strict=True):
            for number, (_, size, column) in enumerate(batch.ends):
                if column == name:
                    home[number], at = at, at + size
        at = -(-at // _ALIGN) * _ALIGN
    for batch, home in zip(batches, homes, strict=True):
        for number, (start, size, column) in enumerate(batch.ends):
            if column is None:
                at += (start - at) % _ALIGN  # numbers stay aligned as they are in the file
                home[number], at = at, at + size
    return homes, at


def _read(
    reader: ShardReader, place: Place, pieces: _Pieces, home: list[int], memory: np.ndarray, schema: pa.Schema,
    layout: Layout,
) -> dict[str, Any]:  # fmt: skip
    views = [memory[to : to + size] for to, (_, size, _) in zip(home, pieces.ends, strict=True)]
    reader.read_into(place.shard, place.offset, views, place.checksum)

    def view(name: str) -> np.ndarray:
        start, size = pieces.buffers[name]
        for to, (first, length, _) in zip(home, pieces.ends, strict=True):
            if first <= start and start + size <= first + length:
                return memory[to + start - first :][:size]
        raise DamagedDataError(f"{reader.name(place.shard)}: column {name!r} lies outside its record batch")

    return arrays_of({name: view(name) for name in pieces.buffers}, schema, layout)


def adjacent(parts: Sequence[np.ndarray]) -> np.ndarray | None:
    """Some arrays (n, *shape) as one, where each begins in memory at the end of the one before it; else None."""
    owner, size = parts[0].base, sum(part.nbytes for part in parts)
    starts = [part.ctypes.data for part in parts]
    follows = all(a + part.nbytes == b for a, part, b in zip(starts, parts, starts[1:], strict=False))
    if not isinstance(owner, np.ndarray) or not follows or any(part.base is not owner for part in parts):
        return None
    start = starts[0] - owner.ctypes.data
    whole = owner.reshape(-1).view(np.uint8)[start : start + size]
    return whole.view(parts[0].dtype).reshape(-1, *parts[0].shape[1:])
