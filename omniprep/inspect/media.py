"""Media of a row as the shard holds them: the numbers of each item, and pictures rebuilt from what is stored.

Nothing is scaled: a rebuilt picture is exactly what the model sees, before normalization.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from omniprep.shards.codecs.picture import picture_shapes, pictures_of_item
from omniprep.shards.content import split_items
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
    """What the columns of items and rows hold of it, by column; width and height in pixels for pictures, their number
    where an item has several; of other values their shape."""
    column: Column | None = None
    """The flat column that holds its pictures or spectrogram; None where none does."""
    values: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint8))
    """What that column holds of it, in its shape; units of pixels alone."""
    size: tuple[int, ...] = ()
    """Of pixels: the item's entry in the column that holds its size; of patches the grid."""

    @property
    def has_pixels(self) -> bool:
        """Whether it is a picture or a video."""
        return self.column is not None and bool(self.column.picture)

    def frames(self) -> np.ndarray | None:
        """A picture, the frames of a video or a spectrogram, uint8 (frames, height, width, 3); None of other items."""
        if self.column is None:
            return None
        if not self.column.picture:
            features = _bands_and_frames(self.column, self.values)
            return None if features is None else np.asarray(spectrogram_picture(features))[None]
        frames = [
            shape.pixels(patches)
            for patches, shape in pictures_of_item(self.column, self.values, self.size)
            if shape is not None
        ]
        return np.concatenate(frames) if frames else None


def media_of(arrays: Mapping[str, Any]) -> list[MediaItem]:
    """The media items of one row, with what the shard holds of each."""
    counts = dict(zip(arrays["layout"].modalities, arrays["row_items"].sum(axis=0).tolist(), strict=True))
    items: dict[str, list[MediaItem]] = {}
    companions = {column.companion for column in arrays["columns"]}
    for column in arrays["columns"]:
        if column.name not in arrays or column.name in companions or column.kind == "tokens":
            continue
        # The columns of a modality describe the same items in the same order.
        known = items.setdefault(column.modality, [MediaItem(column.modality) for _ in range(counts[column.modality])])
        stored = arrays[column.name]
        if column.kind != "flat":
            for number, item in enumerate(known):
                item.facts[column.name] = stored[number if column.kind == "items" else 0].tolist()
            continue
        sizes = arrays[column.size_source()[0]]
        for item, values, size in zip(known, split_items(column, arrays), sizes, strict=True):
            _describe(item, column, values, np.asarray(size).reshape(-1).tolist())
    return [item for modality in items.values() for item in modality]


def _describe(item: MediaItem, column: Column, values: np.ndarray, size: list[int]) -> None:
    """Take what a flat column holds of an item; of several columns the first with pictures is shown."""
    sound = column.load == "mel" or (column.modality == "audio" and column.dtype.endswith(("16", "32", "64")))
    shown = bool(column.picture or sound) and not item.has_pixels and (item.column is None or bool(column.picture))
    if shown:
        flattened = column.picture and column.varies
        item.column, item.values, item.size = column, values.reshape(-1) if flattened else values, tuple(size)
    if shown and column.picture == "patches":
        side = int(column.params["patch_size"])
        item.facts |= {"width": size[-1] * side, "height": size[-2] * side}
    elif shown and column.picture:
        count, shape = picture_shapes(column, values.size if column.varies else len(values), size)
        if shape is not None:
            item.facts |= {"width": shape.width, "height": shape.height} | ({"pictures": count} if count > 1 else {})
    elif column.load != "mel":
        item.facts[column.name] = "x".join(map(str, values.shape))


def _bands_and_frames(column: Column, values: np.ndarray) -> np.ndarray | None:
    """A spectrogram as float32 (bands, frames), windows one after the other; None of values that are none.

    Where a column does not say which axis is that of frames (`frames_axis`), it is the longer one of the last two.
    """
    if values.ndim < 2 or not values.size:
        return None
    if column.dtype == "bfloat16":
        values = (values.astype(np.uint32) << 16).view(np.float32)
    if column.load != "mel":
        axis = column.params.get("frames_axis", -1 if values.shape[-1] >= values.shape[-2] else -2)
        values = np.moveaxis(values, axis, -1)
        values = np.moveaxis(values, -2, 0).reshape(values.shape[-2], -1)
    return np.nan_to_num(values.astype(np.float32))


def spectrogram_picture(features: np.ndarray) -> Image.Image:
    """A spectrogram, float32 (bands, frames), as a picture, low frequencies below."""
    low, high = float(features.min()), float(features.max())
    level = (features - low) / (high - low if high > low else 1.0) * (len(_MAGMA) - 1)
    below = np.minimum(level.astype(np.int64), len(_MAGMA) - 2)
    share = (level - below)[..., None]
    colors = _MAGMA[below] * (1 - share) + _MAGMA[below + 1] * share
    image = Image.fromarray(colors.astype(np.uint8)[::-1])
    width = min(max(image.width, SPECTROGRAM_WIDTHS[0]), SPECTROGRAM_WIDTHS[1])
    return image.resize((width, SPECTROGRAM_HEIGHT), Image.Resampling.BILINEAR)
