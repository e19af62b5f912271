"""`omniprep report`."""

import click

from omniprep.cli.command import CHECK_PIXELS, CheckPixels, Command
from omniprep.printable import say


@click.command(
    name="report",
    cls=Command,
    examples=("omniprep report packed/", "omniprep report packed/ --bins 20 --out report.html"),
)
@click.argument("dataset")
@click.option("--out", type=click.Path(dir_okay=False), help="Where the page goes.  [default: report.html in DATASET]")
@click.option("--bins", "shown", default=8, show_default=True, type=click.IntRange(min=0), help="Bins shown in full.")
@click.option("--model", help="Checkpoint whose tokenizer reads the tokens.  [default: the build's]")
@CHECK_PIXELS
def report(dataset: str, out: str | None, shown: int, model: str | None, check_pixels: CheckPixels) -> None:
    """Write report.html: what is in a dataset, as one page that needs no network.

    Totals, lengths, sources, media, packing and balance, rejects with examples, and some bins in full. Every build
    ends by writing it; this command writes it again.
    """
    from omniprep.report.page import write_report

    path, remark = write_report(dataset, out, model=model, shown=shown, check_pixels=check_pixels)
    if remark:
        say(remark, error=True)
    say(path)
