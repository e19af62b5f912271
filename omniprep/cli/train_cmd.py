"""`omniprep train` and `omniprep infer`."""

import os
from typing import Any

import click

from omniprep.cli.options import make_config, options_of, require
from omniprep.train.config import TrainConfig

QUIET = click.option("--quiet", is_flag=True, help="No progress, only the result.")


@click.command(name="train")
@click.argument("data", nargs=-1, metavar="DIR[:WEIGHT]...")
@options_of(TrainConfig, skip=("data",))
@QUIET
def train(data: tuple[str, ...], config: str | None, quiet: bool, **given: Any) -> None:
    r"""Train --model on built datasets and save the run to --out.

    \b
    omniprep train packed/ --model Qwen/Qwen2.5-Omni-7B --out run/ --lora
    torchrun --nproc-per-node 8 -m omniprep train packed/ --model Qwen/Qwen2.5-Omni-7B --out run/ --fsdp
    """
    options = make_config(TrainConfig, {"data": data, **given}, config)
    require("train", options, ("data", "model", "out"))
    from omniprep.progress import reporter
    from omniprep.train.run import train as run_train

    with reporter(quiet=quiet or int(os.environ.get("RANK", "0")) > 0) as progress:
        out = run_train(options, progress)
    if int(os.environ.get("RANK", "0")) == 0:
        click.echo(str(out))
