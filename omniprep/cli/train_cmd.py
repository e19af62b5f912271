"""`omniprep train` and `omniprep infer`."""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TextIO

import click

from omniprep.cli.command import Command
from omniprep.cli.options import make_config, options_of, require
from omniprep.errors import UsageError
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
    from omniprep.train.packages import check_packages

    check_packages(options)  # before anything is imported that needs them
    from omniprep.train.run import leave_group
    from omniprep.train.run import train as run_train

    with reporter(quiet=quiet or int(os.environ.get("RANK", "0")) > 0) as progress:
        out = run_train(options, progress)
    leave_group()
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
    from omniprep.train.packages import require_packages

    require_packages({"torch": "infer", "transformers": "infer"})
    if (Path(options.model) / "adapter_config.json").is_file():
        require_packages({"peft": "an adapter"})
    from omniprep.train.infer import infer as run_infer

    with reporter(quiet=quiet) as progress, line_writer(options.out) as write:
        run_infer(options, progress, write)


@contextmanager
def line_writer(path: str | None) -> Iterator[Callable[[str], None]]:
    """What writes a line to a file, or to standard output; the file is begun with the first line, so that a command
    that fails before it leaves an older one as it was.

    Raises:
        UsageError: There is no folder for the file.
    """
    if path is None:
        yield lambda line: print(escape_json(line))
        return
    if not Path(path).resolve().parent.is_dir():
        raise UsageError(f"--out {path}: no such folder")
    with ExitStack() as stack:
        opened: list[TextIO] = []

        def write(line: str) -> None:
            if not opened:
                opened.append(stack.enter_context(Path(path).open("w", encoding="utf-8")))
            opened[0].write(line + "\n")

        yield write
