"""Counts the errors that FFmpeg reports without failing, such as references that a damaged stream lacks."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock

_lock = Lock()
_users = 0
_level_before: int | None = None


@contextmanager
def counted_errors() -> Iterator[Callable[[], int]]:
    """A function that says how many errors FFmpeg reported in this process, while the block is open.

    Errors of other threads count too, so a caller that looks for a change may see one where there is none of its own.
    Reports are counted inside the block only: elsewhere they would get into the messages of PyAV's exceptions.
    """
    import av.logging

    global _users, _level_before
    with _lock:
        if not _users:
            _level_before = av.logging.get_level()
        _users += 1
        av.logging.set_level(av.logging.PANIC)  # which counts errors and shows nothing
    try:
        yield lambda: (av.logging.get_last_error() or (0,))[0]
    finally:
        with _lock:
            _users -= 1
            if not _users:
                av.logging.set_level(_level_before)
