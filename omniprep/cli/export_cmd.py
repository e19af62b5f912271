"""`omniprep export`."""

from typing import Any

import click

from omniprep.cli.command import CHECK_PIXELS, CheckPixels, Command, command_progress, observed
from omniprep.cli.options import trust_options
from omniprep.printable import say


@click.command(
    name="export",
    cls=Command,
    examples=(
        "omniprep export packed/ --prompts chats --out prompts.jsonl",
        "omniprep export packed/ --prompts tokens --out prompts.parquet",
    ),
)
@click.argument("dataset")
@click.option(
    "--prompts",
    is_flag=False,
    flag_value="chats",
    required=True,
    type=click.Choice(("chats", "tokens")),
    help="Chats with their media, of the inputs; or token ids and media of the shards, for vLLM.",
)
@click.option("--out", required=True, help="File to write: .jsonl (chats) or .parquet (tokens).")
@click.option("--model", help="For tokens: checkpoint to read them with.  [default: the build's, if it is here]")
@click.option(
    "--input",
    "inputs",
    multiple=True,
    help="For chats: read this input, or all inputs in this folder, even if they changed since the build.",
)
@CHECK_PIXELS
@trust_options
@observed
def export(
    dataset: str,
    prompts: Any,
    out: str,
    model: str | None,
    inputs: tuple[str, ...],
    check_pixels: CheckPixels,
    quiet: bool,
    **trust: Any,
) -> None:
    """Write the prompts of a dataset for training by rewards: each packed row up to its last answer, and that answer.

    A dataset does not decide what runs: if it was built with --plugin, --trust-remote-code, --allow-http or
    --media-root, give the same flags here.
    """
    from omniprep.config import Trust
    from omniprep.export.prompts import export_prompts
    from omniprep.shards.dataset import StoredDataset

    packed = StoredDataset(dataset).record.counted(dataset).rows.packed
    with command_progress(quiet=quiet) as progress:
        progress.start("export", packed, "rows")
        result = export_prompts(
            dataset, out, prompts, model=model, inputs=inputs, trust=Trust(**trust), check_pixels=check_pixels,
            done=lambda count: progress.advance("export", count),
        )  # fmt: skip
        progress.finish("export")
        progress.event("finished", {"out": out, "rows": result.written})
    for message in result.messages():
        say(message, error=True)
    say(f"{out}: {result.written:,} prompts of {packed:,} rows")
