"""The one loop that repeats what may fail in passing: calls of stores, requests of the web and of the Hub."""

import random
import time
from collections.abc import Callable
from itertools import count
from typing import TypeVar

T = TypeVar("T")


def jittered(seconds: float) -> float:
    """A pause a quarter shorter or longer at random, so that workers that failed together do not return together."""
    return seconds * random.uniform(0.75, 1.25)


def retry(call: Callable[[], T], pause_after: Callable[[Exception, int], float | None]) -> T:
    """What a call returns, repeated until it does; repeating it must do no harm.

    `pause_after` an exception, and so many calls, gives the seconds before the next one; None raises the exception.
    """
    for attempts in count(1):
        try:
            return call()
        except Exception as error:
            pause = pause_after(error, attempts)
            if pause is None:
                raise
        time.sleep(pause)
    raise AssertionError("count() does not end")
