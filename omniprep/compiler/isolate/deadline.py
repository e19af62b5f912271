"""A time limit around what decodes a row: a decoder that hangs ends its process, and the driver retries the task in an
isolated process.

Python cannot interrupt a C decoder, so the limit ends the process (exit status 1), never the row alone: on Ray the
driver sees a worker that died, with `--workers 0` the task's mark stays and the next run isolates it
(compiler/isolate/crashing_rows.py). Where the hung decoder holds the interpreter lock, faulthandler's own C thread
ends the process a little later. Off (`seconds` 0) outside the build's stages. Costs 40 µs a row with media.
"""

import faulthandler
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_seconds = 0.0
GRACE = 1.25
"""The second alarm goes off after this many times the limit."""


@contextmanager
def row_deadlines(seconds: float) -> Iterator[None]:
    """Let `row_deadline` work inside the block; 0 switches it off."""
    global _seconds
    before, _seconds = _seconds, seconds
    try:
        yield
    finally:
        _seconds = before


@contextmanager
def row_deadline(label: str) -> Iterator[None]:
    """End this process where the block takes longer than `row_deadlines` allows; standard error has `label`."""
    if not _seconds:
        yield
        return
    alarm = threading.Timer(_seconds, _end, (label, _seconds))
    alarm.daemon = True
    alarm.start()
    faulthandler.dump_traceback_later(_seconds * GRACE + 1, exit=True, file=sys.__stderr__ or 2)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        alarm.cancel()


def _end(label: str, seconds: float) -> None:
    advice = "The same command again rejects that row and goes on."
    os.write(2, f"Error: {label}: decoding did not end within {seconds:g} s. {advice}\n".encode())
    os._exit(1)
