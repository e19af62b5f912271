"""`omniprep repack`, `omniprep stats` and `omniprep sample`: what is done with a dataset once it is built."""

import time
from pathlib import Path

import click

from omniprep.cli.command import Command
from omniprep.cli.options import read_bytes_option
from omniprep.modalities import KINDS
from omniprep.printable import printable_json, say


@click.command(
    name="repack",
    cls=Command,
    examples=(
        "omniprep repack packed/ --bin-length 32768 --out packed-32k/",
        "omniprep repack packed/ --bin-length 16384 --kind image --kind mixed --out pictures/",
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
    help="Bytes a shard grows to.  [default: the dataset's]",
)
@click.option("--source", "sources", multiple=True, help="Only rows of this input (or its end, such as chats.jsonl).")
@click.option("--kind", "kinds", multiple=True, type=click.Choice(KINDS), help="Only rows that hold this besides text.")
@click.option(
    "--pixel-codec",
    type=click.Choice(("raw", "delta", "webp", "jxl")),
    help="How pixels are stored.  [default: the dataset's]",
)
@click.option("--overwrite", is_flag=True, help="Throw away what an earlier repack left in --out.")
@click.option("--quiet", is_flag=True, help="No progress, only the result.")
def repack(
    datasets: tuple[str, ...],
    bin_length: int,
    out: str,
    seed: int | None,
    shard_size: int | None,
    sources: tuple[str, ...],
    kinds: tuple[str, ...],
    pixel_codec: str | None,
    overwrite: bool,
    quiet: bool,
) -> None:
    """Pack the rows of built datasets into bins of another length, with no decode.

    Several datasets are merged. The result is byte for byte what a fresh build with these options would write, but
    for rows that the first build rejected as too long. Rows too long for the new bins are rejected, never cut.
    """
    began = time.monotonic()
    from omniprep.cli.summary import print_summary
    from omniprep.compiler.repack import repack as run_repack
    from omniprep.progress import reporter

    with reporter(quiet=quiet) as progress:
        manifest = run_repack(
            datasets,
            out,
            bin_length,
            progress,
            seed=seed,
            shard_size=shard_size,
            sources=sources,
            kinds=kinds,
            overwrite=overwrite,
            pixel_codec=pixel_codec,
        )
    print_summary(out, manifest, time.monotonic() - began)


@click.command(name="stats", cls=Command, examples=("omniprep stats packed/", "omniprep stats packed/ --json"))
@click.argument("dataset")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead.")
def stats(dataset: str, as_json: bool) -> None:
    """Print the numbers of a dataset: rows, tokens, fill, lengths, sources, rejects, balance."""
    from omniprep.cli.summary import print_stats
    from omniprep.data.dataset import PackedDataset
    from omniprep.report.numbers import facts

    found = facts(PackedDataset(dataset))
    if as_json:
        print(printable_json(found, indent=1))
    else:
        print_stats(dataset, found)


@click.command(
    name="sample",
    cls=Command,
    examples=(
        "omniprep sample packed/ --out some/ --rows 20 --kind audio",
        "omniprep sample packed/ --out one/ --row chats.jsonl:12",
    ),
)
@click.argument("dataset")
@click.option("--out", required=True, type=click.Path(file_okay=False, path_type=Path), help="Folder to write to.")
@click.option("--rows", "count", default=20, show_default=True, type=click.IntRange(min=1), help="How many, at random.")
@click.option("--row", "rows", multiple=True, metavar="SOURCE:LINE", help="Exactly this row (repeatable).")
@click.option("--kind", "kinds", multiple=True, type=click.Choice(KINDS), help="Only rows that hold this besides text.")
@click.option("--seed", default=0, show_default=True, help="Seed of the choice.")
@click.option("--model", help="Checkpoint whose tokenizer reads the tokens.  [default: the build's]")
def sample(
    dataset: str, out: Path, count: int, rows: tuple[str, ...], kinds: tuple[str, ...], seed: int, model: str | None
) -> None:
    """Write rows back as readable JSONL with their media, as the model sees them.

    Pictures are PNG rebuilt from the stored patches, videos one PNG a frame, sounds their spectrogram.
    """
    from omniprep.inspect.sample import write_sample

    written = write_sample(dataset, out, count=count, rows=rows, kinds=kinds, seed=seed, model=model)
    say(f"{written} rows: {out / 'rows.jsonl'}")
