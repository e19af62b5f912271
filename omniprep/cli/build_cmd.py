"""`omniprep build` and `omniprep plan`: their options are the fields of `BuildConfig`."""

import dataclasses
import tempfile
import time
from pathlib import Path
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

    INPUT is a file, a glob, a folder or a URI (.jsonl and .json, also .gz or .zst; .parquet; a saved dataset). Running
    the same build again goes on where it stopped; with changed options it stops and names what changed.
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


@click.command(name="plan")
@INPUT
@options_of(BuildConfig, skip=("inputs",))
@QUIET
def plan(inputs: tuple[str, ...], config: str | None, quiet: bool, **given: Any) -> None:
    """Show what a build would give: lengths, fill, bytes, rejects. Decodes nothing.

    Takes the options of `build`. With --out the plan is kept there, and the build starts from it.
    """
    options = make_config(BuildConfig, {"inputs": inputs, **given}, config)
    require("plan", options, ("inputs", "model", "bin_length"))
    began = time.monotonic()
    from omniprep.build.run import plan_only
    from omniprep.cli.summary import print_plan
    from omniprep.progress import reporter

    with tempfile.TemporaryDirectory(prefix="omniprep-plan-") as folder:
        kept = dataclasses.replace(options, out=options.out or str(Path(folder) / "out"))
        with reporter(quiet=quiet) as progress:
            planned = plan_only(kept, progress)
        print_plan(planned, kept, time.monotonic() - began)
