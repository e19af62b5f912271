"""`omniprep families`."""

import click

from omniprep.cli.command import Command
from omniprep.printable import printable


@click.command(
    name="families",
    cls=Command,
    examples=("omniprep families", "omniprep families --plugin my_family.py", "omniprep families --all"),
)
@click.option("--plugin", multiple=True, help="Python file that registers model families.")
@click.option("--all", "every", is_flag=True, help="Every chat model of transformers, as tried.")
def families(plugin: tuple[str, ...], every: bool) -> None:
    """List the model families: where each comes from, its checkpoints, limits and options.

    `omniprep build` finds a checkpoint's family by its architecture, or takes the one named by --family. Options are
    set by --family-option NAME=VALUE (those of images and videos also by flags of their own, such as --max-pixels).

    --all lists the types of the installed transformers: which family answers for each, whether a small random
    checkpoint of it was built, compared and trained exactly, or why it was not.
    """
    from omniprep.families.listing import describe
    from omniprep.families.loading import load_families
    from omniprep.families.registry import REGISTRY

    load_families(plugin)
    if every:
        from omniprep.families.chat_models import describe_all

        print(printable("\n".join(describe_all()), lines=True))
        return
    text = "\n\n".join("\n".join(describe(record)) for record in REGISTRY.families.values())
    print(printable(text, lines=True))
