"""The terminal view of `inspect`: trained text in green, media as a colored mark with their number of tokens.

Without colors (a pipe, NO_COLOR) trained text is set in {+ +}, as `git diff --word-diff` does.
"""

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from omniprep.data.dataset import PackedDataset
from omniprep.inspect.describe import Piece, StoredRow, pieces_of
from omniprep.inspect.media import MediaItem, media_of
from omniprep.inspect.pictures import few, half_blocks
from omniprep.inspect.vocabulary import Vocabulary
from omniprep.printable import printable

COLORS = {"image": "magenta", "audio": "cyan", "video": "yellow"}


def show_head(console: Console, dataset: PackedDataset, number: int, rows: Sequence[StoredRow]) -> None:
    """Print the counts of the dataset and of one of its bins."""
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


def show_row(console: Console, row: StoredRow, vocabulary: Vocabulary) -> None:
    """Print one row: its source and line, its media, its text."""
    colored = console.is_terminal and not console.no_color
    console.rule(
        Text(printable(f"{row.source}:{row.line}  {row.tokens} tokens, {row.trained} trained"), style="bold"),
        align="left",
    )
    for item in media_of(row.arrays):
        console.print(Text(printable(describe_media(item)), style=COLORS.get(item.modality, "magenta")))
        if item.has_pixels and colored and (frames := item.frames()) is not None:
            console.print(half_blocks(few(frames), min(console.width - 2, 76)), end="")
    console.print(text_of(pieces_of(row.arrays, vocabulary), colored=colored), soft_wrap=True)


def describe_media(item: MediaItem) -> str:
    """One line such as "image 448x336  image_grid_thw=[1, 24, 32]"."""
    facts = dict(item.facts)
    size = f" {facts.pop('width')}x{facts.pop('height')}" if "width" in facts else ""
    return f"{item.modality}{size}  " + " ".join(f"{name}={value}" for name, value in facts.items())


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
