"""`omniprep plan`: what a build would give, as a table; several plans side by side."""

import dataclasses
import io
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from omniprep.cli.command import Command, announce, command_progress, observed
from omniprep.cli.options import check_values, make_config, options_of, require, yaml_value
from omniprep.cli.summary import listed, note_lines, warn_of_rejects
from omniprep.config import BuildConfig
from omniprep.errors import UsageError
from omniprep.printable import counted, printable, say
from omniprep.progress import duration, short, size

if TYPE_CHECKING:
    from omniprep.compiler.output.built_rows import Planned
    from omniprep.compiler.plan.estimate import Estimate
    from omniprep.compiler.plan.mixture import MixturePart

EXAMPLES = 3
"""Rejects of each code that are listed."""


@click.command(
    name="plan",
    cls=Command,
    examples=(
        "omniprep plan chats.jsonl --model Qwen/Qwen2.5-Omni-7B --bin-length 16384 --workers 16",
        "omniprep plan chats.jsonl --model Qwen/Qwen2.5-Omni-7B --bin-length 16384 --compare max-pixels=200704 "
        "--compare bin-length=8192",
        "omniprep plan chats.jsonl --model Qwen/Qwen2.5-Omni-7B --bin-length 16384 --workers 16 --measure",
        "omniprep plan a.jsonl b.jsonl --model Qwen/Qwen2.5-Omni-7B --bin-length 16384 --mixture a.jsonl:2.0 "
        "--mixture b.jsonl:1.0 --epochs 3 --tokens-per-second 20000",
    ),
)
@click.argument("inputs", nargs=-1, metavar="INPUT...")
@options_of(BuildConfig, skip=("inputs", "part"))
@click.option(
    "--compare", multiple=True, metavar="OPTION=VALUE", help="Also plan with this option, side by side; repeatable."
)
@click.option(
    "--mixture",
    multiple=True,
    metavar="INPUT[:WEIGHT]",
    help="A dataset of a training mixture, by the inputs that it is built of (a name or a pattern), with its weight as "
    "omniprep train takes it: also show passes, tokens and hours of an epoch; repeatable.",
)
@click.option(
    "--epochs", type=click.FloatRange(min=0, min_open=True), default=1.0, help="Epochs of --mixture.  [default: 1]"
)
@click.option(
    "--tokens-per-second",
    type=click.FloatRange(min=0, min_open=True),
    help="Speed of the training, of all GPUs together, for the hours of --mixture.",
)
@click.option("--measure", is_flag=True, help="Encode some rows of each kind, to time the build on this machine.")
@observed
def plan(
    inputs: tuple[str, ...],
    config: str | None,
    compare: tuple[str, ...],
    mixture: tuple[str, ...],
    epochs: float,
    tokens_per_second: float | None,
    measure: bool,
    quiet: bool,
    **given: Any,
) -> None:
    """Show what a build would give: lengths, fill, bytes, hours, rejects. Decodes nothing, except with --measure.

    Takes the options of `build`. With --out the plan is kept there, and the build starts from it.
    """
    options = make_config(BuildConfig, {"inputs": inputs, **given}, config)
    require("plan", options, ("inputs", "model", "bin_length"))
    others = {text: changed(options, text) for text in compare}
    if not mixture and (tokens_per_second or epochs != 1.0):
        raise UsageError("--epochs and --tokens-per-second are of a --mixture: name its datasets")
    from omniprep.train.config import parse_source

    weighted = [parse_source(text) for text in mixture]
    began = time.monotonic()
    announce("plan", options.inputs, options.model, quiet=quiet)
    with tempfile.TemporaryDirectory(prefix="omniprep-plan-") as folder:
        with command_progress(quiet=quiet) as progress:
            from omniprep.compiler.build import plan_only
            from omniprep.compiler.parts import parts_of
            from omniprep.compiler.plan.estimate import estimate
            from omniprep.compiler.plan.measure import measure as time_rows
            from omniprep.compiler.plan.mixture import mixture_parts
            from omniprep.compiler.run.cluster import planned_workers
            from omniprep.observe.reporter import RejectsLast
            from omniprep.progress import QuietReporter

            silent = QuietReporter(io.StringIO())  # the other plans would repeat the messages of the first
            # With --split-by rows the part for evaluation is planned too, beside the one to train on (the last).
            *eval_parts, kept = parts_of(dataclasses.replace(options, out=options.out or str(Path(folder) / "out")))
            examples = RejectsLast(progress)  # the result lists rejects: they would be read twice
            with examples.shown_on_failure():
                planned = plan_only(kept, examples)
            estimates = {"as asked": estimate(planned, kept, time_rows(planned, kept) if measure else None)}
            for part in eval_parts:
                estimates["--eval-fraction"] = estimate(plan_only(part, silent), part)
            for number, (text, other) in enumerate(others.items()):
                other = parts_of(dataclasses.replace(other, out=str(Path(folder) / f"other-{number}")))[-1]
                also = plan_only(other, silent)
                estimates[text] = estimate(also, other, time_rows(also, other) if measure else None)
            read, packed = estimates["as asked"].read, estimates["as asked"].packed
            counts = {"rows": {"read": read, "packed": packed, "rejected": read - packed}}
            progress.event("finished", {"out": options.out, "counts": counts})
        print_plan(estimates, planned_workers(options.workers, options.ray_address), time.monotonic() - began)
        if weighted:
            print_mixture(mixture_parts(planned, kept, weighted), epochs, tokens_per_second)
        print_examples(planned, kept.out)
        asked = estimates["as asked"]
        warn_of_rejects(counts["rows"], asked.codes, "see the examples above")


