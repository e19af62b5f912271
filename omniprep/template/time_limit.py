"""A time limit for code that a stranger wrote and that runs in this process: a checkpoint's chat template, when it is
first looked at.

Rows have a limit of their own (compiler/isolate/deadline.py), which ends the process so that the driver goes on without
the row. Here there is no row to leave out, so the limit becomes an exception.
"""

import ctypes
import faulthandler
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_GRACE = 1.25
"""After this many times the limit, and a second, code that never comes back to the interpreter (a power of huge
numbers) ends the process."""


class _LateError(BaseException):
    """Raised in the thread that is late. No Exception, so that what the late code catches does not take it."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise TimeoutError where the block takes longer.

    Args:
        seconds: The limit.

    Raises:
        TimeoutError: The block was stopped.
    """
    thread, lock, over = threading.get_ident(), threading.Lock(), False

    def stop() -> None:
        with lock:
            if not over:
                _set_exception(thread, _LateError)

    timer = threading.Timer(seconds, stop)
    timer.daemon = True
    try:
        timer.start()
        # It replaces the alarm of a row that is under way, which is set again within a second (isolate/deadline.py).
        faulthandler.dump_traceback_later(seconds * _GRACE + 1, exit=True, file=sys.__stderr__ or 2)
        try:
            yield
        finally:
            with lock:
                over = True
                _set_exception(thread, None)  # one that is on its way would meet the code behind the block
    except _LateError:  # it comes once: what follows is not interrupted
        raise TimeoutError(f"did not end within {seconds:g} s") from None
    finally:
        faulthandler.cancel_dump_traceback_later()
        timer.cancel()


def _set_exception(thread: int, error: type[BaseException] | None) -> None:
    argument = ctypes.py_object(error) if error is not None else None
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), argument)
