"""Pixels in a shard: how a column's patches are stored, by a codec that the column itself names.

raw stores the patches as they are. Every other codec stores pictures (omniprep/shards/codecs/picture.py) one after the
other: the binary begins with the number of pictures, and for each its length in bytes, height and width in pixels
(uint32, little endian); then their bytes. A height of 0 says that the patches are stored as they are: they make no
picture, or one with a side longer than the codec takes. The codec stands in the column's params, so a shard says itself
how it is read, and concerns that column alone.
"""

import struct
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from omniprep.errors import DamagedDataError, UsageError
from omniprep.shards.codecs.base import PixelCodec
from omniprep.shards.codecs.delta import DeltaCodec
from omniprep.shards.codecs.jxl import JxlCodec
from omniprep.shards.codecs.picture import pictures_of_item, pictures_of_items
from omniprep.shards.codecs.webp import WebpCodec
from omniprep.shards.schema import Column, Layout

__all__ = ["CODECS", "codec_of", "decode_pixels", "encode_pixels", "stored_share", "with_codec", "without_codec"]

_BY_NAME: dict[str, PixelCodec] = {codec.name: codec for codec in (DeltaCodec(), WebpCodec(), JxlCodec())}
CODECS = ("raw", *_BY_NAME)
_COUNT = struct.Struct("<I")
_ENTRY = struct.Struct("<III")


def with_codec(columns: Sequence[Column], codec: str) -> tuple[Column, ...]:
    """The columns with pixels stored by a codec.

    Args:
        columns: Of a family, or of a shard that was read.
        codec: One of `CODECS`.

    Raises:
        UsageError: No such codec, or its library is not installed.
    """
    if codec not in CODECS:
        raise UsageError(f"--pixel-codec {codec!r} is not known; known: {', '.join(CODECS)}")
    chosen = {} if codec == "raw" else {"codec": codec, "codec_library": _BY_NAME[codec].library()}
    result = []
    for column in columns:
        if column.load == "patches" and column.dtype == "uint8" and column.sizes.startswith("prod("):
            params = {k: v for k, v in column.params.items() if k not in ("codec", "codec_library")}
            column = replace(column, params=params | chosen)
        result.append(column)
    return tuple(result)


def without_codec(layout: Layout) -> Layout:
    """The layout of the same bins with their pixels stored raw: equal for bins that differ in the codec alone."""
    return replace(layout, columns=with_codec(layout.columns, "raw"))


def stored_share(codec: str) -> float:
    """Stored bytes by bytes of the patches, about; `codec` is one of `CODECS`."""
    return 1.0 if codec == "raw" else _BY_NAME[codec].share


def codec_of(column: Column) -> PixelCodec | None:
    """The codec of a column; None where its patches are stored as they are.

    Raises:
        DamagedDataError: The shard names a codec that this version does not know.
    """
    name = column.params.get("codec")
    if name is None:
        return None
    if name not in _BY_NAME:
        raise DamagedDataError(
            f"column {column.name!r}: pixel codec {name!r} is not known; known: {', '.join(CODECS)} (a newer omniprep "
            "may have written it)"
        )
    return _BY_NAME[name]


def encode_pixels(column: Column, parts: Sequence[np.ndarray], grids: Sequence[np.ndarray]) -> np.ndarray:
    """The stored bytes of a column's items.

    Args:
        column: With a codec.
        parts: uint8 (units, *shape) of each item.
        grids: What the column's `sizes` names, of each item: (t, h, w) in patches.

    Returns:
        uint8, one-dimensional.
    """
    codec = codec_of(column)
    assert codec is not None, column.name
    entries, blobs = [], []
    for part, grid in zip(parts, grids, strict=True):
        for patches, shape in pictures_of_item(column, np.ascontiguousarray(part), grid):
            if shape is None or max(shape.frames * shape.height, shape.width) > codec.longest_side:
                blobs.append(patches.tobytes())
                entries.append(_ENTRY.pack(len(blobs[-1]), 0, 0))
            else:
                blobs.append(codec.encode(patches, shape))
                entries.append(_ENTRY.pack(len(blobs[-1]), shape.frames * shape.height, shape.width))
    return np.frombuffer(b"".join([_COUNT.pack(len(blobs)), *entries, *blobs]), np.uint8)


def decode_pixels(column: Column, data: np.ndarray, grids: np.ndarray, out: np.ndarray) -> None:
    """The items of a column, into `out`.

    Args:
        column: With a codec.
        data: What `encode_pixels` gave.
        grids: Of all items, (items, 3).
        out: uint8 (units, *shape), contiguous.

    Raises:
        DamagedDataError: The bytes are no such pictures; nothing outside `data` and `out` was read or written.
    """
    codec = codec_of(column)
    assert codec is not None, column.name
    pictures = _stored(column, data)
    for number, (patches, shape) in enumerate(pictures_of_items(column, out, grids)):
        try:
            blob, height, width = next(pictures, (memoryview(b""), 0, 0))
            if not height:
                patches[...] = np.frombuffer(blob, np.uint8).reshape(patches.shape)
            elif shape is None or (height, width) != (shape.frames * shape.height, shape.width):
                expected = None if shape is None else (shape.width, shape.frames * shape.height)
                raise ValueError(f"a picture of {width}x{height} pixels where the grid has {expected}")
            else:
                codec.decode(blob, shape, patches)
        except (OSError, ValueError, SyntaxError) as error:
            raise DamagedDataError(
                f"column {column.name!r}: picture {number + 1} cannot be decoded from its {codec.name} pixels: {error}"
            ) from error


def _stored(column: Column, data: np.ndarray) -> Iterator[tuple[memoryview, int, int]]:
    """(bytes, height, width) of each picture of a column."""
    view = memoryview(np.ascontiguousarray(data).data).cast("B")
    at = 0
    try:
        (count,) = _COUNT.unpack_from(view)
        at = _COUNT.size + count * _ENTRY.size
        if at > len(view):
            raise struct.error(f"{count} pictures do not fit into {len(view)} bytes")
        for number in range(count):
            length, height, width = _ENTRY.unpack_from(view, _COUNT.size + number * _ENTRY.size)
            yield view[at : at + length], height, width
            at += length
    except struct.error as error:
        raise DamagedDataError(f"column {column.name!r}: its pixels cannot be decoded: {error}") from error
