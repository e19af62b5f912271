"""A media item's bytes: where they are, and the one way to open them.

Paths come from rows, which may be hostile, and a folder may change between the plan and the encode. So a path is never
handed to a decoder as a name: it is resolved, held against the folder that allows it, and opened link by link with
`O_NOFOLLOW` below that folder, each time it is read. What decoders get is the open file. A decoder that insists on a
name gets `/dev/fd/N`, which has no suffix and no pattern to guess from.
"""

import errno
import hashlib
import io as _io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, BinaryIO, cast

from omniprep import io
from omniprep.errors import Reject, RejectCode

MAX_MEDIA_BYTES = 8 << 30
"""Of a local file, which decoders read piece by piece."""
MAX_REMOTE_BYTES = 1 << 30
"""Of a remote object, which is held in memory."""
_OPEN_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK  # a pipe must not hang the open


@dataclass(frozen=True, slots=True)
class Source:
    """Where the bytes of one media item are: a local path, a remote URI, or the bytes themselves."""

    path: str | None = None
    uri: str | None = None
    data: bytes | memoryview | None = None
    root: str | None = None
    """The folder that `path` must lie in whenever it is opened; None for paths that no row named."""
    note: str = field(default="", compare=False)
    """More about inline data, for messages: the text that was taken for base64."""

    @property
    def label(self) -> str:
        """What to call it in messages."""
        note = f" ({self.note})" if self.note else ""
        return self.path or self.uri or f"inline data of {len(self.data or b'')} bytes{note}"

    @property
    def key(self) -> str:
        """The same for the same bytes within one build."""
        return self.path or self.uri or hashlib.sha256(self.data or b"").hexdigest()

    def read(self) -> bytes:
        """The whole item.

        Raises:
            Reject: media_not_found, media_outside_root, media_fetch_failed, media_too_large, bad_media (empty).
        """
        if self.data is not None:
            data = bytes(self.data)
        elif self.path is not None:
            with self.open() as file:
                data = file.read()
        else:
            with os_errors_as_rejects(self.label):
                self._check_size(io.size(self.uri or ""), MAX_REMOTE_BYTES)
                data = io.read_bytes(self.uri or "")
        if not data:
            raise Reject(RejectCode.BAD_MEDIA, f"{self.label}: the file is empty")
        return data

    def open(self) -> BinaryIO:
        """The item as a seekable file; the caller closes it. Bytes that are there already are not copied.

        Raises:
            Reject: As `read`.
        """
        if self.path is not None:
            return self._open_path(self.path)
        if isinstance(self.data, memoryview) and len(self.data):
            return _io.BufferedReader(_View(self.data), 64 << 10)
        return _io.BytesIO(self.read())

    def head(self, length: int) -> bytes:
        """The first bytes.

        Raises:
            Reject: As `read`.
        """
        if self.uri is not None:
            with os_errors_as_rejects(self.label):
                return io.read_range(self.uri, 0, min(length, io.size(self.uri)))
        with self.open() as file:
            return file.read(length)

    def _open_path(self, path: str) -> BinaryIO:
        with os_errors_as_rejects(self.label):
            handle = os.open(path, _OPEN_FLAGS) if self.root is None else _open_inside(path, self.root, self.label)
        try:
            facts = os.fstat(handle)
            if not stat.S_ISREG(facts.st_mode):
                raise Reject(RejectCode.BAD_MEDIA, f"{self.label}: {file_type(facts.st_mode)}, not a file")
            self._check_size(facts.st_size, MAX_MEDIA_BYTES)
        except BaseException:
            os.close(handle)
            raise
        return cast(BinaryIO, os.fdopen(handle, "rb"))

    def _check_size(self, size: int, most: int) -> None:
        if size > most:
            raise Reject(RejectCode.MEDIA_TOO_LARGE, f"{self.label}: {size:,} bytes, the limit is {most:,}")
        if not size:
            raise Reject(RejectCode.BAD_MEDIA, f"{self.label}: the file is empty")


def file_type(mode: int) -> str:
    """What a file of this mode is, in words."""
    if stat.S_ISDIR(mode):
        return "a folder"
    return "a file" if stat.S_ISREG(mode) else "a device, pipe or socket"


def device_name(file: BinaryIO) -> str | None:
    """A name under which this process and its children can open a local file again: "/dev/fd/N".

    None for files in memory, and where the system has no such names.
    """
    try:
        name = f"/dev/fd/{file.fileno()}"
    except OSError:  # io.UnsupportedOperation: a file in memory
        return None
    return name if os.path.exists(name) else None


def is_inside(path: str, root: str) -> bool:
    """Whether a resolved path is a resolved folder, or lies in it."""
    return path == root or path.startswith(root.rstrip(os.sep) + os.sep)


def _open_inside(path: str, root: str, label: str) -> int:
    """Open a path that must lie in a folder, whatever becomes of the folders between while this runs.

    Links are resolved first; the result has none, so each part is then opened below the one before it with
    O_NOFOLLOW: a part that has become a link in the meantime fails instead of leading outside.
    """
    outside = Reject(RejectCode.MEDIA_OUTSIDE_ROOT, f"{label}: lies outside {root}; allow its folder with --media-root")
    top, real = os.path.realpath(io.local_path(root)), os.path.realpath(path)
    if not is_inside(real, top):
        raise outside
    *folders, name = os.path.relpath(real, top).split(os.sep)
    folder = os.open(top, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY)
    try:
        for part in folders:
            below = os.open(part, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=folder)
            os.close(folder)
            folder = below
        return os.open(name, _OPEN_FLAGS | os.O_NOFOLLOW, dir_fd=folder)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            raise outside from error
        raise
    finally:
        os.close(folder)


@contextmanager
def os_errors_as_rejects(label: str) -> Iterator[None]:
    """What the file system or the store says, as the reject of one item."""
    try:
        yield
    except FileNotFoundError as error:
        raise Reject(RejectCode.MEDIA_NOT_FOUND, f"{label}: no such file") from error
    except IsADirectoryError as error:
        raise Reject(RejectCode.BAD_MEDIA, f"{label}: a folder, not a file") from error
    except OSError as error:
        reason = error.strerror or str(error)  # the text of an OSError names the path again
        raise Reject(RejectCode.MEDIA_FETCH_FAILED, f"{label}: {reason}") from error


class _View(_io.RawIOBase):
    """A file over bytes of somebody else, such as a mapped plan."""

    def __init__(self, data: memoryview) -> None:
        self._data, self._at = data, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: len(self._data)}[whence]
        if start + offset < 0:
            raise OSError(errno.EINVAL, "seek before the start")
        self._at = start + offset
        return self._at

    def readinto(self, buffer: Any) -> int:
        part = self._data[self._at : self._at + len(buffer)]
        buffer[: len(part)] = part
        self._at += len(part)
        return len(part)
