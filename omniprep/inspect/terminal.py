"""The terminal view of `inspect`: trained text stands out, media are a colored mark with their number of tokens.

Where there is no color (a pipe, NO_COLOR) trained text is set in {+ +}, as `git diff --word-diff` does.
"""

from collections.abc import Sequence

import numpy as np
from rich.console import Console
from rich.text import Text

from omniprep.data.dataset import PackedDataset
from omniprep.inspect.describe import Media, Piece, Row
from omniprep.inspect.pictures import few, half_blocks
from omniprep.printable import printable

__all__ = ["show_head", "show_row"]

COLORS = {"image": "magenta", "audio": "cyan", "video": "yellow"}


def show_head(console: Console, dataset: PackedDataset, number: int, rows: Sequence[Row]) -> None:
    """Facts of the dataset and of one of its bins."""
    counts, tokens = dataset.counts, sum(row.tokens for row in rows)
    trained = sum(row.trained for row in rows)
    console.print(
        f"{counts['bins']:,} bins of {dataset.record.bin_length:,} tokens, {counts['rows']['packed']:,} rows, "
        f"fill {100 * dataset.record.fill:.2f} %",
        style="dim",
    )
    console.print(
        f"bin {number}: {len(rows)} rows, {tokens:,} tokens, {trained:,} of them trained "
        f"({100 * trained / max(tokens, 1):.0f} %)",
        style="bold",
    )


def show_row(console: Console, row: Row, pictures: Sequence[np.ndarray]) -> None:
    """One row: where it came from, its media, its text.

    Args:
        console: Where to print.
        row: The row.
        pictures: Frames uint8 (n, height, width, 3) of each picture and video, in the order of the row's media.
    """
    console.rule(
        Text(printable(f"{row.source}:{row.line}  {row.tokens} tokens, {row.trained} trained"), style="bold"),
        align="left",
    )
    drawn = iter(pictures)
    for media in row.media:
        console.print(Text(printable(describe_media(media)), style=COLORS.get(media.modality, "magenta")))
        if "width" in media.facts and console.is_terminal and not console.no_color:
            picture = next(drawn, None)
            if picture is not None:
                console.print(half_blocks(few(picture), min(console.width - 2, 76)), end="")
    console.print(text_of(row.pieces, colored=console.is_terminal and not console.no_color), soft_wrap=True)


def describe_media(media: Media) -> str:
    """One line such as "image 448x336  image_grid_thw=[1, 24, 32]"."""
    facts = dict(media.facts)
    size = f" {facts.pop('width')}x{facts.pop('height')}" if "width" in facts else ""
    return f"{media.modality}{size}  " + " ".join(f"{name}={value}" for name, value in facts.items())


def text_of(pieces: Sequence[Piece], *, colored: bool) -> Text:
    """The pieces as one text."""
    text = Text()
    for piece in pieces:
        shown = printable(piece.text, lines=True)
        if piece.media:
            color = next((color for name, color in COLORS.items() if name in piece.text.lower()), "magenta")
            text.append(f"{shown}*{piece.tokens}", style=color if colored else "")
        elif piece.trained:
            weight = "" if piece.weight in (None, 1.0) else f" *{piece.weight:g}"
            text.append(shown if colored else f"{{+{shown}+}}", style="bold green" if colored else "")
            text.append(weight, style="bold yellow" if colored else "")
        else:
            text.append(shown, style="bright_black" if colored else "")
    return text
