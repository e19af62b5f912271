"""What a pixel codec is, and the frame around the pictures of a column that codecs of single pictures share.

The binary of a column begins with the number of pictures, and for each its length in bytes, height and width in pixels
(uint32, little endian); then their bytes. A height of 0 says that the patches are stored as they are: they make no
picture, or one with a side longer than the codec takes.
"""

import math
import struct
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np

from omniprep.errors import DamagedDataError
from omniprep.shards.codecs.picture import PictureShape, pictures_of_item, pictures_of_items
from omniprep.shards.schema import Column

_COUNT = struct.Struct("<I")
_ENTRY = struct.Struct("<III")


class PixelCodec(ABC):
    """A way to store the pixels of a column; `library` is recorded beside its name in the shard's schema."""

    name: ClassVar[str]
    """As `--pixel-codec` and the column's params have it."""
    speed: ClassVar[float]
    """Bytes of patches that a core loads in a second, about, of photographs; what `omniprep plan` promises."""

    @abstractmethod
    def library(self) -> str:
        """Name and version of the library at work; UsageError has the pip command where it is absent."""


class PatchCodec(PixelCodec):
    """A lossless way to compress the patches of a column.

    The bytes depend on the version of the library that wrote them. Reading needs any version of it.
    """

    size_of_delta: ClassVar[float]
    """Stored bytes by those that delta takes, for photographs (benchmarks/results/load_codecs.json); where shards are
    cut depends on it."""

    @abstractmethod
    def encode_items(self, column: Column, parts: Sequence[Any], sizes: Sequence[np.ndarray]) -> np.ndarray:
        """The stored bytes of a column's items, uint8 (bytes,).

        `sizes` has each item's value in the column that `Column.sizes` names: of patches the grid (t, h, w).
        """

    @abstractmethod
    def decode_items(self, column: Column, data: np.ndarray, sizes: np.ndarray, out: np.ndarray) -> None:
        """Decode the items of a column, by their `sizes` (items, ...), into `out`, uint8 (units, *shape).

        Any content of a hostile file is a DamagedDataError; nothing outside `data` and `out` was read or written.
        """


class StoredPicture(NamedTuple):
    """A compressed picture; height 0: its patches as they are."""

    blob: bytes
    height: int
    width: int


@dataclass(frozen=True, slots=True, eq=False)
class CompressedItem:
    """An item in the place of its patches, which another thread compresses while the next one is decoded.

    So a bin's patches are never held together, and their memory, which is warm, serves the next item: the page faults
    of fresh memory took 0.5 ms a photograph of 1.6 MB.
    """

    shape: tuple[int, ...]
    """Of its patches."""
    nbytes: int
    """Bytes that it may take once it is compressed, for caches: half of its patches; photographs take a quarter."""
    pictures: "Future[list[StoredPicture]]"

    @property
    def size(self) -> int:
        """Values of its patches."""
        return math.prod(self.shape)


class PictureCodec(PatchCodec):
    """A codec that compresses one picture at a time."""

    longest_side: ClassVar[int]
    """Pixels; a picture with a longer side is stored uncompressed."""

    @abstractmethod
    def encode(self, patches: np.ndarray, shape: PictureShape) -> bytes:
        """Compress a picture from its patches, uint8 (patches, unit), contiguous."""

    @abstractmethod
    def decode(self, blob: memoryview, shape: PictureShape, patches: np.ndarray) -> None:
        """Decompress a picture of a known shape into its patches, uint8 (patches, unit), in place.

        Of a damaged or hostile file: ValueError or OSError.
        """

    def compress_item(self, column: Column, part: np.ndarray, size: Any) -> list[StoredPicture]:
        """The pictures of an item, by its value in the column that holds its size."""
        stored = []
        # As `decode_items` has them: a family may give one unit without its axis, or the values of all in a row.
        units = np.ascontiguousarray(part if column.varies else part.reshape(-1, *column.shape))
        for patches, shape in pictures_of_item(column, units, size):
            if shape is None or max(shape.frames * shape.height, shape.width) > self.longest_side:
                stored.append(StoredPicture(patches.tobytes(), 0, 0))
            else:
                blob = self.encode(patches, shape)
                stored.append(StoredPicture(blob, shape.frames * shape.height, shape.width))
        return stored

    def encode_items(self, column: Column, parts: Sequence[Any], sizes: Sequence[np.ndarray]) -> np.ndarray:
        """Pictures one after the other; those of an item may be compressed already, or just be."""
        stored = [
            picture
            for part, size in zip(parts, sizes, strict=True)
            for picture in (
                part.pictures.result() if isinstance(part, CompressedItem) else self.compress_item(column, part, size)
            )
        ]
        entries = [_ENTRY.pack(len(blob), height, width) for blob, height, width in stored]
        return np.frombuffer(b"".join([_COUNT.pack(len(stored)), *entries, *(blob for blob, _, _ in stored)]), np.uint8)

    def decode_items(self, column: Column, data: np.ndarray, sizes: np.ndarray, out: np.ndarray) -> None:
        """Picture by picture; a picture must have the size that its grid or crop has."""
        stored = _stored_pictures(column, data)
        for number, (patches, shape) in enumerate(pictures_of_items(column, out, sizes)):
            try:
                blob, height, width = next(stored, (memoryview(b""), 0, 0))
                if not height:
                    patches[...] = np.frombuffer(blob, np.uint8).reshape(patches.shape)
                elif shape is None or (height, width) != (shape.frames * shape.height, shape.width):
                    expected = None if shape is None else (shape.width, shape.frames * shape.height)
                    raise ValueError(f"a picture of {width}x{height} pixels where the grid has {expected}")
                else:
                    self.decode(blob, shape, patches)
            except (OSError, ValueError, SyntaxError) as error:
                what = f"column {column.name!r}: picture {number + 1}"
                raise DamagedDataError(f"{what} cannot be decoded from its {self.name} pixels: {error}") from error


def _stored_pictures(column: Column, data: np.ndarray) -> Iterator[tuple[memoryview, int, int]]:
    """(bytes, height, width) of each picture of a column."""
    view = memoryview(np.ascontiguousarray(data).data).cast("B")
    try:
        (count,) = _COUNT.unpack_from(view)
        offset = _COUNT.size + count * _ENTRY.size
        if offset > len(view):
            raise struct.error(f"{count} pictures do not fit into {len(view)} bytes")
        for number in range(count):
            length, height, width = _ENTRY.unpack_from(view, _COUNT.size + number * _ENTRY.size)
            yield view[offset : offset + length], height, width
            offset += length
    except struct.error as error:
        raise DamagedDataError(f"column {column.name!r}: its pixels cannot be decoded: {error}") from error
