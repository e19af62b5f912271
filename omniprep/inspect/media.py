"""Media of a row as the shard holds them: the numbers of each item, and pictures rebuilt from what is stored.

Nothing is scaled: a rebuilt picture is exactly what the model sees, before normalization.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from omniprep.shards.codecs.picture import pictures_of_item
from omniprep.shards.content import item_sizes
from omniprep.shards.schema import Column

SPECTROGRAM_HEIGHT = 96
SPECTROGRAM_WIDTHS = (60, 480)
# The colors of matplotlib's "magma", at fifths.
_MAGMA = np.array(
    [[0, 0, 4], [59, 15, 112], [140, 41, 129], [222, 73, 104], [254, 159, 109], [252, 253, 191]], np.float32
)


@dataclass(slots=True)
class MediaItem:
    """One media item of a row."""

    modality: str
    facts: dict[str, Any] = field(default_factory=dict)
    """What the items columns hold of it, by column; width and height in pixels for pictures."""
    column: Column | None = None
    """The flat column that holds its patches or spectrogram; None where none does."""
    values: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint8))
    grid: tuple[int, ...] = ()
    """Of patches: how many there are along time, height and width."""

    @property
    def has_pixels(self) -> bool:
        """Whether it is a picture or a video."""
        return self.column is not None and bool(self.column.picture)

    def frames(self) -> np.ndarray | None:
        """A picture, the frames of a video or a spectrogram, uint8 (frames, height, width, 3); None of other items."""
        if self.column is None:
            return None
        if self.column.load == "mel":
            return np.asarray(spectrogram_picture(self.values.reshape(self.column.unit, -1)))[None]
        frames = [
            shape.pixels(patches)
            for patches, shape in pictures_of_item(self.column, self.values, self.grid)
            if shape is not None
        ]
        return np.concatenate(frames) if frames else None


def media_of(arrays: Mapping[str, Any]) -> list[MediaItem]:
    """The media items of one row, with what the shard holds of each."""
    items: list[MediaItem] = []
    for column in arrays["columns"]:
        if column.name not in arrays or (column.kind == "flat" and not (column.picture or column.load == "mel")):
            continue
        stored = arrays[column.name]
        count = len(stored if column.kind == "items" else arrays[column.size_source()[0]])
        # The columns of a modality describe the same items in the same order.
        known = [item for item in items if item.modality == column.modality]
        if not known:
            known = [MediaItem(column.modality) for _ in range(count)]
            items += known
        if column.kind == "items":
            for item, value in zip(known, stored, strict=True):
                item.facts[column.name] = value.tolist()
            continue
        unit = column.unit if column.load == "mel" else 1
        parts = np.split(stored, np.cumsum(item_sizes(column, arrays))[:-1] * unit)
        for item, values, grid in zip(known, parts, arrays[column.size_source()[0]], strict=True):
            item.column, item.values = column, values
            if column.picture == "patches":
                item.grid, side = tuple(grid.tolist()), int(column.params["patch_size"])
                item.facts |= {"width": item.grid[-1] * side, "height": item.grid[-2] * side}
    return items


def spectrogram_picture(features: np.ndarray) -> Image.Image:
    """A spectrogram, bfloat16 as uint16 (bands, frames), as a picture, low frequencies below."""
    values = (features.astype(np.uint32) << 16).view(np.float32)
    low, high = float(values.min()), float(values.max())
    level = (values - low) / (high - low if high > low else 1.0) * (len(_MAGMA) - 1)
    below = np.minimum(level.astype(np.int64), len(_MAGMA) - 2)
    share = (level - below)[..., None]
    colors = _MAGMA[below] * (1 - share) + _MAGMA[below + 1] * share
    image = Image.fromarray(colors.astype(np.uint8)[::-1])
    width = min(max(image.width, SPECTROGRAM_WIDTHS[0]), SPECTROGRAM_WIDTHS[1])
    return image.resize((width, SPECTROGRAM_HEIGHT), Image.Resampling.BILINEAR)
