"""Pictures rebuilt from stored patches, to show that the pixels in a shard are those of the file.

A patch column holds (C, [temporal,] P, P) bytes a patch, in the order in which the vision tower merges them: for each
time step, blocks of merge x merge patches, row by row (transformers: Qwen2VLImageProcessor._preprocess). Nothing is
scaled: the picture is exactly what the model sees, before normalization.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image
from rich.style import Style
from rich.text import Text

from omniprep.shards.content import item_sizes
from omniprep.shards.schema import Column

__all__ = ["contact_sheet", "half_blocks", "pictures_of", "rebuild"]

FRAMES_SHOWN = 4


def rebuild(patches: np.ndarray, grid: tuple[int, int, int], params: Mapping[str, Any]) -> np.ndarray:
    """The frames that the patches of one item were cut from.

    Args:
        patches: uint8 (t*h*w, C*[temporal*]P*P).
        grid: Patches along time, height and width.
        params: Of the column: patch_size, and merge_size (default 2).

    Returns:
        uint8 (frames, h*P, w*P, 3): one frame a time step for stills, two for video.
    """
    size, merge = int(params["patch_size"]), int(params.get("merge_size", 2))
    steps, high, wide = grid
    deep = patches.shape[1] // (3 * size * size)
    # (t, block row, block column, row in block, column in block, color, depth, y, x)
    array = patches.reshape(steps, high // merge, wide // merge, merge, merge, 3, deep, size, size)
    array = array.transpose(0, 6, 1, 3, 7, 2, 4, 8, 5)
    return array.reshape(steps * deep, high * size, wide * size, 3)


def pictures_of(item: Mapping[str, Any]) -> list[tuple[str, np.ndarray]]:
    """Every picture and video of a bin (or of a row cut out of one): modality and frames uint8 (n, height, width,
    3).
    """
    found: list[tuple[str, np.ndarray]] = []
    for column in item["columns"]:
        if column.load == "patches" and column.name in item:
            found += [(column.modality, frames) for frames in _items(column, item)]
    return found


def _items(column: Column, item: Mapping[str, Any]) -> list[np.ndarray]:
    source, _ = column.size_source()
    ends = np.cumsum(item_sizes(column, dict(item)))
    parts = np.split(item[column.name], ends[:-1])
    return [rebuild(part, tuple(grid.tolist()), column.params) for part, grid in zip(parts, item[source], strict=True)]


def few(frames: np.ndarray) -> np.ndarray:
    """At most `FRAMES_SHOWN` frames, spread over the whole, side by side: uint8 (height, width, 3)."""
    chosen = np.unique(np.linspace(0, len(frames) - 1, min(len(frames), FRAMES_SHOWN)).round().astype(int))
    return np.concatenate(list(frames[chosen]), axis=1)


def half_blocks(picture: np.ndarray, columns: int, lines: int = 14) -> Text:
    """A picture as colored half blocks, two pixels a character.

    Args:
        picture: uint8 (height, width, 3).
        columns: Widest it may be, in characters.
        lines: Highest it may be, in lines.
    """
    height, width = picture.shape[:2]
    scale = min(columns / width, 2 * lines / height, 1.0)
    size = (max(1, round(width * scale)), max(2, round(height * scale / 2) * 2))
    pixels = np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BOX))
    text = Text()
    for upper, lower in zip(pixels[0::2], pixels[1::2], strict=True):
        for above, below in zip(upper.tolist(), lower.tolist(), strict=True):
            style = Style(color="#{:02x}{:02x}{:02x}".format(*above), bgcolor="#{:02x}{:02x}{:02x}".format(*below))
            text.append("▀", style)
        text.append("\n")
    return text


def contact_sheet(pictures: list[tuple[str, np.ndarray]], width: int = 1280, gap: int = 8) -> Image.Image:
    """All pictures below each other at their own size, videos as a few frames; shrunk only where wider than `width`."""
    tiles = []
    for _, frames in pictures:
        tile = Image.fromarray(few(frames))
        if tile.width > width:
            tile = tile.resize((width, max(1, tile.height * width // tile.width)))
        tiles.append(tile)
    sheet = Image.new(
        "RGB", (max(tile.width for tile in tiles), sum(tile.height + gap for tile in tiles) - gap), "white"
    )
    top = 0
    for tile in tiles:
        sheet.paste(tile, (0, top))
        top += tile.height + gap
    return sheet
