"""`omniprep train` and `omniprep infer`."""

import os
from pathlib import Path
from typing import Any

import click

from omniprep.cli.command import Command
from omniprep.cli.options import make_config, options_of, require
from omniprep.printable import escape_json, say
from omniprep.train.config import InferConfig, TrainConfig

QUIET = click.option("--quiet", is_flag=True, help="No progress, only the result.")


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
@QUIET
def train(data: tuple[str, ...], config: str | None, quiet: bool, **given: Any) -> None:
    """Train --model on built datasets and save the run to --out.

    A DIR may carry its share of a mixture (a:0.7 b:0.3). On several GPUs: torchrun --nproc-per-node 8 -m omniprep train
    …, with --fsdp to shard the model over them, or accelerate launch.
    """
    options = make_config(TrainConfig, {"data": data, **given}, config)
    require("train", options, ("data", "model", "out"))
    from omniprep.progress import reporter
    from omniprep.train.run import train as run_train

    with reporter(quiet=quiet or int(os.environ.get("RANK", "0")) > 0) as progress:
        out = run_train(options, progress)
    if int(os.environ.get("RANK", "0")) == 0:
        say(out)


@click.command(name="infer", cls=Command, examples=("omniprep infer chats.jsonl --model run/ --out answers.jsonl",))
@click.argument("inputs", nargs=-1, metavar="INPUT...")
@options_of(InferConfig, skip=("inputs",))
@QUIET
def infer(inputs: tuple[str, ...], config: str | None, quiet: bool, **given: Any) -> None:
    """Answer the chat rows of INPUT with --model, as JSON lines on standard output or in --out."""
    options = make_config(InferConfig, {"inputs": inputs, **given}, config)
    require("infer", options, ("inputs", "model"))
    from omniprep.progress import reporter
    from omniprep.train.infer import infer as run_infer

    with reporter(quiet=quiet) as progress:
        if options.out is None:
            run_infer(options, progress, lambda line: print(escape_json(line)))
        else:
            with Path(options.out).open("w", encoding="utf-8") as file:
                run_infer(options, progress, lambda line: print(line, file=file))
