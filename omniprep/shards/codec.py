"""Lossless pixels in a shard: patches become the picture they were cut from, and that becomes WebP or JPEG XL.

A quarter of the bytes on photographs, a tenth and less on screenshots; encoding costs a build about as much as resizing
does, decoding happens where a bin is read (in the DataLoader's workers) and gives the very arrays of `raw`. The codec
stands in the column's params, so a shard says itself how it is read. It concerns one column and nothing else: its
binary then begins with the number of pictures, and for each its length, height and width (uint32, little endian),
pictures one after the other. A picture whose height is 0 is stored as it is: no codec takes its shape.

The bytes depend on the library's version, which is recorded beside the codec.
"""

import io as _io
import struct
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from omniprep.errors import DamagedDataError, OmniprepError, UsageError
from omniprep.media.guard import raised_by_library, said
from omniprep.shards.schema import Column, Layout

__all__ = ["CODECS", "decode_pixels", "encode_pixels", "with_codec", "without_codec"]

CODECS = ("raw", "webp", "jxl")
MERGE = 2
_MOST = {"webp": 16_383, "jxl": 1 << 20}
_HEAD = struct.Struct("<I")
_ENTRY = struct.Struct("<III")


def with_codec(columns: Sequence[Column], codec: str) -> tuple[Column, ...]:
    """The columns with pixels stored by a codec.

    Args:
        columns: Of a family, or of a shard that was read.
        codec: raw, webp or jxl.

    Raises:
        UsageError: No such codec, or its library is not installed.
    """
    if codec not in CODECS:
        raise UsageError(f"--pixel-codec {codec!r} is not known; known: {', '.join(CODECS)}")
    library = "" if codec == "raw" else _library(codec)
    result = []
    for column in columns:
        if column.load == "patches" and column.dtype == "uint8" and column.sizes.startswith("prod("):
            params = {k: v for k, v in column.params.items() if k not in ("codec", "codec_library")}
            if codec != "raw":
                params |= {"codec": codec, "codec_library": library}
            column = replace(column, params=params)
        result.append(column)
    return tuple(result)


def without_codec(layout: Layout) -> Layout:
    """The layout of the same bins with their pixels stored raw: equal for bins that differ in the codec alone."""
    return replace(layout, columns=with_codec(layout.columns, "raw"))


def _library(codec: str) -> str:
    from PIL import features

    if codec == "webp":
        if not features.check("webp"):
            raise UsageError("--pixel-codec webp: this Pillow was built without WebP")
        return f"libwebp {features.version('webp')}"
    _load_jxl(UsageError)
    from importlib.metadata import version

    return f"pillow-jxl-plugin {version('pillow-jxl-plugin')}"


def _load_jxl(error: type[OmniprepError]) -> None:
    try:
        import pillow_jxl  # noqa: F401
    except ImportError as cause:
        raise error("pixels in JPEG XL need pillow-jxl-plugin: pip install omniprep[jxl]") from cause


def encode_pixels(column: Column, parts: Sequence[np.ndarray], grids: Sequence[np.ndarray]) -> np.ndarray:
    """The bytes of a column's items.

    Args:
        column: With a codec.
        parts: uint8 (units, *shape) of each item.
        grids: What the column's `sizes` names, of each item: (t, h, w) in patches.

    Returns:
        uint8, one-dimensional.
    """
    codec = column.params["codec"]
    entries, blobs = [], []
    for part, grid in zip(parts, grids, strict=True):
        for picture in _pictures(column, part, grid):
            height, width = picture.shape[:2] if picture.ndim == 3 else (0, 0)
            if max(height, width) > _MOST[codec]:
                height = width = 0
            blob = _encode(picture, codec) if height else _unpictured(column, picture)
            entries.append(_ENTRY.pack(len(blob), height, width))
            blobs.append(blob)
    return np.frombuffer(b"".join([_HEAD.pack(len(blobs)), *entries, *blobs]), np.uint8)


