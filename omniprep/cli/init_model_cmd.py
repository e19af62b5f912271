"""`omniprep init-model`."""

import click

from omniprep.cli.command import Command
from omniprep.printable import say


@click.command(
    name="init-model",
    cls=Command,
    examples=(
        "omniprep init-model small/",
        "omniprep init-model small-vl/ --family qwen2_5_vl",
        "omniprep init-model small-gemma/ --family gemma3",
    ),
)
@click.argument("folder", type=click.Path(file_okay=False))
@click.option("--family", default="qwen2_5_omni", show_default=True, help="Family, or model_type of transformers.")
@click.option("--seed", default=0, show_default=True, help="Seed of the random weights.")
@click.option("--plugin", multiple=True, help="Python file that registers model families.")
def init_model(folder: str, family: str, seed: int, plugin: tuple[str, ...]) -> None:
    """Make a small checkpoint with random weights in FOLDER; with it, all of omniprep runs offline.

    Of Qwen's families (2 to 3): with the real vocabulary and processor settings, 50 MB, about 15 seconds; needs
    `pip install 'omniprep[demo]'`. Of any other multimodal chat model of transformers: by its model_type, with a
    vocabulary learned from a few sentences, 1 MB, a few seconds.
    """
    from omniprep.testing.init_model import init_model as make_checkpoint

    say(make_checkpoint(folder, family, seed=seed, plugins=plugin))
