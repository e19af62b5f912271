"""`omniprep remove`."""

import click

from omniprep.cli.command import RAY_ADDRESS, WORKERS, Command, command_progress, observed
from omniprep.config import Workers
from omniprep.printable import counted, say


@click.command(
    name="remove",
    cls=Command,
    examples=(
        "omniprep remove packed/ --row chats.jsonl:12 --row chats.jsonl:40",
        "omniprep remove packed/ --rows takedown.txt",
        "omniprep remove packed/ --source 'users/4711/*'",
    ),
)
@click.argument("dataset")
@click.option("--row", "rows", multiple=True, metavar="SOURCE:LINE", help="A row, by its input as given, and its line.")
@click.option("--rows", "rows_file", default="", metavar="FILE", help="A file with SOURCE:LINE, or JSON, on each line.")
@click.option("--source", "sources", multiple=True, metavar="PATTERN", help="All rows of inputs that this glob fits.")
@WORKERS
@RAY_ADDRESS
@observed
def remove(
    dataset: str,
    rows: tuple[str, ...],
    rows_file: str,
    sources: tuple[str, ...],
    workers: Workers,
    ray_address: str | None,
    quiet: bool,
) -> None:
    """Take rows out of a built dataset for good.

    Only the shards that hold them are written again, without decoding. Their tokens, media, rejected lines, plans and
    previews are gone afterwards; rows.parquet keeps a line for each, with the status `removed`. Copies, and what was
    pushed before, are not reached: push again, and see its message on the history.
    """
    from omniprep.cli.summary import finished_facts
    from omniprep.compiler.remove import remove as run_remove

    with command_progress(quiet=quiet) as progress:
        manifest = run_remove(
            dataset,
            progress,
            rows=rows,
            rows_file=rows_file,
            sources=sources,
            workers=workers,
            ray_address=ray_address,
        )
        progress.event("finished", finished_facts(dataset, manifest))
    counts = manifest["counts"]["rows"]
    say(
        f"{dataset}: {counted(counts['packed'], 'row')} packed, {counts['rejected']:,} rejected, "
        f"{counts.get('removed', 0):,} removed"
    )
