"""The terminal view of `inspect`: trained text in green, media as a colored mark with their number of tokens.

Without colors (a pipe, NO_COLOR) trained text is set in {+ +}, as `git diff --word-diff` does.
"""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from omniprep.inspect.describe import Piece, StoredRow, pieces_of
from omniprep.inspect.media import MediaItem, media_of
from omniprep.inspect.pictures import few, half_blocks
from omniprep.inspect.vocabulary import Vocabulary
from omniprep.printable import counted, printable
from omniprep.shards.dataset import StoredDataset

COLORS = {"image": "magenta", "audio": "cyan", "video": "yellow"}


def show_head(console: Console, dataset: StoredDataset, number: int, rows: Sequence[StoredRow]) -> None:
    """Print the counts of the dataset and of one of its bins."""
    counts, tokens = dataset.counts, sum(row.tokens for row in rows)
    trained = sum(row.trained for row in rows)
    console.print(
        f"{counted(counts['bins'], 'bin')} of {dataset.record.bin_length:,} tokens, "
        f"{counted(counts['rows']['packed'], 'row')}, "
        f"fill {100 * dataset.record.fill:.2f} %",
        style="dim",
    )
    pairs = sum(row.verdict == "rejected" for row in rows)
    of_pairs = f" ({counted(pairs, 'pair')})" if pairs else ""
    console.print(
        f"bin {number}: {counted(len(rows) - pairs, 'row')}{of_pairs}, {tokens:,} tokens, {trained:,} of them trained "
        f"({100 * trained / max(tokens, 1):.0f} %)",
        style="bold",
    )


def show_row(console: Console, row: StoredRow, vocabulary: Vocabulary) -> None:
    """Print one row: its source and line, its media, its text."""
    colored = console.is_terminal and not console.no_color
    console.rule(
        Text(
            printable(
                f"{row.source}:{row.line}  {row.tokens} tokens, {row.trained} trained"
                f"{f', {row.verdict}' if row.verdict else ''}"
            ),
            style="bold",
        ),
        align="left",
    )
    for item in media_of(row.arrays):
        console.print(Text(printable(describe_media(item)), style=COLORS.get(item.modality, "magenta")))
        if item.has_pixels and colored and (frames := item.frames()) is not None:
            console.print(half_blocks(few(frames), min(console.width - 2, 76)), end="")
    console.print(text_of(pieces_of(row.arrays, vocabulary), colored=colored), soft_wrap=True)


def show_pair(console: Console, preferred: StoredRow, rejected: StoredRow, vocabulary: Vocabulary) -> None:
    """Print both answers of a pair side by side, media that both have once above them."""
    colored = console.is_terminal and not console.no_color
    title = f"{preferred.source}:{preferred.line}  pair {preferred.pair}, {preferred.tokens + rejected.tokens} tokens"
    console.rule(Text(printable(title), style="bold"), align="left")
    media = [[describe_media(item) for item in media_of(row.arrays)] for row in (preferred, rejected)]
    shared = media[0] if media[0] == media[1] else []
    for line in shared:
        console.print(Text(printable(line), style="magenta"))
    table = Table(box=None, expand=True, padding=(0, 1), pad_edge=False)
    for row in (preferred, rejected):
        table.add_column(f"{row.verdict}: {row.tokens} tokens, {row.trained} trained", ratio=1, overflow="fold")
    if not shared and any(media):
        table.add_row(*(Text(printable("\n".join(lines), lines=True), style="magenta") for lines in media))
    table.add_row(*(text_of(pieces_of(row.arrays, vocabulary), colored=colored) for row in (preferred, rejected)))
    console.print(table)


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
