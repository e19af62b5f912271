"""`omniprep build` and `omniprep plan`: their options are the fields of `BuildConfig`."""

import time
from typing import Any

import click

from omniprep.cli.options import make_config, options_of, require
from omniprep.config import BuildConfig

INPUT = click.argument("inputs", nargs=-1, metavar="INPUT...")
QUIET = click.option("--quiet", is_flag=True, help="No progress, only the result.")


@click.command(name="build")
@INPUT
@options_of(BuildConfig, skip=("inputs",))
@QUIET
def build(inputs: tuple[str, ...], config: str | None, quiet: bool, **given: Any) -> None:
    """Compile chats into a packed dataset in --out.

    INPUT is a file, a glob or a URI (.jsonl, .jsonl.gz, .jsonl.zst, .json). Running the same build again goes on where
    it stopped; with changed options it stops and names what changed.
    """
    options = make_config(BuildConfig, {"inputs": inputs, **given}, config)
    require("build", options, ("inputs", "model", "bin_length", "out"))
    began = time.monotonic()
    from omniprep.build.run import build as run_build
    from omniprep.cli.summary import print_summary
    from omniprep.progress import reporter

    with reporter(quiet=quiet) as progress:
        run_build(options, progress)
    print_summary(options.out, time.monotonic() - began)
