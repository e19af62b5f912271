"""Progress on a terminal: one line a stage, and below the stage under way a line for each worker.

Lines are laid out here and not by rich's columns, which cut numbers where a terminal is narrow: what has no room is
left out whole, the least important first, so that a number that is shown is the number. They are laid out at each
refresh, so that times run on while nothing is reported.
"""

import itertools
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from omniprep.printable import counted, printable
from omniprep.progress import PLAIN, PlainReporter, QuietReporter, Reporter, Stage, WorkerStatus, duration

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.text import Text

WORKERS = 8
"""Most workers that are shown."""
NAME_WIDTH = 11
FULL = "━"
REFRESHES = 4
"""A second: times are shown to a tenth of a second at most, and each refresh writes all lines again."""
_BAR_WIDTHS = ((100, 28), (60, 12), (0, 0))
"""Least columns of a terminal, and the width of a bar there: with 12, a count of nine digits and a time fit into 60."""


class RichReporter(Reporter):
    """Bars on a terminal."""

    nested = True

    def __init__(self) -> None:
        from rich.console import Console
        from rich.live import Live

        self.stages: dict[str, Stage] = {}
        """All stages so far, by name; those that ended stay on the screen."""
        self.statuses: list[WorkerStatus] = []
        self.reporting = ""
        """The stage whose workers `statuses` are of."""
        self.console = Console(stderr=True, highlight=False)
        self.full = "#" if self.console.options.ascii_only else FULL
        self.live = Live(self, console=self.console, refresh_per_second=REFRESHES)
        self.live.start()

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> "RenderResult":
        """Lay out all lines; rich calls it at each refresh."""
        yield from self.lines(options.max_width)

    def lines(self, width: int) -> "list[Text]":
        """What is shown on a terminal of this width."""
        shown = []
        for stage in list(self.stages.values()):  # a copy: rich refreshes from a thread of its own
            shown.append(stage_line(stage, width, self.full))
            if stage.ended is None and stage.name == self.reporting:
                statuses = self.statuses
                shown += [worker_line(status, width, self.full) for status in statuses[:WORKERS]]
                if len(statuses) > WORKERS:
                    more = counted(len(statuses) - WORKERS, "worker")
                    shown.append(_fitted([(f"  and {more} more", "dim", 0)], width))
        return shown

    def start(self, stage: str, total: int | None, unit: str = "rows") -> None:
        """Show a new line."""
        self.statuses = []
        self.stages.pop(stage, None)  # of an earlier dataset of the same command: the new one comes last
        self.stages[stage] = Stage(stage, total, unit)

    def advance(self, stage: str, n: int = 1, *, tokens: int = 0, rejects: int = 0) -> None:
        """Move the bar."""
        self.stages[stage].add(n, tokens, rejects)

    def finish(self, stage: str) -> None:
        """Fill the bar and leave it standing; the lines of its workers go."""
        self.statuses = []
        if (state := self.stages.get(stage)) is not None:
            state.end()

    def workers(self, stage: str, statuses: Sequence[WorkerStatus]) -> None:
        """A line for each worker; those beyond `WORKERS` are only counted."""
        self.statuses, self.reporting = list(statuses), stage
        if (state := self.stages.get(stage)) is not None:
            state.take_status(statuses)

    def event(self, name: str, facts: Mapping[str, Any]) -> None:
        """Learn what was done before."""
        if name == "resumed":
            self.stages[facts["stage"]].resume(facts)

    def message(self, text: str) -> None:
        """Print the line above the bars."""
        self.console.print(printable(text), markup=False, soft_wrap=True)

    def refresh(self) -> None:
        """Show the lines as they are now."""
        self.live.refresh()

    def stop(self) -> None:
        """Give the terminal back."""
        self.live.stop()


def stage_line(stage: Stage, width: int, full: str = FULL) -> "Text":
    """A stage, such as "encode ━━━━━━ 12/40 shards, 35 s left, 0.8 shards/s"; numbers are whole or absent."""
    done = stage.done + stage.under_way
    share = None if stage.total is None else min(done / max(stage.total, 1), 1.0)
    remaining = stage.remaining().removeprefix(", ")
    spent = f"in {duration(stage.seconds)}" if stage.ended is not None else remaining or f"for {_clock(stage.seconds)}"
    rate, *token_rate = stage.rates() if stage.done > stage.before else [""]
    bar_width = next(size for columns, size in _BAR_WIDTHS if width >= columns)
    pieces = [
        (f"{printable(stage.name):<{NAME_WIDTH if bar_width else 0}} ", "bold", 0),
        *_bar(1.0 if stage.ended is not None else share, bar_width, full),
        (printable(stage.count()), "", 0),
        (f"{' ' if stage.ended is not None else ', '}{spent}", "", 1),
        (f", {printable(rate)}" if rate else "", "dim", 3),
        *((f", {text}", "dim", 4) for text in token_rate),
        (f", {stage.rejects:,} rejected" if stage.rejects else "", "dim", 2),
    ]
    return _fitted(pieces, width)


def worker_line(status: WorkerStatus, width: int, full: str = FULL) -> "Text":
    """A worker, such as "  worker 3 ━━━━ 12/40 bins, shard 7"."""
    bar_width = next(size for columns, size in _BAR_WIDTHS if width >= columns)
    total = "" if status.total is None else f"/{status.total:,}"
    share = None if status.total is None else min(status.done / max(status.total, 1), 1.0)
    pieces = [
        (f"  {printable(status.worker or 'here'):<{NAME_WIDTH - 2 if bar_width else 0}} ", "bold", 0),
        *_bar(share, bar_width, full),
        (printable(f"{status.done:,}{total} {status.unit}"), "", 1),
        (f", {printable(status.task)}", "dim", 2),
    ]
    return _fitted(pieces, width)


def _clock(seconds: float) -> str:
    """A time that runs on, such as "12 s": without the tenths, which would be all that moves."""
    return duration(seconds) if seconds >= 10 else f"{seconds:.0f} s"


def _bar(share: float | None, width: int, full: str) -> list[tuple[str, str, int]]:
    """A bar that is filled to a share of its width; None: a part of it that moves, since the total is not known."""
    if not width:
        return []
    if share is None:
        start = int(time.monotonic() * 6) % width
        cells = ["bright_black" if (cell - start) % width > width // 4 else "magenta" for cell in range(width)]
    else:
        filled = int(share * width + 1e-9)
        cells = ["green" if share >= 1.0 else "magenta"] * filled + ["bright_black"] * (width - filled)
    # Where there are no colors, what is left of the bar is another letter.
    runs = [(color, len(list(cells_of))) for color, cells_of in itertools.groupby(cells)]
    return [*((("-" if color == "bright_black" else full) * count, color, 0) for color, count in runs), (" ", "", 0)]


def _fitted(pieces: Sequence[tuple[str, str, int]], width: int) -> "Text":
    """A line of pieces (text, style, rank) that has room in a width; of rank 0 all stay, of the others the lowest."""
    from rich.cells import cell_len
    from rich.text import Text

    room = width - sum(cell_len(text) for text, _, rank in pieces if not rank)
    chosen = set()
    for _, number in sorted((rank, number) for number, (_, _, rank) in enumerate(pieces) if rank):
        if (cells := cell_len(pieces[number][0])) > room:
            break
        chosen.add(number)
        room -= cells
    kept = [(text, style) for number, (text, style, rank) in enumerate(pieces) if not rank or number in chosen]
    return Text.assemble(*kept, no_wrap=True, overflow="ellipsis")


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
