"""`omniprep pull`."""

import click

from omniprep.cli.command import QUIET, Command
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
@QUIET
def pull(repo_id: str, out: str, revision: str | None, quiet: bool) -> None:
    """Download a pushed dataset; files that --out has already are not fetched again."""
    from omniprep.hub.download import pull as run_pull
    from omniprep.progress import reporter

    with reporter(quiet=quiet) as progress:
        folder = run_pull(repo_id, out, progress, revision=revision)
    say(folder)