def changed(config: BuildConfig, text: str) -> BuildConfig:
    """The options with one of them changed, as "max-pixels=200704" says; UsageError where that cannot be."""
    name, mark, value = text.partition("=")
    if not mark:
        raise UsageError(f"--compare {text!r}: write it as OPTION=VALUE, such as max-pixels=200704")
    values = check_values(BuildConfig, "--compare", {name: yaml_value(value, f"--compare {text}")})
    return dataclasses.replace(config, **values)


def print_plan(estimates: dict[str, "Estimate"], workers: int, seconds: float) -> None:
    """Print what builds with these plans (by the option that is changed) would give, side by side."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    title = "plan (nothing was decoded; what only decoding finds is not among the rejects)"
    table = Table(title=title, title_justify="left", show_header=len(estimates) > 1)
    table.add_column(style="dim")
    for name in estimates:
        table.add_column(Text(printable(name)), justify="right")
    columns = [plan_lines(estimate, workers) for estimate in estimates.values()]
    codes = [code for code, _ in sum((e.codes for e in estimates.values()), Counter[str]()).most_common()]
    for name in columns[0]:
        if name == "rows left out by --where" and not any(estimate.filtered for estimate in estimates.values()):
            continue
        if name == "preferences" and not any(estimate.preference for estimate in estimates.values()):
            continue
        table.add_row(name, *(column[name] for column in columns))
        if name == "rows rejected":
            for code in codes:
                table.add_row(f"  {code}", *(f"{estimate.codes[code]:,}" for estimate in estimates.values()))
    Console(file=sys.stdout, width=None if sys.stdout.isatty() else 160, highlight=False).print(table)
    asked = next(iter(estimates.values()))
    for line in note_lines(asked.notes, asked.unread):
        say(line)
    say(f"planned in {duration(seconds)}")


def print_mixture(parts: list["MixturePart"], epochs: float, tokens_per_second: float | None) -> None:
    """Print what an epoch of a mixture takes of each part, and its tokens and hours."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    total = sum(part.epoch_tokens for part in parts)
    table = Table(title="mixture (weights are shares of tokens, as for omniprep train)", title_justify="left")
    for name in ("dataset", "rows", "tokens", "bins", "weight", "of an epoch's tokens", "passes an epoch"):
        table.add_column(name, justify="left" if name == "dataset" else "right")
    for part in parts:
        table.add_row(
            Text(printable(part.name)),
            f"{part.rows:,}",
            f"{part.tokens:,}",
            f"{part.bins:,}",
            "" if part.weight is None else f"{part.weight:g}",
            f"{100 * part.epoch_tokens / total:.1f} %",
            f"{part.passes:.2f}",
        )
    Console(file=sys.stdout, width=None if sys.stdout.isatty() else 160, highlight=False).print(table)
    bins = sum(part.bins for part in parts)
    whole = f"{epochs:g} {'epoch' if epochs == 1 else 'epochs'}"
    say(f"an epoch: {counted(bins, 'bin')}, {round(total):,} tokens; {whole}: {round(total * epochs):,} tokens")
    for part in parts:
        say(f"{part.name}: {part.passes * epochs:.2f} passes in {whole}")
    if tokens_per_second:
        hours = total * epochs / tokens_per_second / 3600
        say(f"hours at {tokens_per_second:,.0f} tokens/s: {hours:,.2f}")
    else:
        say("hours: give --tokens-per-second, which omniprep train prints while it runs")


