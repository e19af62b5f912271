"""`omniprep append`."""

import dataclasses
import time
from typing import Any

import click

from omniprep.cli.command import Command, command_progress, observed
from omniprep.cli.options import make_config, options_of
from omniprep.config import BuildConfig, RowOptions, Trust

_FIXED = tuple(field.name for field in dataclasses.fields(RowOptions))
"""Options that are those of the dataset."""


@click.command(
    name="append",
    cls=Command,
    examples=(
        "omniprep append packed/ chats-2026-11-26.jsonl",
        "omniprep append s3://lake/packed 's3://lake/chats/*.jsonl' --ray-address auto --workers 16",
    ),
)
@click.argument("dataset")
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...")
@options_of(BuildConfig, skip=(*_FIXED, "inputs", "out"))
@observed
def append(dataset: str, inputs: tuple[str, ...], config: str | None, quiet: bool, **given: Any) -> None:
    """Add the rows of new inputs to a built dataset, with its options.

    New rows go into new bins and shards; those that are there stay byte for byte. Inputs that the dataset has already
    are left out, so a glob over the whole lake may be given each day; one that changed since stops the command. Killed
    at any moment, the dataset is as before, and the same command goes on. A dataset does not decide what runs: if it
    was built with --plugin, --trust-remote-code, --allow-http or --media-root, give the same flags here.
    """
    began = time.monotonic()
    options = make_config(BuildConfig, given, config)
    from omniprep.cli.summary import finished_facts, print_summary
    from omniprep.compiler.append import append as run_append
    from omniprep.compiler.parts import eval_dataset
    from omniprep.shards.dataset import StoredDataset

    trust = Trust(**{field.name: getattr(options, field.name) for field in dataclasses.fields(Trust)})
    fixed = {*_FIXED, "inputs", "out", *(field.name for field in dataclasses.fields(Trust))}
    free = {
        field.name: getattr(options, field.name) for field in dataclasses.fields(options) if field.name not in fixed
    }
    with command_progress(quiet=quiet) as progress:
        manifest = run_append(dataset, inputs, free, trust, progress)
        progress.event("finished", finished_facts(dataset, manifest))
    if (other := eval_dataset(StoredDataset(dataset))) is not None:
        print_summary(other.uri, other.manifest, time.monotonic() - began)
    print_summary(dataset, manifest, time.monotonic() - began)
