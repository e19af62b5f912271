"""`omniprep inspect`."""

import sys
from typing import TYPE_CHECKING

import click

from omniprep.cli.command import CHECK_PIXELS, CheckPixels, Command
from omniprep.errors import OmniprepError, UsageError
from omniprep.printable import counted, printable_json

if TYPE_CHECKING:
    from omniprep.shards.dataset import StoredDataset


@click.command(
    name="inspect",
    cls=Command,
    examples=(
        "omniprep inspect packed/",
        "omniprep inspect packed/ --bin 3 --image bin3.png",
        "omniprep inspect packed/ --row chats.jsonl:12",
        "omniprep inspect packed/ --rejected bad_media",
    ),
)
@click.argument("dataset")
@click.option("--bin", "bin_number", type=int, help="Number of the bin; negative counts from the end.  [default: 0]")
@click.option("--row", "row_name", metavar="SOURCE:LINE", help="Only this row, such as chats.jsonl:3.")
@click.option(
    "--rejected", is_flag=False, flag_value="all", metavar="[CODE]", help="Show rejected rows (with this code) instead."
)
@click.option("--limit", default=8, show_default=True, help="Most rows to show; 0 shows all.")
@click.option("--image", "picture", type=click.Path(dir_okay=False), help="Save all pictures to this PNG file.")
@click.option("--model", help="Checkpoint whose tokenizer reads the tokens.  [default: the build's]")
@CHECK_PIXELS
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead.")
def inspect(
    dataset: str,
    bin_number: int | None,
    row_name: str | None,
    rejected: str | None,
    limit: int,
    picture: str | None,
    model: str | None,
    check_pixels: CheckPixels,
    as_json: bool,
) -> None:
    """Show what the model will see of a bin or a row: its text, which of it is trained, and its media.

    Trained text is green (without color: in {+ +}); a media span is its token and the number of them. Pictures are
    rebuilt from the stored patches. The two answers of a pair stand side by side.
    """
    if rejected is not None:
        if row_name is not None or bin_number is not None or picture is not None:
            raise UsageError("--rejected excludes --bin, --row and --image")
        inspect_rejected(dataset, rejected, limit, as_json)
        return
    from rich.console import Console

    from omniprep.inspect.describe import find_row, pairs_together, rows_of_bin
    from omniprep.inspect.media import media_of
    from omniprep.inspect.pictures import contact_sheet
    from omniprep.inspect.terminal import show_head, show_pair, show_row
    from omniprep.inspect.vocabulary import vocabulary_of
    from omniprep.shards.dataset import StoredDataset

    if row_name is not None and bin_number is not None:
        raise UsageError("--bin and --row exclude each other")
    ds = StoredDataset(dataset, check_pixels=check_pixels)
    number = bin_number or 0
    row_id = None
    if row_name is not None:
        row_id = find_row(ds, row_name)
        number = packed_bin(ds, row_id)
    if not -len(ds) <= number < len(ds):
        raise UsageError(f"--bin {number}: the dataset has {counted(len(ds), 'bin')}, from 0")
    number %= len(ds)
    vocabulary = vocabulary_of(ds, model)
    rows = rows_of_bin(ds, number)
    chosen = pairs_together(row for row in rows if row_id is None or row.arrays["row_ids"][0] == row_id)
    units = chosen if limit <= 0 else chosen[:limit]
    shown = [row for unit in units for row in unit]
    if picture is not None:
        items = [item for row in shown for item in media_of(row.arrays) if item.has_pixels]
        frames = [frames for item in items if (frames := item.frames()) is not None]
        if not frames:
            raise UsageError(f"--image: there are no pictures in {row_name or f'bin {number}'}")
        contact_sheet(frames).save(picture, format="PNG")
    if as_json:
        print(printable_json({"bin": number, "rows": [row.as_json(vocabulary) for row in shown]}))
        return
    console = Console(file=sys.stdout, highlight=False, width=None if sys.stdout.isatty() else 120)
    show_head(console, ds, number, rows)
    for row, *partner in units:
        if partner:
            show_pair(console, row, partner[0], vocabulary)
        else:
            show_row(console, row, vocabulary)
    if len(units) < len(chosen):
        console.print(f"... and {len(chosen) - len(units)} more rows (--limit 0 shows all)", style="dim")


def inspect_rejected(uri: str, code: str, limit: int, as_json: bool) -> None:
    """Print rejected rows; code "all" takes every one."""
    from rich.console import Console

    from omniprep.inspect.rejected import check_code, read_rejected, show_rejected
    from omniprep.shards.dataset import StoredDataset

    wanted = None if code == "all" else check_code(code)
    dataset = StoredDataset(uri)
    if as_json:
        print(printable_json({"rejected": list(read_rejected(dataset, wanted, limit))}))
        return
    width = None if sys.stdout.isatty() else 120
    show_rejected(Console(file=sys.stdout, highlight=False, width=width), dataset, wanted, limit)


def packed_bin(dataset: "StoredDataset", row_id: int) -> int:
    """The bin of a row of rows.parquet; OmniprepError says why where the row was rejected."""
    row = dataset.rows.slice(row_id, 1).to_pylist()[0]
    if row["bin"] is None:
        where = f"omniprep inspect {dataset.uri} --rejected {row['code']}"
        raise OmniprepError(f"{row['source']}:{row['line']} was rejected: {row['code']}; {where} shows why")
    return int(row["bin"])
