"""`omniprep build`: its options are the fields of `BuildConfig`."""

import time
from typing import Any

import click

from omniprep.cli.command import Command, announce, command_progress, observed
from omniprep.cli.options import make_config, options_of, require
from omniprep.config import BuildConfig


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
@click.argument("inputs", nargs=-1, metavar="INPUT...")
@options_of(BuildConfig, skip=("inputs", "part"))
@observed
def build(inputs: tuple[str, ...], config: str | None, quiet: bool, **given: Any) -> None:
    """Compile chats into a packed dataset in --out.

    INPUT is a file, a glob, a folder or a URI (.jsonl and .json, also .gz or .zst; .parquet; a saved dataset);
    INPUT:NAME reads a split of it, INPUT#N draws N rows. Running the same build again goes on where it stopped; with
    changed options it stops and names what changed.
    """
    options = make_config(BuildConfig, {"inputs": inputs, **given}, config)
    require("build", options, ("inputs", "model", "bin_length", "out"))
    began = time.monotonic()
    announce("build", options.inputs, options.model, quiet=quiet)
    with command_progress(quiet=quiet) as progress:
        from omniprep.cli.summary import check_something_packed, finished_facts, print_summary
        from omniprep.compiler.build import build as run_build
        from omniprep.compiler.parts import parts_of
        from omniprep.shards.dataset import StoredDataset

        manifest = run_build(options, progress)
        progress.event("finished", finished_facts(options.out, manifest))
    for part in parts_of(options):
        if part.part == "eval":
            print_summary(part.out, StoredDataset(part.out).manifest, time.monotonic() - began)
        else:
            print_summary(part.out, manifest, time.monotonic() - began)
    check_something_packed(options.out, manifest["counts"])
