"""`omniprep pull`."""

import click

from omniprep.cli.command import Command, command_progress, observed
from omniprep.printable import say


@click.command(
    name="pull",
    cls=Command,
    examples=(
        "omniprep pull my-org/my-chats --out packed/",
        "omniprep pull my-org/my-chats --out packed/ --revision v2",
    ),
)
@click.argument("repo_id", metavar="ORG/NAME")
@click.option("--out", required=True, type=click.Path(file_okay=False), help="Folder to download into.")
@click.option("--revision", help="Branch, tag or commit.  [default: main]")
@observed
def pull(repo_id: str, out: str, revision: str | None, quiet: bool) -> None:
    """Download a pushed dataset; files that --out has already are not fetched again."""
    from omniprep.hub.download import pull as run_pull

    with command_progress(quiet=quiet) as progress:
        folder = run_pull(repo_id, out, progress, revision=revision)
        progress.event("finished", {"out": str(folder)})
    say(folder)
