"""`omniprep repack`."""

import time
from typing import get_args

import click

from omniprep.cli.command import CHECK_PIXELS, RAY_ADDRESS, WORKERS, CheckPixels, Command, command_progress, observed
from omniprep.cli.options import read_bytes_option
from omniprep.config import PixelCodecName, Workers
from omniprep.modalities import KINDS


@click.command(
    name="repack",
    cls=Command,
    examples=(
        "omniprep repack packed/ --bin-length 32768 --out packed-32k/",
        "omniprep repack packed/ --bin-length 16384 --kind image --kind mixed --out pictures/",
        "omniprep repack packed/ --bin-length 16384 --pixel-codec delta --out packed-delta/",
        "omniprep repack packed/ --bin-length 16384 --exclude chats.jsonl:12 --exclude-rows bad.txt --out better/",
        "omniprep repack packed-a/ packed-b/ --bin-length 16384 --seed 1 --out both/",
    ),
)
@click.argument("datasets", nargs=-1, required=True, metavar="DATASET...")
@click.option("--bin-length", type=click.IntRange(min=1), required=True, help="Tokens a new bin holds.")
@click.option("--out", required=True, help="Folder (or URI) of the new dataset.")
@click.option("--seed", type=int, help="Seed of the order.  [default: the dataset's]")
@click.option(
    "--shard-size",
    type=click.types.FuncParamType(read_bytes_option),
    metavar="BYTES",
    help="Size of a shard in bytes, about.  [default: the dataset's]",
)
@click.option("--source", "sources", multiple=True, help="Only rows of this input (or its end, such as chats.jsonl).")
@click.option("--kind", "kinds", multiple=True, type=click.Choice(KINDS), help="Only rows that hold this besides text.")
@click.option("--exclude", multiple=True, metavar="SOURCE:LINE", help="Leave this row away; repeatable.")
@click.option(
    "--exclude-rows",
    default="",
    metavar="FILE",
    help="Leave rows away: SOURCE:LINE, or JSON, on each line of a file.",
)
@click.option(
    "--exclude-source", multiple=True, metavar="PATTERN", help="Leave away all rows of inputs that a glob fits."
)
@click.option(
    "--pixel-codec",
    type=click.Choice(get_args(PixelCodecName)),
    help="How pixels are stored; source only of datasets in source.  [default: the dataset's]",
)
@click.option(
    "--pad-rows-to",
    type=click.IntRange(min=0),
    help="End each row with pad tokens, to a multiple of so many; see build.  [default: rows as they are]",
)
@CHECK_PIXELS
@WORKERS
@RAY_ADDRESS
@click.option("--overwrite", is_flag=True, help="Discard what an earlier repack left in --out.")
@observed
def repack(
    datasets: tuple[str, ...],
    bin_length: int,
    out: str,
    seed: int | None,
    shard_size: int | None,
    sources: tuple[str, ...],
    kinds: tuple[str, ...],
    exclude: tuple[str, ...],
    exclude_rows: str,
    exclude_source: tuple[str, ...],
    pixel_codec: str | None,
    pad_rows_to: int | None,
    check_pixels: CheckPixels,
    workers: Workers,
    ray_address: str | None,
    overwrite: bool,
    quiet: bool,
) -> None:
    """Pack the rows of built datasets into bins of another length, without decoding media again.

    Several datasets are merged; inputs of the same name in different ones get the end of their dataset's path in front
    (day1/part.jsonl). The result is byte for byte what a fresh build with these options would write, except
    for rows that the first build rejected as too long. Rows too long for the new bins are rejected, never cut.
    """
    began = time.monotonic()
    from omniprep.cli.summary import check_something_packed, finished_facts, print_summary
    from omniprep.compiler.named_rows import exclusions
    from omniprep.compiler.repack import repack as run_repack

    with command_progress(quiet=quiet) as progress:
        manifest = run_repack(
            datasets,
            out,
            bin_length,
            progress,
            seed=seed,
            shard_size=shard_size,
            sources=sources,
            kinds=kinds,
            exclude=exclusions(exclude, exclude_rows, exclude_source),
            overwrite=overwrite,
            pixel_codec=pixel_codec,
            pad_rows_to=pad_rows_to,
            check_pixels=check_pixels,
            workers=workers,
            ray_address=ray_address,
        )
        progress.event("finished", finished_facts(out, manifest))
    print_summary(out, manifest, time.monotonic() - began)
    check_something_packed(out, manifest["counts"])
