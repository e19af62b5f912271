"""`--pixel-codec source`: the files of images and videos, and how their pixels are made, in place of the pixels.

A column holds a table (JSON) and files end to end: docs/format.md. The loader decodes and resizes with the functions
that the build called, and compares a hash of the patches: exact wherever the decoding libraries give what the build's
gave, and an error that names both where they do not. The files may be a stranger's: decoders get the same limits,
formats and checks as in a build, and every number of the table is held against the grid or the bytes that are there.
"""

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np

from omniprep.errors import DamagedDataError, OtherPixelsError, Reject
from omniprep.media.recipe import PixelRecipe, decoders, make_pixels
from omniprep.media.source import Source
from omniprep.shards.codecs.base import PixelCodec
from omniprep.shards.codecs.picture import picture_shapes
from omniprep.shards.files import MediaFile, StoredItem, patches_digest
from omniprep.shards.schema import Column
from omniprep.shards.typed import parse_json, typed_record

_LENGTH = struct.Struct("<I")
_DEFAULTS = asdict(PixelRecipe(size=(1, 1), seen=(1, 1)))


@dataclass(frozen=True, kw_only=True, slots=True)
class _FileEntry:
    """Where a file is: `start` counts from the end of the table; `back`, where not 0, from the bin's record batch."""

    key: str
    length: int
    start: int = 0
    back: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class _ItemEntry:
    files: tuple[int, ...]
    hash: str
    recipe: PixelRecipe


@dataclass(frozen=True, kw_only=True, slots=True)
class _Table:
    files: tuple[_FileEntry, ...]
    items: tuple[_ItemEntry, ...]


class Codec(PixelCodec):
    """Files and recipes."""

    name: ClassVar[str] = "source"
    speed: ClassVar[float] = 0.4e9

    def library(self) -> str:
        """The decoders of this machine, which the pixels depend on."""
        return decoders()

    def encode(self, items: Sequence[StoredItem], reused: Mapping[str, int]) -> tuple[np.ndarray, dict[str, int]]:
        """The stored bytes of a column's items, and where in them each new file begins, by its key.

        `reused` files are not stored; it has how many bytes before the bin's record batch each begins.
        """
        numbers: dict[str, int] = {}
        entries, blobs, starts, end = [], [], {}, 0
        for file in (file for item in items for file in item.files):
            if file.key in numbers:
                continue
            numbers[file.key] = len(numbers)
            entry: dict[str, Any] = {"key": file.key, "length": len(file.data)}
            if file.key in reused:
                entry["back"] = reused[file.key]
            else:
                entry["start"] = starts[file.key] = end
                blobs.append(file.data)
                end += len(file.data)
            entries.append(entry)
        described = [
            {
                "files": [numbers[file.key] for file in item.files],
                "hash": item.digest,
                "recipe": {name: value for name, value in asdict(item.recipe).items() if value != _DEFAULTS[name]},
            }
            for item in items
        ]
        table = json.dumps({"files": entries, "items": described}, separators=(",", ":")).encode()
        head = _LENGTH.size + len(table)
        stored = np.frombuffer(b"".join([_LENGTH.pack(len(table)), table, *blobs]), np.uint8)
        return stored, {key: head + start for key, start in starts.items()}

    def stored_items(self, column: Column, data: np.ndarray, before: np.ndarray, *, check: bool) -> list[StoredItem]:
        """The items of a column, their files as views of `data`, or of `before`: what lies before the record batch.

        `check` compares the keys of files of earlier bins, which the checksum of this one does not cover.
        """
        where = f"column {column.name!r}: its table of files"
        view, earlier = (memoryview(np.ascontiguousarray(part).data).cast("B") for part in (data, before))
        if len(view) < _LENGTH.size or (head := _LENGTH.size + _LENGTH.unpack_from(view)[0]) > len(view):
            raise DamagedDataError(f"{where} does not fit into {len(view)} bytes")
        table = typed_record(_Table, parse_json(bytes(view[_LENGTH.size : head]), where), where)
        files = []
        for entry in table.files:
            content, start = (earlier, len(earlier) - entry.back) if entry.back else (view[head:], entry.start)
            if not 0 <= start <= start + entry.length <= len(content):
                raise DamagedDataError(f"{where} has a file outside the bin's bytes")
            file = MediaFile(content[start : start + entry.length], entry.key)
            if check and entry.back and MediaFile.of(file.data).key != entry.key:
                raise DamagedDataError(f"{where} has a file of an earlier bin that is damaged")
            files.append(file)
        items = []
        for item in table.items:
            _check_recipe(item, len(files), where)
            items.append(StoredItem(tuple(files[number] for number in item.files), item.recipe, item.hash))
        return items

    def decode(
        self, column: Column, items: Sequence[StoredItem], sizes: np.ndarray, out: np.ndarray, *, check: bool
    ) -> None:
        """The patches of a column's items, of `sizes` (items, 3), into `out`, uint8 (units, *shape).

        Raises:
            DamagedDataError: Items do not fit the grids.
            OtherPixelsError: A file cannot be decoded here; with `check`, or gives other patches than the build saw.
        """
        if len(items) != len(sizes):
            raise DamagedDataError(f"column {column.name!r}: {len(items)} stored items, the rows have {len(sizes)}")
        made: dict[tuple[Any, ...], np.ndarray] = {}
        start = 0
        for number, (item, size) in enumerate(zip(items, sizes, strict=True), 1):
            units = int(np.prod(size))
            patches, start = out[start : start + units], start + units
            same = (item.recipe, item.digest, *(file.key for file in item.files))
            if same in made:
                patches[...] = made[same]
                continue
            _fill(column, item, size, patches, f"{column.modality} {number}")
            if check and patches_digest(patches) != item.digest:
                raise _other_pixels(
                    column, f"{column.modality} {number}", "its pixels are not those that the build saw"
                )
            made[same] = patches


