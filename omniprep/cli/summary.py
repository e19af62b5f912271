"""The table that ends a build or a repack (rows, rejects by code, bins, fill, bytes, time), and remarks on its rows."""

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from omniprep import io
from omniprep.errors import OmniprepError
from omniprep.observe.command import this_command
from omniprep.printable import counted, printable, say
from omniprep.progress import duration, short, size


def print_table(title: str, lines: list[tuple[str, str]]) -> None:
    """Print a title and two columns, as wide as they need."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    # Text, since rich reads [brackets] in a string as markup, and names of files may have them.
    say(title)
    table = Table(show_header=False)
    table.add_column(style="dim")
    table.add_column(justify="right")
    for name, value in lines:
        table.add_row(Text(printable(name)), Text(printable(value)))
    Console(file=sys.stdout, width=None if sys.stdout.isatty() else 120, highlight=False).print(table)


def listed(counts: Mapping[str, int]) -> str:
    """Counts that are not 0, with their names: "2 pairs, 1 ordinary"."""
    return ", ".join(f"{count:,} {name}" for name, count in counts.items() if count)


def count_lines(totals: dict[str, Any], codes: dict[str, int]) -> list[tuple[str, str]]:
    """The part of a table about a dataset: what `omniprep.report.numbers.totals` gives, and its rejects by code."""
    rows, tokens = totals["rows"], totals["tokens"]
    items = listed(totals["items"])
    return [
        *((("rows left out by --where", f"{rows['filtered']:,}"),) if rows.get("filtered") else ()),
        *((("rows of the other part (--split-by)", f"{rows['other_part']:,}"),) if rows.get("other_part") else ()),
        ("rows read", f"{rows['read']:,}"),
        ("rows packed", f"{rows['packed']:,}"),
        ("rows rejected", f"{rows['rejected']:,}"),
        *((f"  {code}", f"{count:,}") for code, count in Counter(codes).most_common()),
        *((("rows removed", f"{rows['removed']:,}"),) if rows.get("removed") else ()),
        *((("preferences", listed(totals["preference"])),) if totals["preference"] else ()),
        ("media items", items or "none"),
        ("tokens", f"{tokens:,}, {100 * totals['trained'] / max(tokens, 1):.0f} % trained"),
        ("bins", f"{totals['bins']:,} of {totals['bin_length']:,} tokens"),
        ("fill", f"{100 * totals['fill']:.2f} %"),
        ("shards", f"{totals['shards']:,}, {size(totals['bytes'])}"),
    ]


def print_summary(out: str, manifest: dict[str, Any], seconds: float) -> None:
    """Print what the manifest of a run says, and where to look next. (By now `out` may hold that of the next run.)"""
    from omniprep.report.numbers import totals

    counts = manifest["counts"]
    lines = count_lines(totals(manifest), counts["rejected_by_code"])
    speed = short(counts["tokens"] / max(seconds, 1e-9))
    print_table(out, [*lines, ("time", f"{duration(seconds)}, {speed} tokens/s")])
    if rejected := counts["rows"]["rejected"]:
        text = f"{counted(rejected, 'row was', 'rows were')} rejected; each with its reason"
        say(f"{text}: {io.join(out, 'rejected.jsonl')},")
        say(f"or omniprep inspect {out} --rejected")
    if counts["rows_without_labels"]:
        say(f"{counted(counts['rows_without_labels'], 'row has', 'rows have')} no trained token: nothing to learn")
    if manifest["config"]["pixel_codec"] == "source":
        stored = [(name, codec) for name, codec in manifest["pixel_codecs"].items() if codec != "source"]
        for name, codec in stored:
            say(f"{name} is stored by {codec}: the family {manifest['family']} makes it of more than its file")
    print_notes(totals(manifest))
    if counts["rows"]["packed"]:  # else the command fails, and says the same
        warn_of_rejects(counts["rows"], counts["rejected_by_code"], f"omniprep inspect {out} --rejected shows why")


def finished_facts(out: str, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What the event "finished" says of the dataset that a command made or changed."""
    generations = len(manifest.get("generations") or (None,))  # a dataset that was never changed is of its build alone
    return {"out": out, "counts": manifest["counts"], "generations": generations}


def print_notes(totals: dict[str, Any]) -> None:
    """Print what rows of a dataset have notes, a line for each note."""
    unread = {name: [column["rows"], column["option"]] for name, column in totals["unread_columns"].items()}
    for line in note_lines(totals["notes"], unread):
        say(line)


def check_something_packed(out: str, counts: dict[str, Any]) -> None:
    """Fail a build that packed no row; the error names the most frequent reject codes."""
    if counts["rows"]["packed"]:
        return
    read = counts["rows"]["read"]
    rejected = "its only row was rejected" if read == 1 else f"all {read:,} were rejected"
    raise OmniprepError(
        f"{out}: no row was packed, {rejected} ({commonest_codes(counts['rejected_by_code'])}); "
        f"{io.join(out, 'rejected.jsonl')} has the reasons"
    )


def commonest_codes(codes: Mapping[str, int]) -> str:
    """The three most frequent reject codes, such as "bad_media 12, bad_json 3"."""
    return ", ".join(f"{code} {count:,}" for code, count in Counter(codes).most_common(3))


def warn_of_rejects(rows: Mapping[str, int], codes: Mapping[str, int], advice: str) -> None:
    """Say in red that more than half of the rows are rejected: a mistake in the data or its options, mostly."""
    from rich.console import Console
    from rich.text import Text

    read, rejected = rows["read"], rows["rejected"]
    if rejected * 2 > read and this_command.plain is None:  # programs have the counts of the event "finished"
        text = f"Warning: {rejected:,} of {read:,} rows are rejected ({commonest_codes(codes)}); {advice}"
        Console(file=sys.stderr, highlight=False).print(Text(printable(text), style="bold red"), soft_wrap=True)


NOTES = {
    "surplus_tags": "more media tags than media: the surplus stays text, as in the reference "
    "(--surplus-tags reject rejects them)",
    "unread_columns": "columns, items or tags that nobody reads, as in the reference",
    "ignored_options": "limits of their own (chat_template_kwargs, keys of typed items, or columns such as max_pixels) "
    "that the reference ignores; --chat-template-kwargs apply uses the first",
}
"""What is said of rows with a note (omniprep/rows/columns.py)."""
MOST_COLUMNS = 8


def shown_option(option: str) -> str:
    """The option that reads a column: a value of --columns, or another option with its value."""
    return option if option.startswith("--") else f"--columns {option}"


def note_lines(notes: Mapping[str, int], unread: Mapping[str, Sequence[Any]]) -> list[str]:
    """A line for each note that rows have, with the unread columns and the options that read them."""
    lines = []
    for name, text in NOTES.items():
        if not notes.get(name):
            continue
        line = counted(notes[name], f"row has {text}", f"rows have {text}")
        if name == "unread_columns" and unread:
            columns = [
                f"{column} ({rows:,}{f'; {shown_option(option)} reads it' if option else ''})"
                for column, (rows, option) in sorted(unread.items(), key=lambda entry: -entry[1][0])
            ]
            more = len(columns) - MOST_COLUMNS
            line += ": " + ", ".join(columns[:MOST_COLUMNS]) + (f" and {more} more" if more > 0 else "")
        lines.append(line)
    return lines
