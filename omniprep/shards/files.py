"""Media files as `--pixel-codec source` stores them in a shard, in place of the pixels that are made of them.

A file is stored once for every bin that reaches it: a bin is read by one request for one range of bytes, so a file that
an earlier bin of the shard holds is used again where that range may begin earlier (`FilePlaces`).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import xxhash

from omniprep.media.recipe import PixelRecipe

SPARE_BYTES = 2 << 20
"""A range may hold so many bytes that its bin does not need, or as many as the files of earlier bins that it uses have.
At 100 MB/s from a store that is 20 ms, less than a second request costs."""


@dataclass(frozen=True, slots=True)
class MediaFile:
    """The bytes of a file and their XXH3-128, by which equal files are known."""

    data: bytes | memoryview
    key: str

    @classmethod
    def of(cls, data: bytes | memoryview) -> "MediaFile":
        """A file with its key."""
        return cls(data, xxhash.xxh3_128_hexdigest(data))


@dataclass(frozen=True, slots=True)
class StoredItem:
    """An image or video: its files, how pixels are made of them, and the XXH3-128 of its patches."""

    files: tuple[MediaFile, ...]
    recipe: PixelRecipe
    digest: str

    @property
    def nbytes(self) -> int:
        """Bytes of the files."""
        return sum(len(file.data) for file in self.files)


def patches_digest(patches: np.ndarray) -> str:
    """XXH3-128 of the patches of an item, as raw pixels would be stored."""
    return xxhash.xxh3_128_hexdigest(np.ascontiguousarray(patches).reshape(-1).data)


@dataclass(slots=True)
class FilePlaces:
    """Where the files of a shard were written last; the writer's memory of a few dozen bytes a file."""

    offsets: dict[str, int] = field(default_factory=dict)
    """Key of each file → byte of the shard at which it begins."""

    def reused(self, files: Iterable[MediaFile], batch_start: int) -> dict[str, int]:
        """Which files of a bin are read from earlier bins: key → bytes before the bin's record batch.

        Nearest first, as many as keep the bytes that are read for nothing within `SPARE_BYTES`.
        """
        sizes = {file.key: len(file.data) for file in files}
        known = sorted((batch_start - self.offsets[key], key) for key in sizes if key in self.offsets)
        used, count = 0, 0
        for number, (distance, key) in enumerate(known, 1):
            used += sizes[key]
            if distance - used <= max(SPARE_BYTES, used):
                count = number
        return {key: distance for distance, key in known[:count]}

    def record(self, offsets: Mapping[str, int]) -> None:
        """Take note of files that were written."""
        self.offsets.update(offsets)


def distinct(items: Iterable[Sequence[StoredItem]]) -> list[MediaFile]:
    """The files of the items of some columns, each once, in order."""
    files = {file.key: file for column in items for item in column for file in item.files}
    return list(files.values())
