"""`omniprep verify`."""

import sys
from typing import Any

import click

from omniprep.cli.command import CHECK_PIXELS, CheckPixels, Command, command_progress, observed
from omniprep.cli.options import trust_options
from omniprep.printable import counted, say


@click.command(
    name="verify", cls=Command, examples=("omniprep verify packed/", "omniprep verify packed/ --deep --sample 200")
)
@click.argument("dataset")
@click.option("--deep", is_flag=True, help="Also encode a sample of rows again and compare.")
@click.option(
    "--sample", default=32, show_default=True, type=click.IntRange(min=1), help="Rows that --deep encodes again."
)
@click.option("--model", help="For --deep: checkpoint to encode with.  [default: the build's, if it is here]")
@click.option(
    "--input",
    "inputs",
    multiple=True,
    help="For --deep: read this input, or all inputs in this folder, even if they changed since the build.",
)
@CHECK_PIXELS
@trust_options
@observed
def verify(
    dataset: str,
    deep: bool,
    sample: int,
    model: str | None,
    inputs: tuple[str, ...],
    check_pixels: CheckPixels,
    quiet: bool,
    **trust: Any,
) -> None:
    """Check that a dataset is whole: checksums of shards and bins, and each input row packed, rejected or removed once.

    Prints a line for each fault, and exits with 1 if there is any.

    --deep opens local inputs that are unchanged since the build, and the build's checkpoint if it is on this machine.
    A dataset does not decide what runs: if it was built with --plugin, --trust-remote-code, --allow-http or
    --media-root, give the same flags here.
    """
    from omniprep.config import Trust
    from omniprep.errors import OmniprepError
    from omniprep.progress import size
    from omniprep.shards.dataset import StoredDataset
    from omniprep.verify.files import check_pixels as decode_pixels
    from omniprep.verify.files import check_rows, check_shards, holds_files

    ds = StoredDataset(dataset, verify="never", check_pixels=check_pixels)
    counts = ds.record.counted(dataset)
    total = sum(shard.bytes for shard in ds.record.shards)
    findings: list[str] = []
    checked, deeply = 0, None
    with command_progress(quiet=quiet) as progress:
        progress.start("verify", total, "bytes")
        findings += check_shards(ds, lambda count: progress.advance("verify", count))
        progress.finish("verify")
        findings += check_rows(ds)
        if len(ds) and not findings and check_pixels != "never" and holds_files(ds):
            progress.start("decode", len(ds), "bins")
            findings += decode_pixels(ds, lambda count: progress.advance("decode", count))
            progress.finish("decode")
        if deep and not findings:
            from omniprep.data.dataset import PackedDataset  # imports torch
            from omniprep.verify.deep import check_sample

            checked = min(sample, counts.rows.packed)
            progress.start("encode", checked, "rows")
            deeply = check_sample(
                PackedDataset(dataset, verify="never", check_pixels=check_pixels), checked, Trust(**trust),
                model=model, inputs=inputs,
                done=lambda count: progress.advance("encode", count),
            )  # fmt: skip
            findings += deeply.findings
            progress.finish("encode")
        progress.event("finished", {"out": dataset, "faults": len(findings)})
    for text in deeply.unread if deeply is not None else ():
        say(text, error=True)
    for finding in findings:
        say(finding)
    if findings:
        advice = "copy or pull it again, or build it again with --overwrite"
        say(f"{dataset} is damaged: {counted(len(findings), 'fault')}; {advice}", error=True)
        sys.exit(1)
    rows = counts.rows
    say(
        f"{dataset} is whole: {counted(len(ds.record.shards), 'shard')}, {size(total)}, {counted(len(ds), 'bin')}, "
        f"{counted(rows.read, 'row')} read = {rows.packed:,} packed + {rows.rejected:,} rejected"
        + (f" + {rows.removed:,} removed, of which nothing is left" if rows.removed else "")
    )
    if deeply is not None and deeply.unread:
        raise OmniprepError(
            f"{dataset}: {deeply.equal:,} of {checked:,} rows could be encoded again, to the same tensors"
        )
    if deep:
        say(f"{counted(checked, 'row')} encoded again, to the same tensors")