def plan_lines(estimate: "Estimate", workers: int) -> dict[str, str]:
    """One column of the table of plans."""
    items = listed(estimate.items)
    workers = max(1, min(workers, estimate.shards))  # a shard is encoded by one of them
    time = duration(estimate.core_seconds / workers)
    known = f"{counted(estimate.timed, 'row')}, encoded here" if estimate.timed else "benchmarks; see --measure"
    return {
        "rows left out by --where": f"{estimate.filtered:,}",
        "rows read": f"{estimate.read:,}",
        "rows packed": f"{estimate.packed:,}",
        "rows rejected": f"{estimate.read - estimate.packed:,}",
        "preferences": listed(estimate.preference) or "none",
        "media items": items or "none",
        "tokens": f"{estimate.tokens:,}",
        "of them trained": f"{100 * estimate.trained / max(estimate.tokens, 1):.0f} %",
        "row length: median, 99 %, max": " / ".join(f"{estimate.lengths[n]:,}" for n in (1, 3, 4)),
        "bins": f"{estimate.bins:,} of {estimate.bin_length:,} tokens",
        "fill": f"{100 * estimate.fill:.2f} %",
        "shards": f"{estimate.shards:,}, about {size(estimate.bytes)}",
        "one core loads about": f"{short(estimate.tokens / max(estimate.load_seconds, 1e-9))} tokens/s"
        if estimate.load_seconds
        else "no pixels",
        "vision patches, audio frames": f"{estimate.patches:,}, {estimate.audio_frames:,}",
        "encoding takes about": f"{time} on {counted(workers, 'worker')}",
        "  known from": known,
    }


def print_examples(planned: "Planned", out: str) -> None:
    """Print a few rejects of each code with source, line and reason."""
    from omniprep.compiler.output.paths import plan_path
    from omniprep.compiler.plan.file import read_rejects
    from omniprep.rows.split import lines_before

    shown: Counter[str] = Counter()
    before = lines_before(planned.splits, [receipt["lines"] for receipt in planned.receipts])
    for number, split in enumerate(planned.splits):
        for row in read_rejects(plan_path(out, number, ".arrow", planned.generation)):
            shown[row.code] += 1
            if shown[row.code] <= EXAMPLES:
                say(f"{split.source}:{before[number] + row.line + 1}: {row.code}: {row.message}")
    later, told = planned.taken_out_by_code(), shown.copy()
    shown.update(later)
    for where, code, message in planned.taken_out() if later else ():
        told[code] += 1
        if told[code] <= EXAMPLES:
            say(f"{where}: {code}: {message}")
        if all(told[each] >= min(EXAMPLES, shown[each]) for each in later):
            break  # of millions of duplicates nobody reads more
    if left := sum(max(count - EXAMPLES, 0) for count in shown.values()):
        say(f"... and {left:,} more; `omniprep build` writes all of them to rejected.jsonl")
