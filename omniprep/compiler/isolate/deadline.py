"""A time limit around what decodes a row: a decoder that hangs ends its process, and the driver retries the task in an
isolated process.

Python cannot interrupt a C decoder, so the limit ends the process (exit status 1), never the row alone: on Ray the
driver sees a worker that died, with `--workers 0` the task's mark stays and the next run isolates it
(compiler/isolate/crashing_rows.py). Off (`seconds` 0) outside the build's stages.

One thread looks after all rows of a stage. Where the hung decoder holds the interpreter lock, that thread cannot run:
then faulthandler's own C thread ends the process a little later. To set that alarm and to cancel it starts and ends a
thread of C, so it is not done for each row: an alarm that is still young stays set for the rows that follow, and the
thread cancels it when no row is under way. A row costs 2 µs (140 where it had two threads of its own).
"""

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

GRACE = 1.25
"""The second alarm goes off after this many times the limit."""
_MOST_BETWEEN_LOOKS = 1.0
"""Seconds after which the thread looks at the row again; so much older than the row may its alarm be."""
_watch: "_Watch | None" = None


class _Watch:
    """The row that is under way, and who ends the process when it takes too long."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._between_looks = min(seconds / 10, _MOST_BETWEEN_LOOKS)
        self._lock = threading.Lock()  # between looking at the row and cancelling its alarm, no row may begin
        self._row: tuple[str, float] | None = None
        self._alarm_set: float | None = None
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._look, name="omniprep-deadline", daemon=True)
        self._thread.start()

    def begin(self, label: str) -> None:
        """A row begins."""
        now = time.monotonic()
        with self._lock:
            self._row = label, now
            if self._alarm_set is None or now - self._alarm_set > self._between_looks:
                wait = self._seconds * GRACE + 1 + self._between_looks
                faulthandler.dump_traceback_later(wait, exit=True, file=sys.__stderr__ or 2)
                self._alarm_set = now

    def end(self) -> None:
        """The row is done."""
        with self._lock:
            self._row = None

    def close(self) -> None:
        """No more rows."""
        self._closed.set()
        self._thread.join()
        self.pause()

    def pause(self) -> None:
        """No row is under way here, and another may take the alarm of C, of which a process has one."""
        with self._lock:
            self._cancel_alarm()

    def _look(self) -> None:
        while not self._closed.wait(self._between_looks):
            with self._lock:
                row = self._row
                if row is None:
                    self._cancel_alarm()
                elif time.monotonic() - row[1] > self._seconds:  # with the lock held: it cannot end meanwhile
                    _end(row[0], self._seconds)

    def _cancel_alarm(self) -> None:
        """Cancel the alarm of C, if one is set; with the lock held."""
        if self._alarm_set is not None:
            faulthandler.cancel_dump_traceback_later()
            self._alarm_set = None


@contextmanager
def row_deadlines(seconds: float) -> Iterator[None]:
    """Let `row_deadline` work inside the block; 0 switches it off."""
    global _watch
    before = _watch
    if before is not None:
        before.pause()
    _watch = _Watch(seconds) if seconds else None
    try:
        yield
    finally:
        if _watch is not None:
            _watch.close()
        _watch = before


@contextmanager
def row_deadline(label: str) -> Iterator[None]:
    """End this process where the block takes longer than `row_deadlines` allows; standard error has `label`."""
    if _watch is None:
        yield
        return
    _watch.begin(label)
    try:
        yield
    finally:
        _watch.end()


def _end(label: str, seconds: float) -> None:
    advice = "The same command again rejects that row and goes on."
    os.write(2, f"Error: {label}: decoding did not end within {seconds:g} s. {advice}\n".encode())
    os._exit(1)
