"""The tables that end a build or a plan: rows, rejects by code, bins, fill, bytes, time."""

import json
import sys
from collections import Counter
from typing import TYPE_CHECKING, Any

from omniprep import io
from omniprep.progress import duration, short, size

if TYPE_CHECKING:
    from omniprep.build.estimate import Estimate
    from omniprep.build.run import Planned

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
        print(f"{rows['rejected']:,} rows were rejected; each with its reason: {io.join(out, 'rejected.jsonl')},")
        print(f"or omniprep inspect {out} --rejected")
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


def print_plan(estimates: dict[str, "Estimate"], workers: int, seconds: float) -> None:
    """Print what builds with these plans would give, side by side where there are several.

    Args:
        estimates: By what is special about each; the first is the plan as asked.
        workers: Of the build.
        seconds: That planning took.
    """
    from rich.console import Console
    from rich.table import Table

    title = "plan (nothing was decoded; what only decoding finds is not among the rejects)"
    table = Table(title=title, title_justify="left", show_header=len(estimates) > 1)
    table.add_column(style="dim")
    for name in estimates:
        table.add_column(name, justify="right")
    columns = [plan_lines(estimate, max(workers, 1)) for estimate in estimates.values()]
    codes = [code for code, _ in sum((e.codes for e in estimates.values()), Counter[str]()).most_common()]
    for name in columns[0]:
        table.add_row(name, *(column[name] for column in columns))
        if name == "rows rejected":
            for code in codes:
                table.add_row(f"  {code}", *(f"{estimate.codes[code]:,}" for estimate in estimates.values()))
    Console(file=sys.stdout, width=None if sys.stdout.isatty() else 160, highlight=False).print(table)
    print(f"planned in {duration(seconds)}")


def plan_lines(estimate: "Estimate", workers: int) -> dict[str, str]:
    """One column of the table of plans."""
    items = ", ".join(f"{count:,} {name}" for name, count in estimate.items.items() if count)
    time = duration(estimate.core_seconds / workers)
    known = f"{estimate.timed} rows, encoded here" if estimate.timed else "benchmarks; see --measure"
    return {
        "rows read": f"{estimate.read:,}",
        "rows packed": f"{estimate.packed:,}",
        "rows rejected": f"{estimate.read - estimate.packed:,}",
        "media items": items or "none",
        "tokens": f"{estimate.tokens:,}",
        "of them trained": f"{100 * estimate.trained / max(estimate.tokens, 1):.0f} %",
        "row length: median, 99 %, max": " / ".join(f"{estimate.lengths[n]:,}" for n in (1, 3, 4)),
        "bins": f"{estimate.bins:,} of {estimate.bin_length:,} tokens",
        "fill": f"{100 * estimate.fill:.2f} %",
        "shards": f"{estimate.shards:,}, about {size(estimate.bytes)}",
        "vision patches, audio frames": f"{estimate.patches:,}, {estimate.audio_frames:,}",
        "encoding takes about": f"{time} on {workers} {'worker' if workers == 1 else 'workers'}",
        "  known from": known,
    }


def print_examples(planned: "Planned", out: str) -> None:
    """A few rejects of each code, with where they are and what is wrong."""
    from omniprep.build.manifest import lines_before
    from omniprep.build.planfile import read_rejects
    from omniprep.build.tasks import plan_path

    shown: Counter[str] = Counter()
    before = lines_before(planned.splits, [receipt["lines"] for receipt in planned.receipts])
    for number, split in enumerate(planned.splits):
        for row in read_rejects(plan_path(out, number, ".arrow")):
            shown[row.code] += 1
            if shown[row.code] <= EXAMPLES:
                print(f"{split.source}:{before[number] + row.line + 1}: {row.code}: {row.message}")
    if left := sum(max(count - EXAMPLES, 0) for count in shown.values()):
        print(f"... and {left:,} more; `omniprep build` writes all of them to rejected.jsonl")
