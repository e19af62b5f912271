"""Progress of long work: a small base class, and ways of showing it to people on standard error.

A stage has a name, a unit and perhaps a total; the worker functions know nothing of it, the driver that collects their
results calls `advance`. A terminal gets bars (omniprep/bars.py), anything else gets a plain line every few seconds,
`--quiet` gets nothing but messages. Results never go here: they belong to standard output. What programs read of a run
(JSON lines, metrics) is in omniprep/observe/.
"""

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TextIO

from omniprep.printable import printable

PLAIN_SECONDS = 5.0
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
    under_way: float = 0.0
    """What workers have done of units that are not `done` yet, such as 1.5 of three shards."""
    began: float = field(default_factory=time.monotonic)
    moved: float = 0.0
    """When `done` or `under_way` last grew; 0: not yet."""
    ended: float | None = None

    def resume(self, facts: Mapping[str, Any]) -> None:
        """Take what the event "resumed" says."""
        self.before, self.tokens_before = facts["done"], facts["tokens"]

    def add(self, n: int, tokens: int, rejects: int) -> None:
        """Count what `advance` brought."""
        self.done += n
        self.tokens += tokens
        self.rejects += rejects
        self.moved = time.monotonic()

    def take_status(self, statuses: Sequence[WorkerStatus]) -> None:
        """Count the parts of unfinished units, where the workers' tasks are the units of this stage."""
        under_way = sum(min(status.done / status.total, 1.0) for status in statuses if status.total)
        if under_way != self.under_way:
            self.under_way, self.moved = under_way, time.monotonic()

    def end(self) -> None:
        """The stage is over: its time stands still."""
        self.ended, self.under_way = time.monotonic(), 0.0

    @property
    def seconds(self) -> float:
        """Time since the stage began, until it ended; never 0."""
        return max((self.ended or time.monotonic()) - self.began, 1e-9)

    def rates(self) -> list[str]:
        """Rates, such as ["1.2k rows/s", "310k tokens/s"]."""
        rate = (self.done - self.before) / self.seconds
        slow = 0 < rate < 0.05  # which would read 0.0
        parts = [f"{short(rate * 60)} {self.unit}/min" if slow else f"{short(rate)} {self.unit}/s"]
        if self.tokens > self.tokens_before:
            parts.append(f"{short((self.tokens - self.tokens_before) / self.seconds)} tokens/s")
        return parts

    def facts(self) -> str:
        """Rates and rejects, such as "1.2k rows/s, 310k tokens/s, 3 rejected"."""
        return ", ".join([*self.rates(), *((f"{self.rejects:,} rejected",) if self.rejects else ())])

    def count(self) -> str:
        """How far it is, such as "12/40 shards" or "1 row"."""
        if self.total is not None and self.ended is None:
            return f"{self.done:,}/{self.total:,} {self.unit}"
        return f"{self.done:,} {self.unit.removesuffix('s') if self.done == 1 else self.unit}"

    def remaining(self) -> str:
        """Time left at the rate so far, such as ", 12 s left", or "" where it cannot be known."""
        left = self.seconds_left()
        return "" if left is None else f", {duration(left)} left"

    def seconds_left(self) -> float | None:
        """Time left at the rate of this run so far; None where it cannot be known.

        It runs down between two reports; when the next is overdue, the rate is what it has become since.
        """
        progress = self.done - self.before + self.under_way
        if not self.total or progress <= 0 or self.done >= self.total or self.ended is not None:
            return None
        units = max(self.total - self.done - self.under_way, 0.0)
        moved = self.moved or time.monotonic()
        left = (moved - self.began) / progress * units - (time.monotonic() - moved)
        return left if left > 0 else self.seconds / progress * units


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
        self.message(f"{state.name}: {state.count()}, {state.facts()}{state.remaining()}")

    def print_finish(self, state: Stage) -> None:
        """Print the last line of a stage."""
        state.end()
        self.message(f"{state.name}: {state.count()} in {duration(state.seconds)}, {state.facts()}")
