"""What each worker is at, for bars that somebody watches: told by the task, shown by the driver, never waited for.

A task calls `tell` as often as it likes; in a process where nobody listens that costs a comparison. With `--workers 0`
it calls the reporter at once. On Ray it sends a small message, at most every `SECONDS`, to an actor that the driver
asks now and then; that actor exists only while bars are shown.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

SECONDS = 0.3


@dataclass(frozen=True, slots=True)
class Doing:
    """A task under way."""

    worker: str
    """Which worker, as people would tell it: a number, or a process and its machine."""
    task: str
    done: int
    total: int | None
    unit: str


Listener = Callable[[str, int, int | None, str], None]
Show = Callable[[Sequence[Doing]], None]
_listener: Listener | None = None


def tell(task: str, done: int, total: int | None, unit: str) -> None:
    """Say how far this process is with its task: `done` of `total` units."""
    if _listener is not None:
        _listener(task, done, total, unit)


@contextmanager
def heard_by(listener: Listener | None) -> Iterator[None]:
    """Let `tell` call the listener inside the block, at most every `SECONDS`."""
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


class Board:
    """The actor between Ray's workers and the driver: the last word of each task."""

    def __init__(self) -> None:
        self.entries: dict[int, tuple[str, str, int, int | None, str]] = {}

    def put(self, number: int, worker: str, task: str, done: int, total: int | None, unit: str) -> None:
        """What task `number` told."""
        self.entries[number] = (worker, task, done, total, unit)

    def get(self) -> dict[int, tuple[str, str, int, int | None, str]]:
        """The last word of every task so far."""
        return self.entries


class Watch:
    """The driver's side of the board: who is at what, with workers numbered as they appear."""

    def __init__(self, show: Show) -> None:
        """Start the actor; needs a Ray session."""
        import ray

        self.show, self.board = show, ray.remote(num_cpus=0)(Board).remote()
        self.numbers: dict[str, int] = {}
        self.asked: Any = None

    def look(self, under_way: set[int]) -> None:
        """Show what is known of the tasks under way; never waits: an answer is taken when it is there."""
        import ray

        if self.asked is None:
            self.asked = self.board.get.remote()
        ready, _ = ray.wait([self.asked], timeout=0)
        if not ready:
            return
        try:
            entries = ray.get(self.asked)
        except ray.exceptions.RayActorError:  # its node is gone; the build goes on without these bars
            entries = {}
        self.asked = None
        doing = [(self._number(entry[0]), entry) for number, entry in entries.items() if number in under_way]
        self.show([Doing(f"worker {n}", *entry[1:]) for n, entry in sorted(doing, key=lambda pair: pair[0])])

    def _number(self, worker: str) -> int:
        return self.numbers.setdefault(worker, len(self.numbers) + 1)

    def close(self) -> None:
        """End the actor."""
        import ray

        ray.kill(self.board)
        self.show([])


def ray_listener(board: Any, number: int) -> Listener | None:
    """In a worker: what sends the words of task `number` to the board (None: nobody listens)."""
    if board is None:
        return None
    import ray

    worker = ray.get_runtime_context().get_worker_id()
    return lambda task, done, total, unit: board.put.remote(number, worker, task, done, total, unit)