def _fill(column: Column, item: StoredItem, size: np.ndarray, patches: np.ndarray, name: str) -> None:
    count, shape = picture_shapes(column, len(patches), size)
    if shape is None or item.recipe.seen != (shape.width, shape.height):
        raise DamagedDataError(f"column {column.name!r}: {name} is stored for another size than its grid has")
    frames = count * shape.frames
    if len(item.recipe.frames or (0,)) != frames:
        raise DamagedDataError(f"column {column.name!r}: {name} has other frames than its grid")
    try:
        pixels = make_pixels([Source(data=file.data) for file in item.files], item.recipe)
    except Reject as reject:
        raise _other_pixels(column, name, f"cannot be decoded ({reject.code}: {reject.message})") from reject
    pictures = pixels.reshape(count, shape.frames, shape.height, shape.width, 3)
    for picture, own in zip(pictures, np.split(patches, count), strict=True):
        shape.fill_patches(own, picture)


def _check_recipe(item: _ItemEntry, files: int, where: str) -> None:
    """Hold a recipe against what the decoders allocate for it (the limits of omniprep/media) and the item's files."""
    from omniprep.media.frames import MAX_FRAMES
    from omniprep.media.image import MAX_PIXELS
    from omniprep.media.video import MAX_READ_BYTES

    recipe = item.recipe
    pixels = 1
    for sides in (recipe.size, recipe.seen, *([] if recipe.listed is None else [recipe.listed])):
        if len(sides) != 2 or min(sides) < 1:
            raise DamagedDataError(f"{where}: a size is width and height in pixels")
        pixels = max(pixels, sides[0] * sides[1])
    indices = recipe.frames
    most = MAX_FRAMES if recipe.video is not None else len(item.files)
    if (
        not item.files
        or not all(0 <= number < files for number in item.files)
        or not all(0 <= number < most for number in indices)
        or (recipe.video is not None and (not indices or len(item.files) != 1))
        or pixels > MAX_PIXELS
        or 3 * pixels * max(len(indices), 1) > MAX_READ_BYTES
    ):
        raise DamagedDataError(f"{where}: an item has other files, frames or sizes than media have")


def _other_pixels(column: Column, name: str, fault: str) -> OtherPixelsError:
    return OtherPixelsError(
        f"column {column.name!r}: {name} of the bin: {fault}. Built with {column.params.get('codec_library')}; this "
        f"machine has {decoders()}. Read it with the versions of the build, or run there `omniprep repack "
        "--pixel-codec delta`, whose pixels need no decoder"
    )
