"""`omniprep inspect`."""

import sys
from typing import TYPE_CHECKING

import click

from omniprep.cli.command import Command
from omniprep.errors import OmniprepError, UsageError
from omniprep.printable import printable_json

if TYPE_CHECKING:
    from omniprep.data.dataset import PackedDataset


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
@click.option("--bin", "bin_number", type=int, help="Which bin; negative counts from the end.  [default: 0]")
@click.option("--row", "place", metavar="SOURCE:LINE", help="Only this row, such as chats.jsonl:3.")
@click.option(
    "--rejected", is_flag=False, flag_value="all", metavar="[CODE]", help="Show rejected rows (with this code) instead."
)
@click.option("--limit", default=8, show_default=True, help="Most rows to show; 0 shows all.")
@click.option("--image", "picture", type=click.Path(dir_okay=False), help="Save the pictures to this PNG.")
@click.option("--model", help="Checkpoint whose tokenizer reads the tokens.  [default: the build's]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead.")
def inspect(
    dataset: str,
    bin_number: int | None,
    place: str | None,
    rejected: str | None,
    limit: int,
    picture: str | None,
    model: str | None,
    as_json: bool,
) -> None:
    """Show what the model will see: text, what of it is trained, media.

    Trained text is green (without color: in {+ +}), media spans are a mark with their number of tokens. Pictures are
    rebuilt from the stored patches.
    """
    if rejected is not None:
        if place is not None or bin_number is not None or picture is not None:
            raise UsageError("--rejected excludes --bin, --row and --image")
        inspect_rejected(dataset, rejected, limit, as_json)
        return
    from rich.console import Console

    from omniprep.data.collate import cut_row
    from omniprep.data.dataset import PackedDataset
    from omniprep.inspect.describe import describe_bin, find_row, vocabulary_of
    from omniprep.inspect.pictures import contact_sheet, pictures_of
    from omniprep.inspect.terminal import show_head, show_row

    if place is not None and bin_number is not None:
        raise UsageError("--bin and --row exclude each other")
    ds = PackedDataset(dataset)
    number = bin_number or 0
    row_id = None
    if place is not None:
        row_id = find_row(ds, place)
        number = packed_bin(ds, row_id)
    if not -len(ds) <= number < len(ds):
        raise UsageError(f"--bin {number}: the dataset has {len(ds)} bins")
    number %= len(ds)
    rows = describe_bin(ds, number, vocabulary_of(ds, model))
    item = ds[number]
    chosen = [n for n, known in enumerate(item["row_ids"].tolist()) if row_id is None or known == row_id]
    shown = chosen if limit <= 0 else chosen[:limit]
    cuts = {n: {**cut_row(item, n), "modalities": item["modalities"]} for n in shown}
    if picture is not None:
        found = [p for n in shown for p in pictures_of(cuts[n])]
        if not found:
            raise UsageError(f"--image: there are no pictures in {place or f'bin {number}'}")
        contact_sheet(found).save(picture, format="PNG")
    if as_json:
        print(printable_json({"bin": number, "rows": [rows[n].as_json() for n in shown]}))
        return
    console = Console(file=sys.stdout, highlight=False, width=None if sys.stdout.isatty() else 120)
    show_head(console, ds, number, rows)
    for n in shown:
        show_row(console, rows[n], [frames for _, frames in pictures_of(cuts[n])])
    if len(shown) < len(chosen):
        console.print(f"... and {len(chosen) - len(shown)} more rows (--limit 0 shows all)", style="dim")


def inspect_rejected(uri: str, code: str, limit: int, as_json: bool) -> None:
    """Print rejected rows; code "all" takes every one."""
    from rich.console import Console

    from omniprep.data.dataset import PackedDataset
    from omniprep.inspect.rejected import check_code, read_rejected, show_rejected

    wanted = None if code == "all" else check_code(code)
    dataset = PackedDataset(uri)
    if as_json:
        print(printable_json({"rejected": list(read_rejected(dataset, wanted, limit))}))
        return
    width = None if sys.stdout.isatty() else 120
    show_rejected(Console(file=sys.stdout, highlight=False, width=width), dataset, wanted, limit)


def packed_bin(dataset: "PackedDataset", row_id: int) -> int:
    """The bin of a row of rows.parquet.

    Raises:
        OmniprepError: The row was rejected; says why.
    """
    row = dataset.rows.slice(row_id, 1).to_pylist()[0]
    if row["bin"] is None:
        where = f"omniprep inspect {dataset.uri} --rejected {row['code']}"
        raise OmniprepError(f"{row['source']}:{row['line']} was rejected: {row['code']}; {where} shows why")
    return int(row["bin"])
