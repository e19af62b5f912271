"""Per-task progress, for bars that somebody watches; reporting never blocks.

A task calls `report_progress` as often as it likes; in a process where nobody listens that costs a comparison. With
`--workers 0` it calls the reporter at once. On Ray it sends a small message, at most every `SECONDS`, to an actor that
the driver polls; that actor exists only while bars are shown.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from omniprep.progress import WorkerStatus

SECONDS = 0.3

Listener = Callable[[str, int, int | None, str], None]
Show = Callable[[Sequence[WorkerStatus]], None]
_listener: Listener | None = None


def report_progress(task: str, done: int, total: int | None, unit: str) -> None:
    """Say how far this process is with its task: `done` of `total` units."""
    if _listener is not None:
        _listener(task, done, total, unit)


@contextmanager
def progress_listener(listener: Listener | None) -> Iterator[None]:
    """Let `report_progress` call the listener inside the block, at most every `SECONDS`."""
    global _listener
    last = 0.0

    def at_intervals(task: str, done: int, total: int | None, unit: str) -> None:
        nonlocal last
        now = time.monotonic()
        if listener is not None and now - last >= SECONDS:
            last = now
            listener(task, done, total, unit)

    before, _listener = _listener, None if listener is None else at_intervals
    try:
        yield
    finally:
        _listener = before


class ProgressActor:
    """The actor between Ray's workers and the driver: the last report of each task."""

    def __init__(self) -> None:
        self.reports: dict[int, WorkerStatus] = {}

    def put(self, number: int, report: WorkerStatus) -> None:
        """Take a report of task `number`."""
        self.reports[number] = report

    def get(self) -> dict[int, WorkerStatus]:
        """The last report of every task so far."""
        return self.reports


class ProgressPoller:
    """The driver's side of the actor: which worker is how far, with workers numbered as they appear."""

    def __init__(self, show: Show) -> None:
        """Start the actor; needs a Ray session."""
        import ray

        self.show, self.actor = show, ray.remote(num_cpus=0)(ProgressActor).remote()
        self.worker_numbers: dict[str, int] = {}
        self.request: Any = None

    def poll(self, running: set[int]) -> None:
        """Show the last reports of the running tasks; never waits: an answer is taken when it is there."""
        import ray

        if self.request is None:
            self.request = self.actor.get.remote()
        ready, _ = ray.wait([self.request], timeout=0)
        if not ready:
            return
        try:
            reports = ray.get(self.request)
        except ray.exceptions.RayActorError:  # its node is gone; the build goes on without these bars
            reports = {}
        self.request = None
        by_worker = sorted(
            (self.worker_numbers.setdefault(report.worker, len(self.worker_numbers) + 1), number)
            for number, report in reports.items()
            if number in running
        )
        self.show([reports[number]._replace(worker=f"worker {worker}") for worker, number in by_worker])

    def close(self) -> None:
        """End the actor."""
        import ray

        ray.kill(self.actor)
        self.show([])


def ray_listener(actor: Any, number: int) -> Listener | None:
    """In a worker: what sends the reports of task `number` to the actor (None: nobody listens)."""
    if actor is None:
        return None
    import ray

    worker = ray.get_runtime_context().get_worker_id()
    return lambda *report: actor.put.remote(number, WorkerStatus(worker, *report))
