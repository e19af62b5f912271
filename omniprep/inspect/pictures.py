"""Pictures side by side: some frames of a video, a contact sheet, half blocks for a terminal."""

from collections.abc import Sequence

import numpy as np
from PIL import Image
from rich.style import Style
from rich.text import Text

FRAMES_SHOWN = 4


def few(frames: np.ndarray) -> np.ndarray:
    """At most `FRAMES_SHOWN` frames, spread over the whole, side by side: uint8 (height, width, 3)."""
    chosen = np.unique(np.linspace(0, len(frames) - 1, min(len(frames), FRAMES_SHOWN)).round().astype(int))
    return np.concatenate(list(frames[chosen]), axis=1)


def half_blocks(picture: np.ndarray, columns: int, lines: int = 14) -> Text:
    """A picture, uint8 (height, width, 3), as colored half blocks, two pixels a character."""
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


def contact_sheet(pictures: Sequence[np.ndarray], width: int = 1280, gap: int = 8) -> Image.Image:
    """Pictures, uint8 (frames, height, width, 3), one below the other, shrunk only where wider than `width`."""
    tiles = []
    for frames in pictures:
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
