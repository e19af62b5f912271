"""`omniprep build` and `omniprep plan`: their options are the fields of `BuildConfig`."""

import dataclasses
import io
import tempfile
import time
from pathlib import Path
from typing import Any

import click

from omniprep.cli.command import Command
from omniprep.cli.options import check_values, make_config, options_of, require, yaml_value
from omniprep.config import BuildConfig
from omniprep.errors import UsageError

INPUT = click.argument("inputs", nargs=-1, metavar="INPUT...")
QUIET = click.option("--quiet", is_flag=True, help="No progress, only the result.")


@click.command(
    name="build",
    cls=Command,
    examples=(
        "omniprep build chats/*.jsonl --model Qwen/Qwen2.5-Omni-7B --bin-length 16384 --out packed/ --workers 16",
        "omniprep build --config pipelines/omni_sft.yaml --max-pixels 200704",
        "omniprep build s3://lake/chats/*.jsonl --model Qwen/Qwen2.5-Omni-7B --bin-length 16384 --out s3://lake/packed "
        "--ray-address auto --workers 64",
    ),
)
@INPUT
@options_of(BuildConfig, skip=("inputs",))
@QUIET
def build(inputs: tuple[str, ...], config: str | None, quiet: bool, **given: Any) -> None:
    """Compile chats into a packed dataset in --out.

    INPUT is a file, a glob, a folder or a URI (.jsonl and .json, also .gz or .zst; .parquet; a saved dataset);
    INPUT:NAME reads a split of it, INPUT#N draws N rows. Running the same build again goes on where it stopped; with
    changed options it stops and names what changed.
    """
    options = make_config(BuildConfig, {"inputs": inputs, **given}, config)
    require("build", options, ("inputs", "model", "bin_length", "out"))
    began = time.monotonic()
    from omniprep.cli.summary import check_something_packed, print_summary
    from omniprep.compiler.build import build as run_build
    from omniprep.progress import reporter

    with reporter(quiet=quiet) as progress:
        manifest = run_build(options, progress)
    print_summary(options.out, manifest, time.monotonic() - began)
    check_something_packed(options.out, manifest["counts"])


@click.command(
    name="plan",
    cls=Command,
    examples=(
        "omniprep plan chats.jsonl --model Qwen/Qwen2.5-Omni-7B --bin-length 16384 --workers 16",
        "omniprep plan chats.jsonl --model Qwen/Qwen2.5-Omni-7B --bin-length 16384 --compare max-pixels=200704 "
        "--compare bin-length=8192",
        "omniprep plan chats.jsonl --model Qwen/Qwen2.5-Omni-7B --bin-length 16384 --workers 16 --measure",
    ),
)
@INPUT
@options_of(BuildConfig, skip=("inputs",))
@click.option(
    "--compare", multiple=True, metavar="OPTION=VALUE", help="Also plan with this option, side by side; repeatable."
)
@click.option("--measure", is_flag=True, help="Encode some rows of each kind, to know how long the build takes here.")
@QUIET
def plan(
    inputs: tuple[str, ...], config: str | None, compare: tuple[str, ...], measure: bool, quiet: bool, **given: Any
) -> None:
    """Show what a build would give: lengths, fill, bytes, hours, rejects. Decodes nothing (but with --measure).

    Takes the options of `build`. With --out the plan is kept there, and the build starts from it.
    """
    options = make_config(BuildConfig, {"inputs": inputs, **given}, config)
    require("plan", options, ("inputs", "model", "bin_length"))
    others = {text: changed(options, text) for text in compare}
    began = time.monotonic()
    from omniprep.cli.summary import print_examples, print_plan
    from omniprep.compiler.build import plan_only
    from omniprep.compiler.plan.estimate import estimate
    from omniprep.compiler.plan.measure import measure as time_rows
    from omniprep.progress import QuietReporter, reporter

    silent = QuietReporter(io.StringIO())  # what the other plans have to say was said of the first
    with tempfile.TemporaryDirectory(prefix="omniprep-plan-") as folder:
        with reporter(quiet=quiet) as progress:
            kept = dataclasses.replace(options, out=options.out or str(Path(folder) / "out"))
            planned = plan_only(kept, progress)
            estimates = {"as asked": estimate(planned, kept, time_rows(planned, kept) if measure else None)}
            for number, (text, other) in enumerate(others.items()):
                there = dataclasses.replace(other, out=str(Path(folder) / f"other-{number}"))
                also = plan_only(there, silent)
                estimates[text] = estimate(also, there, time_rows(also, there) if measure else None)
        print_plan(estimates, options.workers, time.monotonic() - began)
        print_examples(planned, kept.out)


def changed(config: BuildConfig, text: str) -> BuildConfig:
    """The options with one of them changed, as "max-pixels=200704" says.

    Raises:
        UsageError: Not OPTION=VALUE, no such option, or a value that it cannot have.
    """
    name, mark, value = text.partition("=")
    if not mark:
        raise UsageError(f"--compare {text!r}: write it as OPTION=VALUE, such as max-pixels=200704")
    values = check_values(BuildConfig, "--compare", {name: yaml_value(value, f"--compare {text}")})
    return dataclasses.replace(config, **values)
