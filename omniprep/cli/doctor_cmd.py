"""`omniprep doctor`."""

import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from omniprep.cli.command import Command
from omniprep.printable import printable, say

if TYPE_CHECKING:
    from omniprep.doctor.machine import Finding

MARKS = {
    "ok": ("ok", "green"),
    "missing": ("MISSING", "bold red"),
    "absent": ("-", "dim"),
    "slow": ("slow", "yellow"),
    "differs": ("DIFFERS", "bold red"),
}


@click.command(
    name="doctor",
    cls=Command,
    examples=(
        "omniprep doctor",
        "omniprep doctor --model Qwen/Qwen2.5-Omni-7B",
        "omniprep doctor --plugin my_family.py --model CHECKPOINT",
    ),
)
@click.option("--model", help="Checkpoint to try (default: a small random one of every family that can make one).")
@click.option("--family", help="Model family.  [default: found from the checkpoint]")
@click.option("--plugin", multiple=True, help="Python file that registers model families.")
def doctor(model: str | None, family: str | None, plugin: tuple[str, ...]) -> None:
    """Show what is installed, what is missing and how to get it, and send dummy rows through every family.

    Lists packages, media decoders, the fast paths that this machine takes, and whether image sizes and frame choices
    equal those of the installed qwen_omni_utils; then, for each family and modality, the tokens that the counter
    promises from the header, those of the expansion, and the tensors. Exits with 1 if something that is needed is
    missing or the numbers disagree.
    """
    from omniprep.doctor.machine import decoders, fast_paths, packages, system

    faults = show("system", system()) + show("packages", packages())
    if faults:
        say(f"{faults} packages are missing or too old; the commands above install them", error=True)
        sys.exit(1)
    show("media", decoders())
    show("fast paths", fast_paths())
    from omniprep.doctor.families import reference_findings

    faults = show("qwen_omni_utils", reference_findings())
    faults += try_families(model, family, plugin)
    if faults:
        say(f"{faults} faults", error=True)
        sys.exit(1)


def show(title: str, findings: "Iterable[Finding]") -> int:
    """Print a section; returns the number of faults: findings that are missing or differ."""
    from rich.console import Console
    from rich.text import Text

    console = Console(file=sys.stdout, highlight=False, width=None if sys.stdout.isatty() else 160)
    console.print(f"\n{title}", style="bold")
    faults = 0
    for finding in findings:
        mark, style = MARKS[finding.state]
        fix = printable(f"  -> {finding.fix}") if finding.fix else ""
        name, text = printable(f"{finding.name:20}"), printable(finding.text)
        line = Text.assemble(f"  {name} ", (f"{mark:8}", style), text, (fix, "cyan"))
        console.print(line, soft_wrap=True)
        faults += finding.state in ("missing", "differs")
    return faults


def try_families(model: str | None, family: str | None, plugin: tuple[str, ...]) -> int:
    """Send dummy rows through families and print the results; returns the number of faults."""
    from omniprep.doctor.families import small_checkpoint, try_family
    from omniprep.errors import OmniprepError
    from omniprep.families.context import resolve_family
    from omniprep.families.loading import load_families
    from omniprep.registry import REGISTRY

    load_families(plugin)
    if model is not None:
        chosen = [(resolve_family(model, family, plugin).record, model)]
    else:
        records = [record for name, record in REGISTRY.families.items() if family in (None, name)]
        chosen = [(record, "") for record in records]
    faults = 0
    with tempfile.TemporaryDirectory(prefix="omniprep-doctor-") as folder:
        for record, checkpoint in chosen:
            print()
            say(f"family {record.name} {record.version} ({record.origin})")
            try:
                path = checkpoint or small_checkpoint(record, Path(folder) / record.name)
                if path is None:
                    say("  not tried: give a checkpoint with --model")
                    continue
                ctx = resolve_family(str(path), record.name, plugin)
                words = "ok  words are remembered" if ctx.encoder.by_words else "slow  the tokenizer is asked each time"
                say(f"  {'tokenizer':24} {words}")
                trials = try_family(ctx, Path(folder))
            except OmniprepError as error:
                say(f"  FAULT {error}")
                faults += 1
                continue
            for trial in trials:
                counts = f"counter {trial.counter} = expansion {trial.expansion}: {trial.tensors}"
                say(f"  {trial.what:24} {'FAULT ' + trial.fault if trial.fault else 'ok  ' + counts}")
                faults += bool(trial.fault)
    return faults
