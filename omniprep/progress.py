"""Progress of long work: a small base class, and three ways of showing it to people on standard error.

A stage has a name, a unit and perhaps a total; the worker functions know nothing of it, the driver that collects their
results calls `advance`. A terminal gets one bar a stage with its rates and the time left, anything else gets a plain
line every few seconds, `--quiet` gets nothing but messages. Results never go here: they belong to standard output.
What programs read of a run (JSON lines, metrics) is in omniprep/observe/.
"""

import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TextIO

from omniprep.printable import printable

PLAIN_SECONDS = 5.0
WORKERS = 8
PLAIN = "OMNIPREP_PLAIN"
"""Environment variable that asks for `PlainReporter` on a terminal too; `omniprep --plain` sets it."""


class WorkerStatus(NamedTuple):
    """How far a worker is with its task."""

    worker: str
    """A number, or an id; "" is this process."""
    task: str
    done: int
    total: int | None
    unit: str


class Reporter:
    """What a stage of the build calls; every method returns at once, and shows nothing unless a subclass does."""

    nested = False
    """Whether `workers` shows anything. False: skip collecting worker status."""

    def wants_rejects(self) -> bool:
        """Whether rejected rows beyond the first of each code are to be read and given to `event` now."""
        return False

    def start(self, stage: str, total: int | None, unit: str = "rows") -> None:
        """A stage begins; `total` units are ahead, or None where that is not known yet."""

    def advance(self, stage: str, n: int = 1, *, tokens: int = 0, rejects: int = 0) -> None:
        """`n` more units are done, which held `tokens` tokens and cost `rejects` rows."""

    def finish(self, stage: str) -> None:
        """The stage is over, whether or not its total was reached."""

    def workers(self, stage: str, statuses: Sequence[WorkerStatus]) -> None:
        """The status of each worker of a stage now, in place of those before."""

    def message(self, text: str) -> None:
        """A line for the person who watches; shown even when bars are not."""

    def show_reject(self, text: str) -> None:
        """As `message`, of a rejected row: one of the first of its code. Programs get each as an event instead."""
        self.message(text)

    def event(self, name: str, facts: Mapping[str, Any]) -> None:
        """Something that programs count or log, by a name of docs/observability.md; not shown to people."""


@dataclass(slots=True)
class Stage:
    """Counters of one stage, and the rates that follow from them."""

    name: str
    total: int | None
    unit: str
    done: int = 0
    tokens: int = 0
    rejects: int = 0
    before: int = 0
    """Of `done`, what a run before this one did: no part of this run's rate."""
    tokens_before: int = 0
    began: float = field(default_factory=time.monotonic)

    def resume(self, facts: Mapping[str, Any]) -> None:
        """Take what the event "resumed" says."""
        self.before, self.tokens_before = facts["done"], facts["tokens"]

    def add(self, n: int, tokens: int, rejects: int) -> None:
        """Count what `advance` brought."""
        self.done += n
        self.tokens += tokens
        self.rejects += rejects

    @property
    def seconds(self) -> float:
        """Time since the stage began; never 0."""
        return max(time.monotonic() - self.began, 1e-9)

    def facts(self) -> str:
        """Rates and rejects, such as "1.2k rows/s, 310k tokens/s, 3 rejected"."""
        parts = [f"{short((self.done - self.before) / self.seconds)} {self.unit}/s"]
        if self.tokens > self.tokens_before:
            parts.append(f"{short((self.tokens - self.tokens_before) / self.seconds)} tokens/s")
        if self.rejects:
            parts.append(f"{self.rejects:,} rejected")
        return ", ".join(parts)

    def remaining(self) -> str:
        """Time left at the rate so far, such as ", 12 s left", or "" where it cannot be known."""
        left = self.seconds_left()
        return "" if left is None else f", {duration(left)} left"

    def seconds_left(self) -> float | None:
        """Time left at the rate of this run so far; None where it cannot be known."""
        if not self.total or self.done <= self.before or self.done >= self.total:
            return None
        return self.seconds / (self.done - self.before) * (self.total - self.done)


def short(number: float) -> str:
    """A number in four characters or so: 7.3, 120, 1.2k, 310k, 4.5M."""
    for size, mark in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            scaled = number / size
            return f"{scaled:.0f}{mark}" if scaled >= 100 else f"{scaled:.1f}{mark}"
    return f"{number:.0f}" if number >= 100 else f"{number:.1f}"


def duration(seconds: float) -> str:
    """A time as people read it: 0.4 s, 12 s, 3:07 min, 1:02:09 h."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02} h" if hours else f"{minutes}:{rest:02} min"


def size(count: int) -> str:
    """Bytes as people read them: 512 B, 3.1 MiB."""
    amount = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} TiB"


class QuietReporter(Reporter):
    """Messages only."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream or sys.stderr

    def message(self, text: str) -> None:
        """Print the line."""
        print(printable(text), file=self.stream, flush=True)


