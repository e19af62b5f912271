"""`omniprep infer`."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TextIO

import click

from omniprep.cli.command import Command, command_progress, observed
from omniprep.cli.options import make_config, options_of, require
from omniprep.errors import UsageError
from omniprep.printable import escape_json
from omniprep.train.config import InferConfig


@click.command(name="infer", cls=Command, examples=("omniprep infer chats.jsonl --model run/ --out answers.jsonl",))
@click.argument("inputs", nargs=-1, metavar="INPUT...")
@options_of(InferConfig, skip=("inputs",))
@observed
def infer(inputs: tuple[str, ...], config: str | None, quiet: bool, **given: Any) -> None:
    """Answer the chat rows of INPUT with --model, as JSON lines on standard output or in --out."""
    options = make_config(InferConfig, {"inputs": inputs, **given}, config)
    require("infer", options, ("inputs", "model"))
    from omniprep.train.packages import require_packages

    require_packages({"torch": "infer", "transformers": "infer"})
    if (Path(options.model) / "adapter_config.json").is_file():
        require_packages({"peft": "an adapter"})
    from omniprep.train.infer import infer as run_infer

    with command_progress(quiet=quiet) as progress, line_writer(options.out) as write:
        run_infer(options, progress, write)
        progress.event("finished", {"out": options.out or "-"})


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
