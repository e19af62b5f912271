"""The tables that end a build or a plan: rows, rejects by code, bins, fill, bytes, time."""

import json
import sys
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np

from omniprep import io
from omniprep.progress import duration, short, size

if TYPE_CHECKING:
    from omniprep.build.run import Planned
    from omniprep.config import BuildConfig

EXAMPLES = 3


def print_table(title: str, lines: list[tuple[str, str]]) -> None:
    """Two columns on standard output, as wide as they need."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column(style="dim")
    table.add_column(justify="right")
    for name, value in lines:
        table.add_row(name, value)
    Console(file=sys.stdout, width=None if sys.stdout.isatty() else 120, highlight=False).print(table)


def row_lines(read: int, packed: int, codes: Counter[str]) -> list[tuple[str, str]]:
    """The part of a table about rows."""
    return [
        ("rows read", f"{read:,}"),
        ("rows packed", f"{packed:,}"),
        ("rows rejected", f"{read - packed:,}"),
        *((f"  {code}", f"{count:,}") for code, count in codes.most_common()),
    ]


def print_summary(out: str, seconds: float) -> None:
    """Print what the manifest of `out` says, and where to look next."""
    manifest = json.loads(io.read_bytes(io.join(out, "manifest.json")))
    counts, shards = manifest["counts"], manifest["shards"]
    rows, tokens, labeled = counts["rows"], counts["tokens"], counts["labeled_tokens"]
    items = ", ".join(f"{count:,} {name}" for name, count in counts["items"].items() if count)
    lines = [
        *row_lines(rows["read"], rows["packed"], Counter(counts["rejected_by_code"])),
        ("media items", items or "none"),
        ("tokens", f"{tokens:,}, {100 * labeled / max(tokens, 1):.0f} % trained"),
        ("bins", f"{counts['bins']:,} of {manifest['bin_length']:,} tokens"),
        ("fill", f"{100 * manifest['fill']:.2f} %"),
        ("shards", f"{len(shards):,}, {size(sum(shard['bytes'] for shard in shards))}"),
        ("time", f"{duration(seconds)}, {short(tokens / max(seconds, 1e-9))} tokens/s"),
    ]
    print_table(out, lines)
    if rows["rejected"]:
        print(f"{rows['rejected']:,} rows were rejected; each with its reason: {io.join(out, 'rejected.jsonl')}")
    if counts["rows_without_labels"]:
        print(f"{counts['rows_without_labels']:,} rows have no trained token; they teach nothing")


def print_stats(dataset: str, facts: dict[str, Any]) -> None:
    """Print what `omniprep.report.numbers.facts` found."""
    totals, lengths = facts["totals"], facts["lengths"]
    rows, tokens = totals["rows"], totals["tokens"]
    items = ", ".join(f"{count:,} {name}" for name, count in totals["items"].items() if count)
    lines = [
        *row_lines(rows["read"], rows["packed"], Counter(facts["rejected_by_code"])),
        ("media items", items or "none"),
        ("tokens", f"{tokens:,}, {100 * totals['trained'] / max(tokens, 1):.0f} % trained"),
        ("row length", "  ".join(f"{name} {count:,}" for name, count in lengths["quantiles"].items())),
        ("bins", f"{totals['bins']:,} of {totals['bin_length']:,} tokens"),
        ("fill", f"{100 * totals['fill']:.2f} %"),
        ("shards", f"{totals['shards']:,}, {size(totals['bytes'])}"),
    ]
    lines += [(f"balance, {b['ranks']} ranks", f"{b['balanced']:.3f}") for b in facts["bins"]["balance"]]
    print_table(dataset, lines)
    shown = [(s["source"], f"{s['rows']:,} rows, {s['tokens']:,} tokens") for s in facts["sources"]]
    print_table("sources", shown)


def print_plan(planned: "Planned", config: "BuildConfig", seconds: float) -> None:
    """Print what a build with this plan would give."""
    from omniprep.build.packstage import FRAME_BYTES, PATCH_BYTES, TOKEN_BYTES

    facts, kept = planned.rows.facts, planned.rows.packed
    lengths = facts["length"][kept].astype(np.int64)
    tokens, bins = int(lengths.sum()), planned.placement.bins
    sums = {name: int(facts[name][kept].sum()) for name in ("patches", "audio_frames", "trained")}
    stored = tokens * TOKEN_BYTES + sums["patches"] * PATCH_BYTES + sums["audio_frames"] * FRAME_BYTES
    items = {name: int(facts[name][kept].sum()) for name in ("images", "audios", "videos")}
    shares = np.percentile(lengths, [0, 50, 90, 99, 100]).round().astype(int) if len(lengths) else np.zeros(5, int)
    lines = [
        *row_lines(len(planned.rows), int(kept.sum()), Counter(code for code in facts["code"] if code)),
        ("media items", ", ".join(f"{count:,} {name}" for name, count in items.items() if count) or "none"),
        ("tokens", f"{tokens:,}, {100 * sums['trained'] / max(tokens, 1):.0f} % trained"),
        ("row length", "min {:,}  median {:,}  90 % {:,}  99 % {:,}  max {:,}".format(*shares)),
        ("bins", f"{bins:,} of {config.bin_length:,} tokens"),
        ("fill", f"{100 * tokens / max(bins * config.bin_length, 1):.2f} %"),
        ("shards", f"{len(planned.placement.shard_bins) - 1:,}, about {size(stored)}"),
        ("vision patches, audio frames", f"{sums['patches']:,}, {sums['audio_frames']:,}"),
        ("time", duration(seconds)),
    ]
    print_table("plan (nothing was decoded; what only decoding finds is not among the rejects)", lines)
    print_examples(planned, config.out)


def print_examples(planned: "Planned", out: str) -> None:
    """A few rejects of each code, with where they are and what is wrong."""
    from omniprep.build.planfile import read_rejects
    from omniprep.build.stages import plan_path

    shown: Counter[str] = Counter()
    for number, split in enumerate(planned.splits):
        lines = planned.rows.facts["line"][planned.rows.split == number]
        for at, code, message, _ in read_rejects(plan_path(out, number, ".arrow")):
            shown[code] += 1
            if shown[code] <= EXAMPLES:
                after = f" after byte {split.start:,}" if split.start else ""
                print(f"{split.source}:{lines[at] + 1}{after}: {code}: {message}")
    if left := sum(max(count - EXAMPLES, 0) for count in shown.values()):
        print(f"... and {left:,} more; `omniprep build` writes all of them to rejected.jsonl")