class PlainReporter(QuietReporter):
    """A line a stage every few seconds, for logs and pipes."""

    def __init__(self, stream: TextIO | None = None, interval: float = PLAIN_SECONDS) -> None:
        super().__init__(stream)
        self.interval = interval
        self.stages: dict[str, Stage] = {}
        self.shown: dict[str, float] = {}

    def start(self, stage: str, total: int | None, unit: str = "rows") -> None:
        """Open the stage; its first line comes after `interval` seconds."""
        self.stages[stage] = Stage(stage, total, unit)
        self.shown[stage] = time.monotonic()

    def advance(self, stage: str, n: int = 1, *, tokens: int = 0, rejects: int = 0) -> None:
        """Count, and print when the last line is old enough."""
        state = self.stages[stage]
        state.add(n, tokens, rejects)
        if time.monotonic() - self.shown[stage] >= self.interval:
            self.shown[stage] = time.monotonic()
            self.print_progress(state)

    def finish(self, stage: str) -> None:
        """Print the stage's last line."""
        if (state := self.stages.pop(stage, None)) is not None:
            self.print_finish(state)

    def event(self, name: str, facts: Mapping[str, Any]) -> None:
        """Learn what was done before."""
        if name == "resumed":
            self.stages[facts["stage"]].resume(facts)

    def print_progress(self, state: Stage) -> None:
        """Print a line of a stage under way."""
        total = f"/{state.total:,}" if state.total else ""
        self.message(f"{state.name}: {state.done:,}{total} {state.unit}, {state.facts()}{state.remaining()}")

    def print_finish(self, state: Stage) -> None:
        """Print the last line of a stage."""
        self.message(f"{state.name}: {state.done:,} {state.unit} in {duration(state.seconds)}, {state.facts()}")


class RichReporter(Reporter):
    """One bar a stage on a terminal, and below the stage under way a bar for each worker (the first `WORKERS`)."""

    nested = True

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        self.stages: dict[str, Stage] = {}
        self.tasks: dict[str, Any] = {}
        self.slots: list[Any] = []
        """Lines of the workers, used again from task to task so that they stand still."""
        self.console = Console(stderr=True, highlight=False)
        self.progress = Progress(
            TextColumn("{task.description:<11}", style="bold", markup=False),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TextColumn("{task.fields[unit]}", markup=False),
            TimeElapsedColumn(),
            TextColumn("{task.fields[facts]}", style="dim", markup=False),
            console=self.console,
        )
        self.progress.start()

    def start(self, stage: str, total: int | None, unit: str = "rows") -> None:
        """Show a new bar (one that pulses where there is no total)."""
        self.stages[stage] = Stage(stage, total, unit)
        self.tasks[stage] = self.progress.add_task(stage, total=total, unit=unit, facts="")

    def advance(self, stage: str, n: int = 1, *, tokens: int = 0, rejects: int = 0) -> None:
        """Move the bar."""
        state = self.stages[stage]
        state.add(n, tokens, rejects)
        self.progress.update(self.tasks[stage], completed=state.done, facts=state.facts() + state.remaining())

    def finish(self, stage: str) -> None:
        """Fill the bar and leave it standing; the lines of its workers go."""
        while self.slots:
            self.progress.remove_task(self.slots.pop())
        state = self.stages.pop(stage, None)
        if state is not None:
            self.progress.update(self.tasks[stage], total=state.done, completed=state.done, facts=state.facts())

    def workers(self, stage: str, statuses: Sequence[WorkerStatus]) -> None:
        """A line for each worker; those beyond `WORKERS` are only counted."""
        hidden = len(statuses) - WORKERS
        for index, status in enumerate(statuses[:WORKERS]):
            if index == len(self.slots):
                self.slots.append(self.progress.add_task("", total=None, unit="", facts=""))
            more = f", and {hidden} workers more" if index == WORKERS - 1 and hidden > 0 else ""
            self.progress.update(
                self.slots[index], description=printable(f"  {status.worker or 'here'}"), total=status.total,
                completed=status.done, unit=status.unit, facts=printable(status.task) + more, visible=True,
            )  # fmt: skip
        for slot in self.slots[len(statuses) :]:
            self.progress.update(slot, visible=False)

    def event(self, name: str, facts: Mapping[str, Any]) -> None:
        """Learn what was done before."""
        if name == "resumed":
            self.stages[facts["stage"]].resume(facts)

    def message(self, text: str) -> None:
        """Print the line above the bars."""
        self.console.print(printable(text), markup=False, soft_wrap=True)

    def stop(self) -> None:
        """Give the terminal back."""
        self.progress.stop()


@contextmanager
def reporter(*, quiet: bool = False) -> Iterator[Reporter]:
    """The reporter for this standard error, within a `with` block: bars on a terminal, else plain lines."""
    plain = os.environ.get(PLAIN) or os.environ.get("TERM") == "dumb" or not sys.stderr.isatty()
    if quiet or plain:
        yield QuietReporter() if quiet else PlainReporter()
        return
    bars = RichReporter()
    try:
        yield bars
    finally:
        bars.stop()
