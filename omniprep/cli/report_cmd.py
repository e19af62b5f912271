"""`omniprep report`."""

import click
from click.core import ParameterSource

from omniprep.cli.command import CHECK_PIXELS, CheckPixels, Command
from omniprep.errors import UsageError
from omniprep.printable import say

COMPARISON = "compare.html"


@click.command(
    name="report",
    cls=Command,
    examples=(
        "omniprep report packed/",
        "omniprep report packed/ --bins 20 --out report.html",
        "omniprep report monday/ tuesday/",
    ),
)
@click.argument("datasets", nargs=-1, required=True, metavar="DATASET [OTHER]")
@click.option(
    "--out",
    type=click.Path(dir_okay=False),
    help=f"Where the page goes.  [default: report.html in DATASET; of two datasets {COMPARISON} here]",
)
@click.option("--bins", "shown", default=8, show_default=True, type=click.IntRange(min=0), help="Bins shown in full.")
@click.option("--model", help="Checkpoint whose tokenizer reads the tokens.  [default: the build's]")
@CHECK_PIXELS
@click.pass_context
def report(
    ctx: click.Context,
    datasets: tuple[str, ...],
    out: str | None,
    shown: int,
    model: str | None,
    check_pixels: CheckPixels,
) -> None:
    """Write report.html: what is in a dataset, as one page that needs no network.

    Totals, lengths, sources, media, packing and balance, rejects with examples, and rows of some bins, every kind among
    them. Every build ends by writing it; this command writes it again. Of two datasets it writes one page that shows
    them side by side: counts, options, lengths, sources, rejects, and how they differ.
    """
    if len(datasets) > 2:
        raise UsageError(f"a report is of one dataset or compares two, not {len(datasets)}")
    if len(datasets) == 2 and datasets[1].endswith(".html"):
        raise UsageError(f"{datasets[1]} is no dataset; a page is written there with --out {datasets[1]}")
    if len(datasets) == 2:
        of_one = {"shown": "--bins", "model": "--model", "check_pixels": "--check-pixels"}
        if given := [f for name, f in of_one.items() if ctx.get_parameter_source(name) is not ParameterSource.DEFAULT]:
            raise UsageError(f"{given[0]} is for the report of one dataset; a comparison shows no rows")
        from omniprep.report.compare import write_comparison

        say(write_comparison((datasets[0], datasets[1]), out or COMPARISON))
        return
    from omniprep.report.page import write_report

    path, remark = write_report(datasets[0], out, model=model, shown=shown, check_pixels=check_pixels)
    if remark:
        say(remark, error=True)
    say(path)
