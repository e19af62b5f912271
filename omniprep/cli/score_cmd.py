"""`omniprep score`."""

import os
from pathlib import Path
from typing import Any

import click

from omniprep.cli.command import Command, command_progress, observed
from omniprep.cli.options import make_config, options_of, require
from omniprep.printable import say
from omniprep.train.config import ScoreConfig


@click.command(
    name="score",
    cls=Command,
    examples=(
        "omniprep score packed/ --model Qwen/Qwen2.5-Omni-7B",
        "torchrun --nproc-per-node 8 -m omniprep score packed/ --model Qwen/Qwen2.5-Omni-7B",
    ),
)
@click.argument("data", nargs=-1, metavar="DIR...")
@options_of(ScoreConfig, skip=("data",))
@observed
def score(data: tuple[str, ...], config: str | None, quiet: bool, **given: Any) -> None:
    """Store the log-probabilities of a reference model, --model, with datasets of preference rows.

    `omniprep train --objective dpo` and `kto` need them, so that no second model is in memory. They are written once,
    to DIR/reference_logps.parquet. On several GPUs: torchrun --nproc-per-node 8 -m omniprep score …
    """
    options = make_config(ScoreConfig, {"data": data, **given}, config)
    require("score", options, ("data", "model"))
    from omniprep.bars import reporter
    from omniprep.train.packages import require_packages

    require_packages({"torch": "score", "transformers": "score", "accelerate": "score"})
    if (Path(options.model) / "adapter_config.json").is_file():
        require_packages({"peft": "an adapter"})
    from omniprep.train.run import leave_group
    from omniprep.train.score import score as run_score

    first = int(os.environ.get("RANK", "0")) == 0
    with command_progress(quiet=quiet) if first else reporter(quiet=True) as progress:
        run_score(options, progress)
        progress.event("finished", {"data": list(options.data)})
    leave_group()
    if first:
        for uri in options.data:
            say(uri)
