"""The tables that end a build or a plan: rows, rejects by code, bins, fill, bytes, time."""

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from omniprep import io
from omniprep.errors import OmniprepError
from omniprep.printable import printable, say
from omniprep.progress import duration, short, size

if TYPE_CHECKING:
    from omniprep.compiler.build import Planned
    from omniprep.compiler.plan.estimate import Estimate

EXAMPLES = 3


def print_table(title: str, lines: list[tuple[str, str]]) -> None:
    """Two columns on standard output, as wide as they need."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    # Text, since rich takes [brackets] in a string for markup; folders and files may have them in their names.
    say(title)
    table = Table(show_header=False)
    table.add_column(style="dim")
    table.add_column(justify="right")
    for name, value in lines:
        table.add_row(Text(printable(name)), Text(printable(value)))
    Console(file=sys.stdout, width=None if sys.stdout.isatty() else 120, highlight=False).print(table)


def row_lines(read: int, packed: int, codes: Counter[str]) -> list[tuple[str, str]]:
    """The part of a table about rows."""
    return [
        ("rows read", f"{read:,}"),
        ("rows packed", f"{packed:,}"),
        ("rows rejected", f"{read - packed:,}"),
        *((f"  {code}", f"{count:,}") for code, count in codes.most_common()),
    ]


def print_summary(out: str, manifest: dict[str, Any], seconds: float) -> None:
    """Print what the manifest of a run says, and where to look next. (By now `out` may hold that of the next run.)"""
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
        say(f"{rows['rejected']:,} rows were rejected; each with its reason: {io.join(out, 'rejected.jsonl')},")
        say(f"or omniprep inspect {out} --rejected")
    if counts["rows_without_labels"]:
        say(f"{counts['rows_without_labels']:,} rows have no trained token; they teach nothing")
    unread = {name: [fact["rows"], fact["option"]] for name, fact in counts.get("unread_columns", {}).items()}
    for line in note_lines({name: counts.get(f"rows_with_{name}", 0) for name in NOTES}, unread):
        say(line)


def check_something_packed(out: str, counts: dict[str, Any]) -> None:
    """Refuse to call a build without a packed row a success.

    Raises:
        OmniprepError: Names the commonest reject codes.
    """
    if counts["rows"]["packed"]:
        return
    codes = Counter(counts["rejected_by_code"]).most_common(3)
    commonest = ", ".join(f"{code} {count:,}" for code, count in codes)
    raise OmniprepError(
        f"{out}: no row was packed, all {counts['rows']['read']:,} were rejected ({commonest}); "
        f"{io.join(out, 'rejected.jsonl')} has the reasons"
    )


NOTES = {
    "surplus_tags": "more media tags than media: the surplus stays text, as in the reference "
    "(--surplus-tags reject rejects them)",
    "unread_columns": "columns or items that nobody reads, as in the reference",
    "ignored_options": "limits of their own (chat_template_kwargs, keys of typed items, or columns such as max_pixels) "
    "that the reference ignores; --chat-template-kwargs apply uses the first",
}
"""What the build says of rows with a note (omniprep/rows/columns.py)."""
MOST_COLUMNS = 8


def note_lines(notes: Mapping[str, int], unread: Mapping[str, Sequence[Any]]) -> list[str]:
    """A line for each note that rows have, with the columns that nobody reads and the options that mend it.

    Args:
        notes: Rows by note.
        unread: Columns by name: rows, and the --columns that reads it ("" where none does).
    """
    lines = []
    for name, text in NOTES.items():
        if not notes.get(name):
            continue
        line = f"1 row has {text}" if notes[name] == 1 else f"{notes[name]:,} rows have {text}"
        if name == "unread_columns" and unread:
            most = sorted(unread.items(), key=lambda entry: -entry[1][0])
            shown = [
                f"{column} ({rows:,}{f'; --columns {option} reads it' if option else ''})"
                for column, (rows, option) in most[:MOST_COLUMNS]
            ]
            line += ": " + ", ".join(shown) + (f" and {len(most) - MOST_COLUMNS} more" * (len(most) > MOST_COLUMNS))
        lines.append(line)
    return lines


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
    unread = {name: [fact["rows"], fact["option"]] for name, fact in totals["unread_columns"].items()}
    for line in note_lines(totals["notes"], unread):
        say(line)
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
    from rich.text import Text

    title = "plan (nothing was decoded; what only decoding finds is not among the rejects)"
    table = Table(title=title, title_justify="left", show_header=len(estimates) > 1)
    table.add_column(style="dim")
    for name in estimates:
        table.add_column(Text(printable(name)), justify="right")
    columns = [plan_lines(estimate, max(workers, 1)) for estimate in estimates.values()]
    codes = [code for code, _ in sum((e.codes for e in estimates.values()), Counter[str]()).most_common()]
    for name in columns[0]:
        table.add_row(name, *(column[name] for column in columns))
        if name == "rows rejected":
            for code in codes:
                table.add_row(f"  {code}", *(f"{estimate.codes[code]:,}" for estimate in estimates.values()))
    Console(file=sys.stdout, width=None if sys.stdout.isatty() else 160, highlight=False).print(table)
    asked = next(iter(estimates.values()))
    for line in note_lines(asked.notes, asked.unread):
        say(line)
    say(f"planned in {duration(seconds)}")


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
    from omniprep.compiler.output.built_rows import lines_before
    from omniprep.compiler.output.paths import plan_path
    from omniprep.compiler.plan.file import read_rejects

    shown: Counter[str] = Counter()
    before = lines_before(planned.splits, [receipt["lines"] for receipt in planned.receipts])
    for number, split in enumerate(planned.splits):
        for row in read_rejects(plan_path(out, number, ".arrow", planned.generation)):
            shown[row.code] += 1
            if shown[row.code] <= EXAMPLES:
                say(f"{split.source}:{before[number] + row.line + 1}: {row.code}: {row.message}")
    if left := sum(max(count - EXAMPLES, 0) for count in shown.values()):
        say(f"... and {left:,} more; `omniprep build` writes all of them to rejected.jsonl")
