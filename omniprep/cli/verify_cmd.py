"""`omniprep verify`."""

import sys

import click

from omniprep.cli.command import Command
from omniprep.printable import say


@click.command(
    name="verify",
    cls=Command,
    examples=("omniprep verify packed/", "omniprep verify packed/ --deep --sample 200"),
)
@click.argument("dataset")
@click.option("--deep", is_flag=True, help="Also encode a sample of rows again and compare.")
@click.option("--sample", default=32, show_default=True, help="Rows that --deep encodes again.")
@click.option("--quiet", is_flag=True, help="No progress, only the result.")
def verify(dataset: str, deep: bool, sample: int, quiet: bool) -> None:
    """Check that a dataset is whole: checksums of shards and bins, and every input row packed or rejected, once.

    Prints a line for each fault, and exits 1 where there is one.
    """
    from omniprep.data.dataset import PackedDataset
    from omniprep.progress import reporter, size
    from omniprep.verify import check_rows, check_shards

    ds = PackedDataset(dataset, verify="never")
    total = sum(shard["bytes"] for shard in ds.manifest["shards"])
    findings: list[str] = []
    checked = 0
    with reporter(quiet=quiet) as progress:
        progress.start("verify", total, "bytes")
        findings += check_shards(ds, lambda count: progress.advance("verify", count))
        progress.finish("verify")
        findings += check_rows(ds)
        if deep and not findings:
            from omniprep.verify_deep import check_bins, check_sample

            progress.start("bins", len(ds), "bins")
            findings += check_bins(ds, lambda count: progress.advance("bins", count))
            progress.finish("bins")
            checked = min(sample, ds.manifest["counts"]["rows"]["packed"])
            progress.start("encode", checked, "rows")
            findings += check_sample(ds, checked, lambda count: progress.advance("encode", count))
            progress.finish("encode")
    for finding in findings:
        say(finding)
    if findings:
        advice = "copy or pull it again, or build it again with --overwrite"
        say(f"{dataset} is damaged: {len(findings)} faults; {advice}", error=True)
        sys.exit(1)
    rows = ds.manifest["counts"]["rows"]
    say(
        f"{dataset} is whole: {len(ds.manifest['shards'])} shards, {size(total)}, {len(ds):,} bins, "
        f"{rows['read']:,} rows read = {rows['packed']:,} packed + {rows['rejected']:,} rejected"
    )
    if deep:
        say(f"{checked:,} rows encoded again, to the same tensors")
