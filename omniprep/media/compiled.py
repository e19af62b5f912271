"""Functions that numba compiles: called so that nobody waits for the compiler, and whether or not their code is kept.

Compiling all of them takes 14 s once on a machine; then numba loads them from its cache (`__pycache__` beside the
source, else the user's cache folder, or NUMBA_CACHE_DIR; its names hold source, signature and processor). So a process
of its own compiles, while the one that asks goes on with the libraries that give the same bits (`CompiledElsewhere`).
"""

import atexit
import hashlib
import os
import platform
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from omniprep.child_process import start_in_child
from omniprep.user_cache import cache_folder

_FUNCTIONS = 50
"""More than a compiled function calls of others, itself included."""
_FOLDER, _LOCK = "compiled", "lock"
UNKEPT_AFTER = 4096
"""Pictures of a process after which it compiles by itself, where the other one could not: the libraries have taken 25
to 120 s longer for them by then, and compiling takes 14."""

_is_unkept = False
"""Whether this process compiled code that could not be kept."""


def call_compiled(function: Callable[..., Any], *arguments: Any) -> None:
    """Call a compiled function, also where its code cannot be kept (a full disk, a home above its quota).

    numba raises OSError then, before the function runs, but has the code in memory: each further call comes a function
    further, and the next process compiles again.
    """
    global _is_unkept
    for _ in range(_FUNCTIONS):
        try:
            function(*arguments)
        except OSError as error:
            _is_unkept, unkept = True, error
        else:
            return
    raise unkept


class CompiledElsewhere:
    """Whether compiled functions can be loaded without a wait: a child process calls all of them once a machine.

    What it compiled is marked by an empty file in the user's cache folder, so that no later process starts one.
    """

    def __init__(self, function: str, *sources: Path) -> None:
        """Take "module:function", which calls them, for the child; and the files that they are compiled from."""
        self._function, self._sources = function, sources
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        self._owner = 0
        self._is_ready = False

    def is_ready(self, pictures: int) -> bool:
        """Whether to use them now; the first call starts the child.

        Args:
            pictures: Those that this process did without them.
        """
        if self._is_ready:
            return True
        if not self._lock.acquire(blocking=False):  # another thread looks
            return False
        try:
            self._is_ready = self.mark.exists() or self._has_compiled(pictures)
        finally:
            self._lock.release()
        return self._is_ready

    def _has_compiled(self, pictures: int) -> bool:
        if self._child is None or self._owner != os.getpid():  # a forked process cannot wait for another's child
            if not _versions() or _is_compiling():
                return False
            self._child, self._owner = start_in_child(self._function, {}), os.getpid()
            atexit.register(self._leave)
        # Where there is no child, or it failed, the functions may still be usable, for the price of a wait.
        status = 1 if self._child is None else self._child.poll()
        return status == 0 or (status is not None and pictures >= UNKEPT_AFTER)

    def _leave(self) -> None:
        """The child goes on when this process ends, for the next one; Python would warn of it."""
        if self._child is not None and self._owner == os.getpid() and self._child.poll() is None:
            self._child.returncode = 0

    @contextmanager
    def compiling(self) -> Iterator[None]:
        """A block of the child, which no other process of this user runs at the same time; it ends with the mark."""
        try:
            cache_folder(_FOLDER).mkdir(parents=True, exist_ok=True)
        except OSError:  # each process compiles for itself
            yield
            return
        with _lock(wait=True):
            yield
            if not _is_unkept:
                self.mark.touch()

    @cached_property
    def mark(self) -> Path:
        """The file that says so. Its name is a hash of what numba's own cache goes by, and of this machine, since a
        home may be shared and that cache not.
        """
        stamps = [
            (str(path), path.stat().st_mtime_ns, path.stat().st_size) for path in self._sources if path.exists()
        ]  # none of them do in a zip file
        settings = sorted((name, value) for name, value in os.environ.items() if name.startswith("NUMBA_"))
        content = [self._function, stamps, settings, _versions(), sys.version, platform.node(), _processor()]
        return cache_folder(_FOLDER) / hashlib.sha256(repr(content).encode()).hexdigest()


def _versions() -> list[str]:
    """Of the compiler; empty where it is not installed."""
    try:
        return [version(name) for name in ("numba", "llvmlite")]
    except PackageNotFoundError:
        return []


def _processor() -> str:
    """What tells kinds of processor apart: name and features of the first one."""
    try:
        facts = Path("/proc/cpuinfo").read_text().partition("\n\n")[0].splitlines()
    except OSError:  # not Linux
        return f"{platform.machine()} {platform.processor()}"
    return "\n".join(line for line in facts if line.startswith(("model name", "flags", "Features", "CPU part")))


@contextmanager
def _lock(*, wait: bool) -> Iterator[bool]:
    """Holds the lock of the process that compiles; gives whether another process has it (never, where it is awaited).

    Where there are no such locks (some network drives, Windows), it is as if nobody had it.
    """
    with ExitStack() as stack:
        is_taken = False
        try:
            import fcntl

            file = stack.enter_context((cache_folder(_FOLDER) / _LOCK).open("a"))
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            is_taken = True
        except (ImportError, OSError):
            pass
        yield is_taken


def _is_compiling() -> bool:
    """Whether another process of this user compiles at this moment."""
    with _lock(wait=False) as is_taken:
        return is_taken


def answer_of_compiler() -> bytes | None:
    """What a child of `CompiledElsewhere` answers in the end: None where the code was not kept for others."""
    return None if _is_unkept else b"compiled"
