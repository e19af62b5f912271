"""`omniprep sample`."""

from pathlib import Path

import click

from omniprep.cli.command import CHECK_PIXELS, CheckPixels, Command
from omniprep.modalities import KINDS
from omniprep.printable import counted, say


@click.command(
    name="sample",
    cls=Command,
    examples=(
        "omniprep sample packed/ --out some/ --rows 20 --kind audio",
        "omniprep sample packed/ --out one/ --row chats.jsonl:12",
    ),
)
@click.argument("dataset")
@click.option("--out", required=True, type=click.Path(file_okay=False, path_type=Path), help="Folder to write to.")
@click.option("--rows", "count", default=20, show_default=True, type=click.IntRange(min=1), help="How many, at random.")
@click.option("--row", "rows", multiple=True, metavar="SOURCE:LINE", help="This row (repeatable).")
@click.option("--kind", "kinds", multiple=True, type=click.Choice(KINDS), help="Only rows that hold this besides text.")
@click.option("--seed", default=0, show_default=True, help="Seed of the choice.")
@click.option("--model", help="Checkpoint whose tokenizer reads the tokens.  [default: the build's]")
@CHECK_PIXELS
def sample(
    dataset: str,
    out: Path,
    count: int,
    rows: tuple[str, ...],
    kinds: tuple[str, ...],
    seed: int,
    model: str | None,
    check_pixels: CheckPixels,
) -> None:
    """Write rows back as readable JSONL with their media, as the model sees them.

    Pictures are PNG rebuilt from the stored patches, videos one PNG a frame, sounds their spectrogram.
    """
    from omniprep.inspect.sample import write_sample

    written = write_sample(
        dataset, out, count=count, rows=rows, kinds=kinds, seed=seed, model=model, check_pixels=check_pixels
    )
    say(f"{counted(written, 'row')}: {out / 'rows.jsonl'}")
