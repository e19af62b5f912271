"""Pictures of a pixel column: how the units of an item make pictures, and where each pixel of a picture lies.

A codec compresses pictures, a model takes patches or crops. What a unit is, is declared by the column
(`Column.picture`), never guessed. `PictureShape` says how the two go together: a patch holds the three colors of
`frames` frames, each `patch_height` x `patch_width` pixels; `merge` x `merge` patches that make one token lie together.
A crop (3, H, W) is a picture of one patch.
"""

import math
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from omniprep.media.compiled import call_compiled
from omniprep.shards.forms import DEFAULTS
from omniprep.shards.schema import Column


@dataclass(frozen=True, slots=True)
class PictureShape:
    """How a picture is cut into patches; sizes in pixels."""

    frames: int
    """Frames of the picture: 2 where a patch holds two frames of a video, else 1."""
    height: int
    width: int
    patch_height: int
    patch_width: int
    merge: int = 1
    channels_last: bool = False
    """The bytes are pixels (height, width, 3), not patches."""

    @property
    def size(self) -> int:
        """Bytes of the picture, as patches or as pixels."""
        return self.frames * 3 * self.height * self.width

    @property
    def cut(self) -> tuple[int, int, int, int, int, int]:
        """The arguments of the compiled functions that say how a picture is cut."""
        return self.frames, self.height, self.width, self.patch_height, self.patch_width, self.merge

    @property
    def _axes(self) -> tuple[int, ...]:
        """(frames, block rows, merge, patch height, block columns, merge, patch width, 3)."""
        rows, columns = self.height // (self.merge * self.patch_height), self.width // (self.merge * self.patch_width)
        return self.frames, rows, self.merge, self.patch_height, columns, self.merge, self.patch_width, 3

    def pixels(self, patches: np.ndarray) -> np.ndarray:
        """The bytes of a picture as pixels uint8 (frames, height, width, 3), contiguous; a copy unless they lie so."""
        if self.channels_last:
            return patches.reshape(self.frames, self.height, self.width, 3)
        frames, rows, merge, high, columns, _, wide, _ = self._axes
        view = patches.reshape(rows, columns, merge, merge, 3, frames, high, wide)
        pixels = view.transpose(5, 0, 2, 6, 1, 3, 7, 4)
        return np.ascontiguousarray(pixels).reshape(frames, self.height, self.width, 3)

    def fill_patches(self, patches: np.ndarray, pixels: np.ndarray) -> None:
        """Pixels uint8 (frames, height, width, 3) into the bytes of a picture; undoes `pixels`."""
        assert patches.flags.c_contiguous  # else they would be filled in a copy
        if self.channels_last:
            patches.reshape(pixels.shape)[...] = pixels
            return
        # Compiled where that is loaded already and the rows are as `resize` leaves them: 0.2 ms a photograph for 0.6.
        rows = pixels.transpose(0, 1, 3, 2)
        kernels = loaded_kernels() if self._fits_compiled(patches, rows) else None
        if kernels is not None:
            call_compiled(kernels.cut_into_patches, rows.reshape(-1), *self.cut, patches.reshape(-1))
            return
        view = pixels.reshape(self._axes).transpose(1, 4, 2, 5, 7, 0, 3, 6)
        patches.reshape(view.shape)[...] = view

    def _fits_compiled(self, patches: np.ndarray, rows: np.ndarray) -> bool:
        """Whether compiled functions, which check nothing, may cut these rows; numpy refuses what does not fit."""
        return (
            self.patch_width >= 8
            and rows.dtype == patches.dtype == np.uint8
            and rows.shape == (self.frames, self.height, 3, self.width)
            and patches.size == self.size
            and self.height % (self.merge * self.patch_height) == 0
            and self.width % (self.merge * self.patch_width) == 0
            and rows.flags.c_contiguous
        )


def load_kernels() -> ModuleType | None:
    """The compiled arithmetic, imported now; None where numba is absent or cannot be used."""
    try:
        from omniprep.shards.codecs import delta_kernels
    except (ImportError, RuntimeError, OSError):  # RuntimeError: numba has no folder for compiled code
        return None
    return delta_kernels


def loaded_kernels() -> ModuleType | None:
    """As `load_kernels`, but None where this process has not imported it; where a thread just does, that is awaited."""
    return load_kernels() if "omniprep.shards.codecs.delta_kernels" in sys.modules else None


def picture_shapes(column: Column, units: int, size: Any) -> tuple[int, PictureShape | None]:
    """Number and shape of the equal pictures that `units` units make; None where they make no picture.

    `size` is the item's value in the column that holds its size: of patches the grid (steps, rows, columns), of items
    that differ in shape their shape (units are then values).
    """
    if column.picture in ("chw", "hwc"):
        item_shape = tuple(int(n) for n in size) if column.varies else (units, *column.shape)
        if not math.prod(item_shape):
            return 0, None
        if item_shape[-3 if column.picture == "chw" else -1] != 3:
            return 1, None
        height, width = item_shape[-2:] if column.picture == "chw" else item_shape[-3:-1]
        crops = math.prod(item_shape[:-3])  # a picture for each unit, or for each frame that a unit holds
        return crops, PictureShape(1, height, width, height, width, channels_last=column.picture == "hwc")
    if not units:  # a grid may say 0 patches in 2**31 steps
        return 0, None
    side, merge = int(column.params["patch_size"]), int((DEFAULTS | column.params)["merge_size"])
    frames = max(column.unit // (3 * side * side), 1)
    if np.size(size) != 3:
        return 1, None
    steps, high, wide = (int(n) for n in size)
    pictures = steps if steps > 0 and units % steps == 0 else 1
    fits = (
        len(column.params.get("mean", "RGB")) == 3
        and column.unit == 3 * frames * side * side
        and high % merge == 0
        and wide % merge == 0
        and high * wide * pictures == units
    )
    return pictures, PictureShape(frames, high * side, wide * side, side, side, merge) if fits else None


def pictures_of_item(
    column: Column, patches: np.ndarray, size: Any
) -> Iterator[tuple[np.ndarray, PictureShape | None]]:
    """The bytes of each picture of an item, uint8 (patches, values), as views, with the picture's shape."""
    count, shape = picture_shapes(column, len(patches), size)
    values = patches.reshape(count, patches.size // max(count, 1)) if column.picture != "patches" else patches
    rows = len(values) // max(count, 1)
    for number in range(count):
        yield values[number * rows : (number + 1) * rows], shape


def pictures_of_items(
    column: Column, patches: np.ndarray, sizes: Iterable[Any]
) -> Iterator[tuple[np.ndarray, PictureShape | None]]:
    """`pictures_of_item` for all items of a column, whose units lie one after the other."""
    start = 0
    for size in sizes:
        units = math.prod(np.asarray(size).reshape(-1).tolist())
        yield from pictures_of_item(column, patches[start : start + units], size)
        start += units
