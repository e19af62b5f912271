"""`omniprep init-model`."""

import click

from omniprep.cli.command import Command
from omniprep.printable import say


@click.command(
    name="init-model",
    cls=Command,
    examples=("omniprep init-model small/", "omniprep init-model small-vl/ --family qwen2_5_vl"),
)
@click.argument("folder", type=click.Path(file_okay=False))
@click.option("--family", default="qwen2_5_omni", show_default=True, help="Which family's small model.")
@click.option("--seed", default=0, show_default=True, help="Seed of the random weights.")
@click.option("--plugin", multiple=True, help="Python file that registers model families.")
def init_model(folder: str, family: str, seed: int, plugin: tuple[str, ...]) -> None:
    """Make a small checkpoint with random weights in FOLDER, with the real vocabulary and processor settings.

    With it, all of omniprep runs offline. 50 MB, about 15 seconds; needs `pip install 'omniprep[demo]'`.
    """
    from omniprep.testing.init_model import init_model as make_checkpoint

    say(make_checkpoint(folder, family, seed=seed, plugins=plugin))
