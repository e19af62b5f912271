"""`omniprep train`."""

import os
from typing import Any

import click

from omniprep.cli.command import Command, command_progress, observed
from omniprep.cli.options import make_config, options_of, require
from omniprep.printable import say
from omniprep.train.config import TrainConfig


@click.command(
    name="train",
    cls=Command,
    examples=(
        "omniprep train packed/ --model Qwen/Qwen2.5-Omni-7B --out run/ --dry-run",
        "omniprep train packed/ --model Qwen/Qwen2.5-Omni-7B --out run/ --lora --epochs 1",
        "torchrun --nproc-per-node 8 -m omniprep train a/:0.7 b/:0.3 --model Qwen/Qwen2.5-Omni-7B --out run/ --fsdp",
    ),
)
@click.argument("data", nargs=-1, metavar="DIR[:WEIGHT]...")
@options_of(TrainConfig, skip=("data",))
@observed
def train(data: tuple[str, ...], config: str | None, quiet: bool, **given: Any) -> None:
    """Train --model on built datasets and save the run to --out.

    A DIR may carry its share of a mixture (a:0.7 b:0.3). On several GPUs: torchrun --nproc-per-node 8 -m omniprep train
    …, with --fsdp to shard the model over them, or accelerate launch.
    """
    options = make_config(TrainConfig, {"data": data, **given}, config)
    require("train", options, ("data", "model", "out"))
    from omniprep.bars import reporter
    from omniprep.train.packages import check_packages

    check_packages(options)  # before anything is imported that needs them
    from omniprep.train.run import leave_group
    from omniprep.train.run import train as run_train

    first = int(os.environ.get("RANK", "0")) == 0
    # The other processes would show, log and serve the same again.
    with command_progress(quiet=quiet) if first else reporter(quiet=True) as progress:
        out = run_train(options, progress)
        progress.event("finished", {"out": out})
    leave_group()
    if first:
        say(out)
