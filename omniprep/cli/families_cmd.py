"""`omniprep families`."""

import click

from omniprep.cli.command import Command
from omniprep.printable import printable


@click.command(name="families", cls=Command, examples=("omniprep families", "omniprep families --plugin my_family.py"))
@click.option("--plugin", multiple=True, help="Python file that registers model families.")
def families(plugin: tuple[str, ...]) -> None:
    """List the model families: where each comes from, its checkpoints, limits and options.

    `omniprep build` finds a checkpoint's family by its architecture, or takes the one named by --family. Options are
    set by --family-option NAME=VALUE (those of images and videos also by flags of their own, such as --max-pixels).
    """
    from omniprep.families.listing import describe
    from omniprep.families.loading import load_families
    from omniprep.families.registry import REGISTRY

    load_families(plugin)
    text = "\n\n".join("\n".join(describe(record)) for record in REGISTRY.families.values())
    print(printable(text, lines=True))
