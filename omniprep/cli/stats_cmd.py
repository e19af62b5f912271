"""`omniprep stats`."""

import click

from omniprep.cli.command import Command
from omniprep.cli.summary import count_lines, print_notes, print_table
from omniprep.printable import counted, printable_json


@click.command(name="stats", cls=Command, examples=("omniprep stats packed/", "omniprep stats packed/ --json"))
@click.argument("dataset")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead.")
def stats(dataset: str, as_json: bool) -> None:
    """Print the numbers of a dataset: rows, tokens, fill, lengths, sources, rejects, balance."""
    from omniprep.report.numbers import facts
    from omniprep.shards.dataset import StoredDataset

    numbers = facts(StoredDataset(dataset))
    if as_json:
        print(printable_json(numbers, indent=1))
        return
    lines = count_lines(numbers["totals"], numbers["rejected_by_code"])
    quantiles = numbers["lengths"]["quantiles"]
    lines.append(("row length", "  ".join(f"{name} {count:,}" for name, count in quantiles.items())))
    lines += [(f"balance, {b['ranks']} ranks", f"{b['balanced']:.3f}") for b in numbers["bins"]["balance"]]
    print_table(dataset, lines)
    print_notes(numbers["totals"])
    print_table(
        "sources", [(s["source"], f"{counted(s['rows'], 'row')}, {s['tokens']:,} tokens") for s in numbers["sources"]]
    )
