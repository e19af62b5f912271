"""The right to change a folder, asked for at every change of it.

Who works in a folder (compiler/output/fence.py) opens a gate for a block of code; `omniprep.io.files` then sends every
file that appears in the folder or goes from it through that gate. So no write of a build can forget to ask.
"""

import errno
import io
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any, BinaryIO, Protocol, cast

from omniprep.io import conditional
from omniprep.io.stores import call_store, is_local, join, local_path

TRIES = 20
"""How often an object is looked at again that somebody else changes between look and write."""


class Gate(Protocol):
    """Says whether a folder may still be changed."""

    @property
    def staging(self) -> str:
        """The local folder in which files lie before they get their names, and after they lost them. It is removed
        when the right to change the folder is lost, and no rename from or into it can work after that.
        """

    def check(self) -> None:
        """Raise an OmniprepError where the right is lost."""


_gate: ContextVar[tuple[str, Gate] | None] = ContextVar("omniprep_gate", default=None)


@contextmanager
def changes_through(folder: str, gate: Gate | None) -> Iterator[None]:
    """Within the block, in this thread, every change of a file in the folder asks the gate (None: as outside)."""
    token = _gate.set((join(folder, ""), gate) if gate else _gate.get())
    try:
        yield
    finally:
        _gate.reset(token)


def gate_of(uri: str) -> Gate | None:
    """The gate that a change of this file has to ask."""
    entry = _gate.get()
    name = local_path(uri) if is_local(uri) else uri
    return entry[1] if entry is not None and name.startswith(entry[0]) else None


@contextmanager
def spooled(uri: str, fs: Any, path: str, gate: Gate | None) -> Iterator[BinaryIO]:
    """A local file whose content becomes an object of a store when the block ends well: a block that fails uploads
    nothing, on any store, multipart or not.

    Raises:
        OmniprepError: The gate says no.
        OSError: The store does not take it, somebody else changes the object all the time, or the local disk is full.
    """
    with tempfile.TemporaryFile(prefix="omniprep-") as file:
        spool = cast(BinaryIO, file)
        try:
            yield spool
        except OSError as error:
            if error.filename is None and error.errno in (errno.ENOSPC, errno.EDQUOT):  # of this disk, not of the store
                reason = f"{error.strerror}; what is uploaded is first written to"
                raise OSError(error.errno, reason, tempfile.gettempdir()) from error
            raise
        _write_object(uri, fs, path, spool, gate)


def _write_object(uri: str, fs: Any, path: str, spool: BinaryIO, gate: Gate | None) -> None:
    """Through a gate, without overwriting another run's change: what is there is looked at, then the gate is
    asked, then the store takes the object if there is still what was looked at.
    """
    length = spool.tell()
    if gate is None:
        call_store(uri, lambda: conditional.replace(fs, path, spool, length, ""))
        return
    create = partial(conditional.create, fs, path, spool, length)
    attempt = create
    gate.check()
    for _ in range(TRIES):
        try:
            call_store(uri, attempt)
        except conditional.RefusedError:
            mark = call_store(uri, lambda: conditional.mark_of(fs, path))
            gate.check()
            attempt = create if mark is None else partial(conditional.replace, fs, path, spool, length, mark)
            continue
        return
    raise OSError(errno.EBUSY, "is changed by somebody else all the time", uri)


def remove_object(uri: str, fs: Any, path: str, gate: Gate) -> None:
    """Remove an object through a gate, as `spooled` writes one; nothing to do where it is absent."""
    for _ in range(TRIES):
        mark = call_store(uri, lambda: conditional.mark_of(fs, path))
        gate.check()
        if mark is None:
            return
        try:
            call_store(uri, partial(conditional.remove, fs, path, mark))
        except FileNotFoundError:
            return
        except conditional.RefusedError:
            continue
        return
    raise OSError(errno.EBUSY, "is changed by somebody else all the time", uri)


def swap_object(uri: str, fs: Any, path: str, data: bytes, seen: Callable[[bytes], bool] | None) -> bool:
    """Write an object where there is none (`seen` is None), or where `seen` accepts its content; False: not so."""
    spool = io.BytesIO(data)
    try:
        if seen is None:
            call_store(uri, lambda: conditional.create(fs, path, spool, len(data)))
            return True
        mark = call_store(uri, lambda: conditional.mark_of(fs, path))
        if mark is None or not seen(call_store(uri, lambda: fs.cat_file(path))):
            return False
        call_store(uri, lambda: conditional.replace(fs, path, spool, len(data), mark))
    except conditional.RefusedError:
        return False
    return True
