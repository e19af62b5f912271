"""Pictures of a pixel column: how the patches of an item make pictures, and where each pixel of a picture lies.

A codec compresses pictures, a model takes patches. `PictureShape` says how the two go together: a patch holds the three
colors of `frames` frames, each `side` x `side` pixels; `merge` x `merge` patches that make one token lie together.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from omniprep.shards.schema import DEFAULTS, Column


@dataclass(frozen=True, slots=True)
class PictureShape:
    """How a picture is cut into patches; sizes in pixels."""

    frames: int
    """Frames of the picture: 2 where a patch holds two frames of a video, else 1."""
    height: int
    width: int
    side: int
    merge: int

    @property
    def size(self) -> int:
        """Bytes of the picture, as patches or as pixels."""
        return self.frames * 3 * self.height * self.width

    def pixels(self, patches: np.ndarray) -> np.ndarray:
        """Patches uint8 (patches, unit) as pixels uint8 (frames, height, width, 3), a copy."""
        side, merge = self.side, self.merge
        rows, columns = self.height // (merge * side), self.width // (merge * side)
        view = patches.reshape(rows, columns, merge, merge, 3, self.frames, side, side)
        pixels = view.transpose(5, 0, 2, 6, 1, 3, 7, 4)
        return np.ascontiguousarray(pixels).reshape(self.frames, self.height, self.width, 3)

    def fill_patches(self, patches: np.ndarray, pixels: np.ndarray) -> None:
        """Pixels uint8 (frames, height, width, 3) into patches uint8 (patches, unit); undoes `pixels`."""
        side, merge = self.side, self.merge
        rows, columns = self.height // (merge * side), self.width // (merge * side)
        view = pixels.reshape(self.frames, rows, merge, side, columns, merge, side, 3)
        view = view.transpose(1, 4, 2, 5, 7, 0, 3, 6)
        patches.reshape(view.shape)[...] = view


def picture_shapes(column: Column, units: int, grid: Any) -> tuple[int, PictureShape | None]:
    """Number and shape of the equal pictures that `units` patches make; None where they make no picture."""
    side, merge = int(column.params["patch_size"]), int((DEFAULTS | column.params)["merge_size"])
    frames = max(column.unit // (3 * side * side), 1)
    if np.size(grid) != 3:
        return 1, None
    steps, high, wide = (int(n) for n in grid)
    pictures = steps if steps > 0 and units % steps == 0 else 1
    fits = (
        len(column.params["mean"]) == 3
        and column.unit == 3 * frames * side * side
        and high % merge == 0
        and wide % merge == 0
        and high * wide * pictures == units
    )
    return pictures, PictureShape(frames, high * side, wide * side, side, merge) if fits else None


def pictures_of_item(
    column: Column, patches: np.ndarray, grid: Any
) -> Iterator[tuple[np.ndarray, PictureShape | None]]:
    """The patches of each picture of an item, as views, with the picture's shape."""
    count, shape = picture_shapes(column, len(patches), grid)
    size = len(patches) // count
    for number in range(count):
        yield patches[number * size : (number + 1) * size], shape


def pictures_of_items(
    column: Column, patches: np.ndarray, grids: Iterable[Any]
) -> Iterator[tuple[np.ndarray, PictureShape | None]]:
    """`pictures_of_item` for all items of a column, whose patches lie one after the other."""
    start = 0
    for grid in grids:
        units = int(np.prod(grid))
        yield from pictures_of_item(column, patches[start : start + units], grid)
        start += units
