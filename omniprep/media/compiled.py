"""Calling what numba compiles at its first call and keeps on the disk."""

from collections.abc import Callable
from typing import Any

_FUNCTIONS = 50
"""More than a compiled function calls of others, itself included."""


def call_compiled(function: Callable[..., Any], *arguments: Any) -> None:
    """Call a compiled function, also where its code cannot be kept (a full disk, a home above its quota).

    numba raises OSError then, before the function runs, but has the code in memory: each further call comes a function
    further, and the next process compiles again.
    """
    for _ in range(_FUNCTIONS):
        try:
            function(*arguments)
        except OSError as error:
            unkept = error
        else:
            return
    raise unkept
