"""Totals of a run by stage, from what the driver reports: the log, the metrics and the progress file all count here."""

import threading
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from omniprep.progress import Reporter, Stage, WorkerStatus

LAST_REJECTS = 20
"""Rejected rows that are kept: a screenful."""


@dataclass(slots=True)
class StageTotals(Stage):
    """A stage with what its finished tasks hold."""

    rows: int = 0
    rows_before: int = 0
    bytes: int = 0
    bytes_before: int = 0
    running: bool = True
    seconds_taken: float | None = None
    """Of a stage that is over."""

    def facts(self) -> dict[str, Any]:  # type: ignore[override]  # of people's stages it is a text
        """The stage as plain values, with the rates of this run."""
        seconds = self.seconds if self.seconds_taken is None else self.seconds_taken
        left = self.seconds_left() if self.running else None
        return {
            "stage": self.name,
            "unit": self.unit,
            "total": self.total,
            "done": self.done,
            "done_before": self.before,
            "rows": self.rows,
            "tokens": self.tokens,
            "bytes": self.bytes,
            "rejects": self.rejects,
            "seconds": round(seconds, 3),
            "rate": round((self.done - self.before) / seconds, 3),
            "rows_per_second": round((self.rows - self.rows_before) / seconds, 3),
            "tokens_per_second": round((self.tokens - self.tokens_before) / seconds, 3),
            "eta_seconds": None if left is None else round(left, 1),
        }


class Totals(Reporter):
    """Counts what is reported; other threads may read it under `lock`.

    Attributes:
        stages: By name, those that are over too.
        codes: Rejected rows by stage and code.
        rejects: The last rejected rows.
        statuses: The last status of the workers.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.stages: dict[str, StageTotals] = {}
        self.codes: dict[str, Counter[str]] = {}
        self.rejects: deque[dict[str, Any]] = deque(maxlen=LAST_REJECTS)
        self.statuses: Sequence[WorkerStatus] = ()

    def start(self, stage: str, total: int | None, unit: str = "rows") -> None:
        """A stage begins, with nothing done."""
        with self.lock:
            self.stages[stage] = StageTotals(stage, total, unit)
            self.codes[stage] = Counter()

    def advance(self, stage: str, n: int = 1, *, tokens: int = 0, rejects: int = 0) -> None:
        """Count."""
        with self.lock:
            self.stages[stage].add(n, tokens, rejects)

    def finish(self, stage: str) -> None:
        """The stage is over; its totals stay."""
        with self.lock:
            if (state := self.stages.get(stage)) is not None and state.running:
                state.running, state.seconds_taken = False, state.seconds
            self.statuses = ()

    def workers(self, stage: str, statuses: Sequence[WorkerStatus]) -> None:
        """Keep the status of the workers."""
        with self.lock:
            self.statuses = tuple(statuses)

    def event(self, name: str, facts: Mapping[str, Any]) -> None:
        """Count what a finished task holds, and keep rejects."""
        with self.lock:
            if name == "task":
                state = self.stages[facts["stage"]]
                state.rows += facts["rows"]
                state.bytes += facts["bytes"]
                self.codes[facts["stage"]].update(facts["rejects_by_code"])
            elif name == "rows_rejected":
                self.codes[facts["stage"]].update(facts["rejects_by_code"])
            elif name == "resumed":
                state = self.stages[facts["stage"]]
                state.resume(facts)
                state.rows_before, state.bytes_before = state.rows, state.bytes
            elif name == "reject":
                self.rejects.append(dict(facts))

    def rejects_by_code(self) -> dict[str, int]:
        """Rejected rows by code, of all stages."""
        with self.lock:
            return dict(sorted(sum(self.codes.values(), Counter[str]()).items()))
