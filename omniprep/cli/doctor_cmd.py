"""`omniprep doctor`."""

import dataclasses
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from omniprep.cli.command import Command
from omniprep.errors import UsageError, did_you_mean
from omniprep.printable import counted, printable, printable_json, say

if TYPE_CHECKING:
    from omniprep.doctor.families import FamilyReport
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
        "omniprep doctor --plugin my_family.py --model CHECKPOINT --logits",
    ),
)
@click.option("--model", help="Checkpoint to try (default: a small random one of every family that can make one).")
@click.option("--family", help="Model family.  [default: found from the checkpoint]")
@click.option("--plugin", multiple=True, help="Python file that registers model families.")
@click.option("--trust-remote-code", is_flag=True, help="Let Python code of the checkpoint run.")
@click.option(
    "--logits/--no-logits",
    default=None,
    help="Compare logits of packed rows with transformers' own forward pass.  [default: with --model, where "
    "weights take at most 200 MB]",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead.")
def doctor(
    model: str | None,
    family: str | None,
    plugin: tuple[str, ...],
    trust_remote_code: bool,
    logits: bool | None,
    as_json: bool,
) -> None:
    """Show what is installed, what is missing and how to get it, and hold every family against its reference.

    Lists packages, media decoders, the fast paths that this machine takes, and whether image sizes and frame choices
    equal those of the installed qwen_omni_utils. Then, for each family: the tokens that the counter promises from the
    header, those of the expansion, and the tensors; and a dozen kinds of dummy rows, whose ids, tensors and positions
    must equal those of the checkpoint's own AutoProcessor bit for bit, but for what the family says is meant (without
    --model the few that a build tries too). Exits with 1 if something that is needed is missing or differs.
    """
    from omniprep.doctor.machine import decoders, fast_paths, packages, system

    report = Report(as_json)
    report.section("system", system())
    report.section("packages", packages())
    if report.faults:
        what = counted(report.finish(), "package is", "packages are")
        say(f"{what} missing or too old; the commands above install them", error=True)
        sys.exit(1)
    report.section("media", decoders())
    report.section("fast paths", fast_paths())
    from omniprep.doctor.families import reference_findings

    report.section("qwen_omni_utils", reference_findings())
    for tried in try_families(model, family, plugin, trust_remote_code, logits):
        report.family(tried)
    if faults := report.finish():
        say(counted(faults, "fault"), error=True)
        sys.exit(1)


@dataclass(slots=True)
class Report:
    """What is found, printed as it comes, or at the end as JSON."""

    as_json: bool
    faults: int = 0
    content: dict[str, Any] = field(default_factory=dict)
    meant: set[tuple[str, str]] = field(default_factory=set)
    """What differs and is meant to, as far as it was shown."""

    def section(self, title: str, findings: "Iterable[Finding]") -> None:
        """A section of findings; those that are missing or differ are faults."""
        listed = list(findings)
        self.faults += sum(finding.state in ("missing", "differs") for finding in listed)
        self.content[title] = [dataclasses.asdict(finding) for finding in listed]
        if not self.as_json:
            show(title, listed)

    def family(self, tried: "FamilyReport") -> None:
        """What came of a family."""
        self.faults += tried.faults
        self.content.setdefault("families", []).append(dataclasses.asdict(tried))
        if not self.as_json:
            print()
            for line in tried.lines(self.meant):
                say(line)

    def finish(self) -> int:
        """Print the JSON, where that is asked for; returns the number of faults."""
        if self.as_json:
            print(printable_json({**self.content, "faults": self.faults}))
        return self.faults


def show(title: str, findings: "Iterable[Finding]") -> None:
    """Print a section."""
    from rich.console import Console
    from rich.text import Text

    console = Console(file=sys.stdout, highlight=False, width=None if sys.stdout.isatty() else 160)
    console.print(f"\n{title}", style="bold")
    for finding in _merged(list(findings)):
        mark, style = MARKS[finding.state]
        fix = printable(f"  -> {finding.fix}") if finding.fix else ""
        name, text = printable(f"{finding.name:20}"), printable(finding.text)
        line = Text.assemble(f"  {name} ", (f"{mark:8}", style), text, (fix, "cyan"))
        console.print(line, soft_wrap=True)


def _merged(findings: "list[Finding]") -> "list[Finding]":
    """Findings with the same text and the same cure as one line, such as the packages of an extra that is absent."""
    names: dict[tuple[str, str, str], list[str]] = {}
    for finding in findings:
        if finding.fix:
            names.setdefault((finding.state, finding.text, finding.fix), []).append(finding.name)
    merged = []
    for finding in findings:
        alike = names.pop((finding.state, finding.text, finding.fix), [])
        if alike or not finding.fix:
            merged.append(dataclasses.replace(finding, name=", ".join(alike)) if alike else finding)
    return merged


def try_families(
    model: str | None, family: str | None, plugin: tuple[str, ...], trust_remote_code: bool, logits: bool | None
) -> "Iterator[FamilyReport]":
    """Send dummy rows through the families that are asked for."""
    from omniprep.compiler.oracle.processor import quiet_transformers
    from omniprep.doctor.families import examine, small_checkpoint, untried
    from omniprep.families.context import resolve_family
    from omniprep.families.loading import load_families
    from omniprep.registry import REGISTRY
    from omniprep.train.doctor_logits import compare_logits

    load_families(plugin)
    if family is not None and family not in REGISTRY.families:
        hint = did_you_mean(family, REGISTRY.families) or f"; there are: {', '.join(sorted(REGISTRY.families))}"
        raise UsageError(f"--family {family}: not registered{hint}")
    if model is not None:
        record = resolve_family(model, family, plugin, None, trust_remote_code).record
        chosen = [(record, model)]
    else:
        chosen = [(record, "") for name, record in REGISTRY.families.items() if family in (None, name)]
    with tempfile.TemporaryDirectory(prefix="omniprep-doctor-") as name, quiet_transformers():
        folder = Path(name)
        for record, checkpoint in chosen:
            path = checkpoint or small_checkpoint(record, folder / record.name, asked=family is not None)
            if path is None:
                yield untried(record)
            else:
                yield examine(
                    record,
                    str(path),
                    plugin,
                    folder,
                    trust_remote_code=trust_remote_code,
                    compare_logits=partial(compare_logits, wanted=logits if model or logits else False),
                    quick=model is None,
                )
