"""The right to change a folder, asked for at every change of it.

Whoever works in a folder (omniprep/build/fence.py) opens a gate for a block of code; `omniprep.io` then sends every
file that appears in the folder or goes from it through that gate. So no write of a build can forget to ask.
"""

import errno
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any, BinaryIO, Protocol

from omniprep import conditional

__all__ = ["Gate", "changes_through", "gate_of", "remove_object", "swap_object", "write_object"]

TRIES = 20
"""How often an object is looked at again that somebody else changes between look and write."""

Patiently = Callable[[str, Callable[[], Any]], Any]
"""`omniprep.io`'s way to call a store: (uri, call), again where the fault may pass."""


class Gate(Protocol):
    """Says whether a folder may still be changed."""

    @property
    def staging(self) -> str:
        """The local folder in which files lie before they get their names, and after they lost them. It is removed
        when the right to change the folder is lost, and no rename from or into it can work after that.
        """

    def check(self) -> None:
        """Raise where the right is lost.

        Raises:
            OmniprepError: It is.
        """


_gate: ContextVar[tuple[str, Gate] | None] = ContextVar("omniprep_gate", default=None)


@contextmanager
def changes_through(prefix: str, gate: Gate | None) -> Iterator[None]:
    """Within the block, in this thread, changes of all names that begin like this ask the gate; None: as outside."""
    token = _gate.set((prefix, gate) if gate else _gate.get())
    try:
        yield
    finally:
        _gate.reset(token)


def gate_of(name: str) -> Gate | None:
    """The gate that a change of this name has to ask."""
    entry = _gate.get()
    return entry[1] if entry is not None and name.startswith(entry[0]) else None


def write_object(
    uri: str, fs: Any, path: str, spool: BinaryIO, length: int, gate: Gate | None, patiently: Patiently
) -> None:
    """Write an object of a store; through a gate in such a way that nobody else's change is lost: what is there is
    looked at, then the gate is asked, then the store takes the object if there is still what was looked at.

    Raises:
        OmniprepError: The gate says no.
        OSError: The store does not take it, or somebody else changes the object all the time.
    """
    if gate is None:
        patiently(uri, lambda: conditional.replace(fs, path, spool, length, ""))
        return
    create = partial(conditional.create, fs, path, spool, length)
    attempt = create
    gate.check()
    for _ in range(TRIES):
        try:
            patiently(uri, attempt)
        except conditional.RefusedError:
            mark = patiently(uri, lambda: conditional.mark_of(fs, path))
            gate.check()
            attempt = create if mark is None else partial(conditional.replace, fs, path, spool, length, mark)
            continue
        return
    raise OSError(errno.EBUSY, "is changed by somebody else all the time", uri)


def remove_object(uri: str, fs: Any, path: str, gate: Gate, patiently: Patiently) -> None:
    """Remove an object through a gate, as `write_object` writes one; nothing to do where it is absent."""
    for _ in range(TRIES):
        mark = patiently(uri, lambda: conditional.mark_of(fs, path))
        gate.check()
        if mark is None:
            return
        try:
            patiently(uri, partial(conditional.remove, fs, path, mark))
        except FileNotFoundError:
            return
        except conditional.RefusedError:
            continue
        return
    raise OSError(errno.EBUSY, "is changed by somebody else all the time", uri)


def swap_object(
    uri: str, fs: Any, path: str, data: bytes, seen: Callable[[bytes], bool] | None, patiently: Patiently
) -> bool:
    """Write an object where there is none (`seen` is None), or in place of one whose content `seen` says yes to.

    Returns:
        Whether it was so, and it is written.
    """
    spool = io.BytesIO(data)
    try:
        if seen is None:
            patiently(uri, lambda: conditional.create(fs, path, spool, len(data)))
            return True
        mark = patiently(uri, lambda: conditional.mark_of(fs, path))
        if mark is None or not seen(patiently(uri, lambda: fs.cat_file(path))):
            return False
        patiently(uri, lambda: conditional.replace(fs, path, spool, len(data), mark))
    except conditional.RefusedError:
        return False
    return True
