"""The table that ends a build: rows, rejects by code, bins, fill, bytes, time."""

import json
import sys
from collections import Counter

from omniprep import io
from omniprep.progress import duration, short, size


def reject_counts(out: str) -> Counter[str]:
    """How many rows of a built dataset were rejected, by code."""
    import pyarrow.parquet as pq

    with io.open_input(io.join(out, "rows.parquet")) as file:
        codes = pq.read_table(file, columns=["code"])["code"].drop_null()
    return Counter({item["values"]: item["counts"] for item in codes.value_counts().to_pylist()})


def print_table(title: str, lines: list[tuple[str, str]]) -> None:
    """Two columns on standard output, as wide as they need."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column(style="dim")
    table.add_column(justify="right")
    for name, value in lines:
        table.add_row(name, value)
    tty = sys.stdout.isatty()
    console = Console(file=sys.stdout, width=None if tty else 100, highlight=False)
    console.print(table)


def print_summary(out: str, seconds: float) -> None:
    """Print what the manifest of `out` says, and where to look next."""
    manifest = json.loads(io.read_bytes(io.join(out, "manifest.json")))
    counts = manifest["counts"]
    rows = counts["rows"]
    rejects = reject_counts(out)
    stored = sum(shard["bytes"] for shard in manifest["shards"])
    lines = [
        ("rows read", f"{rows['read']:,}"),
        ("rows packed", f"{rows['packed']:,}"),
        ("rows rejected", f"{rows['rejected']:,}"),
        *((f"  {code}", f"{count:,}") for code, count in rejects.most_common()),
        ("tokens", f"{counts['tokens']:,}"),
        ("bins", f"{counts['bins']:,} of {manifest['bin_length']:,} tokens"),
        ("fill", f"{100 * manifest['fill']:.2f} %"),
        ("shards", f"{len(manifest['shards'])}, {size(stored)}"),
        ("time", f"{duration(seconds)}, {short(counts['tokens'] / max(seconds, 1e-9))} tokens/s"),
    ]
    print_table(out, lines)
    if rows["rejected"]:
        print(f"{rows['rejected']:,} rows were rejected; each with its reason: {io.join(out, 'rejected.jsonl')}")
