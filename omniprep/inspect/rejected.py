"""Rejected rows for the terminal: how many of each code, what it means, and rows with file, line and reason."""

from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.text import Text

from omniprep import io
from omniprep.errors import RejectCode, UsageError, did_you_mean
from omniprep.printable import printable, printable_json
from omniprep.rows.longline import parse_line
from omniprep.shards.dataset import StoredDataset

ROW_CHARS = 600


def check_code(code: str) -> str:
    """The code if it exists; else a UsageError that suggests the one that was meant."""
    known = [str(entry) for entry in RejectCode]
    if code not in known:
        hint = did_you_mean(code.replace("-", "_"), known) or f"; there are: {', '.join(known)}"
        raise UsageError(f"no reject code {code!r}{hint}")
    return code


def read_rejected(dataset: StoredDataset, code: str | None, limit: int) -> Iterator[dict[str, Any]]:
    """Lines of rejected.jsonl in the order of the input, of one code or all; at most `limit` (0: all)."""
    counts = dataset.counts["rejected_by_code"]
    remaining = sum(counts.values()) if code is None else counts.get(code, 0)
    remaining = min(remaining, limit) if limit > 0 else remaining
    if not remaining:
        return
    with io.open_input(dataset.table_uri("rejected.jsonl")) as file:
        for line in file:
            reject = parse_line(line)
            if code in (None, reject["code"]):
                yield reject
                remaining -= 1
            if not remaining:
                return


def show_rejected(console: Console, dataset: StoredDataset, code: str | None, limit: int) -> None:
    """Print the codes with their counts and meanings, then rows."""
    counts = dataset.counts["rejected_by_code"]
    if not counts.get(code, 0) if code else not counts:
        others = ", ".join(f"{name} {count:,}" for name, count in counts.items()) or "none at all"
        text = f"no row was rejected{f' with {code}' if code else ''} (rejected: {others})"
        console.print(printable(text), markup=False)
        return
    docs = {str(entry): entry.doc for entry in RejectCode}
    chosen = {name: count for name, count in counts.items() if code in (None, name)}
    for name, count in sorted(chosen.items(), key=lambda entry: -entry[1]):
        meaning = f"  {docs.get(name, '')}"
        console.print(Text.assemble((f"{count:>7,}  ", ""), (printable(name), "bold red"), (meaning, "dim")))
    shown = 0
    for reject in read_rejected(dataset, code, limit):
        shown += 1
        console.rule(Text(printable(f"{reject['source']}:{reject['line']}"), style="bold"), align="left")
        console.print(Text.assemble((printable(f"{reject['code']}: "), "red"), printable(reject["message"])))
        row = printable_json(reject["row"])
        console.print(Text(row if len(row) <= ROW_CHARS else f"{row[:ROW_CHARS]}… ({len(row):,} characters)", "dim"))
    if more := sum(chosen.values()) - shown:
        console.print(f"... and {more:,} more (--limit 0 shows all)", style="dim")