def decode_pixels(column: Column, data: np.ndarray, grids: np.ndarray, out: np.ndarray) -> None:
    """The items of a column, into `out`.

    Args:
        column: With a codec.
        data: What `encode_pixels` gave.
        grids: Of all items, (items, 3).
        out: uint8 (units, *shape).

    Raises:
        DamagedDataError: The bytes are no such pictures.
    """
    if column.params["codec"] == "jxl":
        _load_jxl(OmniprepError)
    pictures = _stored(data)
    start = 0
    for grid in grids:
        units = int(np.prod(grid))
        item, start = out[start : start + units], start + units
        steps, size = _split(column, units, grid)
        for step in range(steps):
            target = item[step * size : (step + 1) * size]
            try:
                blob, height, width = next(pictures)
                if not height:
                    target[...] = np.frombuffer(blob, np.uint8).reshape(target.shape)
                    continue
                frames = _frames(column)
                _check_size(column, grid, height, width)
                tall = _decode(blob, column.params["codec"], height, width).reshape(frames, height // frames, width, 3)
                _patched(target, tall, column.params["patch_size"])
            except (OSError, ValueError, StopIteration, struct.error) as error:
                raise DamagedDataError(f"column {column.name!r}: pixels cannot be decoded: {error}") from error


def _frames(column: Column) -> int:
    """Frames that a patch holds: 1 in a still image."""
    side = column.params["patch_size"]
    return max(column.unit // (len(column.params["mean"]) * side * side), 1)


def _split(column: Column, units: int, grid: Any) -> tuple[int, int]:
    """(pictures of an item, patches of each): one for each step in time, where the grid says so."""
    steps = int(grid[0]) if np.size(grid) == 3 and grid[0] > 0 and units % int(grid[0]) == 0 else 1
    return steps, units // steps


def _pictures(column: Column, part: np.ndarray, grid: np.ndarray) -> Iterator[np.ndarray]:
    """The pictures (frames * H, W, 3) of an item; the patches themselves where they make none."""
    steps, size = _split(column, len(part), grid)
    for step in range(steps):
        patches = part[step * size : (step + 1) * size]
        yield _picture(column, patches, grid)


def _picture(column: Column, patches: np.ndarray, grid: np.ndarray) -> np.ndarray:
    side, channels, frames = column.params["patch_size"], len(column.params["mean"]), _frames(column)
    fits = np.size(grid) == 3 and channels == 3 and column.unit == channels * frames * side * side
    if not fits or int(grid[1]) % MERGE or int(grid[2]) % MERGE or int(grid[1]) * int(grid[2]) != len(patches):
        return patches.reshape(-1)
    h, w = int(grid[1]) // MERGE, int(grid[2]) // MERGE
    view = patches.reshape(h, w, MERGE, MERGE, 3, frames, side, side).transpose(5, 0, 2, 6, 1, 3, 7, 4)
    return np.ascontiguousarray(view).reshape(frames * h * MERGE * side, w * MERGE * side, 3)


def _patched(target: np.ndarray, frames: np.ndarray, side: int) -> None:
    """Frames (F, H, W, 3) → patches, in place; the way back of `_picture`."""
    count, height, width, _ = frames.shape
    h, w = height // (MERGE * side), width // (MERGE * side)
    view = frames.reshape(count, h, MERGE, side, w, MERGE, side, 3).transpose(1, 4, 2, 5, 7, 0, 3, 6)
    target.reshape(view.shape)[...] = view


def _unpictured(column: Column, picture: np.ndarray) -> bytes:
    """Patches as they are, also of a picture that is too large for the codec."""
    if picture.ndim == 1:
        return picture.tobytes()
    frames, side = _frames(column), column.params["patch_size"]
    tall = picture.reshape(frames, len(picture) // frames, picture.shape[1], 3)
    patches = np.empty((tall[0].size // (3 * side * side), column.unit), np.uint8)
    _patched(patches, tall, side)
    return patches.tobytes()


def _encode(picture: np.ndarray, codec: str) -> bytes:
    from PIL import Image

    if codec == "jxl":
        _load_jxl(OmniprepError)
    # The fastest settings: better ones cost five times as long for a tenth of the bytes.
    options: Mapping[str, Any] = {
        "webp": {"format": "WEBP", "lossless": True, "quality": 20, "method": 0, "exact": True},
        "jxl": {"format": "JXL", "lossless": True, "effort": 1, "num_threads": 1},
    }[codec]
    target = _io.BytesIO()
    Image.fromarray(picture).save(target, **options)
    return target.getvalue()


def _check_size(column: Column, grid: Any, height: int, width: int) -> None:
    """Hold the size that is written beside a picture against the grid, before anything is decoded."""
    side = column.params["patch_size"]
    expected = (_frames(column) * int(grid[1]) * side, int(grid[2]) * side) if np.size(grid) == 3 else None
    if (height, width) != expected:
        raise ValueError(f"a picture of {width}x{height} pixels where the grid has {expected}")


def _decode(blob: memoryview, codec: str, height: int, width: int) -> np.ndarray:
    """The pixels of a picture, (height, width, 3) uint8.

    A dataset may come from anybody. Pillow alone would take a blob for any of the 40 formats it knows, of which EPS
    starts Ghostscript: only the column's own format is tried, and its header must have the expected size, since
    libwebp and libjxl allocate what the header says.

    Raises:
        ValueError: No picture of that format and size, or damaged.
    """
    from PIL import Image

    found = _header_size(bytes(blob[:64]), codec)
    if found != (width, height):
        raise ValueError(f"no {codec} picture of {width}x{height} pixels (its header says {found})")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # large pictures: their size has been looked at
            with Image.open(_io.BytesIO(blob), formats=[_FORMATS[codec]]) as image:
                if image.size != (width, height):
                    raise ValueError(f"a picture of {image.size} pixels inside")
                return np.asarray(image.convert("RGB") if image.mode != "RGB" else image)
    except Exception as error:  # Pillow's plugins raise almost anything for a damaged file
        if not raised_by_library(error):
            raise
        raise ValueError(said(error)) from error


_FORMATS = {"webp": "WEBP", "jxl": "JXL"}


def _header_size(head: bytes, codec: str) -> tuple[int, int] | None:
    """(width, height) in the header of a picture as `_encode` writes it; None where it is none."""
    if codec == "webp":  # RFC 9649: a lossless picture, alone (VP8L), or behind a canvas of metadata (VP8X)
        if len(head) < 30 or head[:4] != b"RIFF" or head[8:12] != b"WEBP":
            return None
        if head[12:16] == b"VP8L" and head[20] == 0x2F:
            packed = int.from_bytes(head[21:25], "little")
            return (packed & 0x3FFF) + 1, (packed >> 14 & 0x3FFF) + 1
        if head[12:16] == b"VP8X":
            return int.from_bytes(head[24:27], "little") + 1, int.from_bytes(head[27:30], "little") + 1
        return None
    # ISO 18181-1: in a container, the codestream follows the boxes of the signature and the file type.
    at = head.find(b"\xff\x0a", 0, 2) if head[:2] == b"\xff\x0a" else head.find(b"jxlc\xff\x0a") + 4
    if head[at : at + 2] != b"\xff\x0a":
        return None
    bits = _Bits(int.from_bytes(head[at + 2 : at + 14], "little"))
    small = bits.take(1)
    height = 8 * (bits.take(5) + 1) if small else 1 + bits.take((9, 13, 18, 30)[bits.take(2)])
    ratio = bits.take(3)
    if ratio:
        above, below = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))[ratio - 1]
        return height * above // below, height
    return (8 * (bits.take(5) + 1) if small else 1 + bits.take((9, 13, 18, 30)[bits.take(2)])), height


class _Bits:
    """Bits of a number, the lowest first."""

    def __init__(self, value: int) -> None:
        self._value = value

    def take(self, count: int) -> int:
        """The next `count` bits."""
        found, self._value = self._value & (1 << count) - 1, self._value >> count
        return found


def _stored(data: np.ndarray) -> Iterator[tuple[memoryview, int, int]]:
    """(bytes, height, width) of each picture of a column."""
    view = memoryview(np.ascontiguousarray(data).data).cast("B")
    try:
        (count,) = _HEAD.unpack_from(view)
        entries = [_ENTRY.unpack_from(view, _HEAD.size + i * _ENTRY.size) for i in range(count)]
    except struct.error as error:
        raise DamagedDataError(f"pixels cannot be decoded: {error}") from error
    at = _HEAD.size + count * _ENTRY.size
    for length, height, width in entries:
        yield view[at : at + length], height, width
        at += length
