"""The bytes of a media item: where they are, and the only way to open them.

Paths come from rows, which may be hostile, and a folder may change between planning and encoding. So decoders get an
open file instead of a path. Each time a path is read, its directories are opened one below the other with `O_NOFOLLOW`,
starting at the folder that allows it. A decoder that needs a name gets `/dev/fd/N`, which has no suffix and no pattern
to guess from.
"""

import errno
import hashlib
import io as _io
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import IO, Any, BinaryIO, cast

from omniprep import io
from omniprep.errors import OmniprepError, Reject, RejectCode
from omniprep.io.objects import ChangedObjectError
from omniprep.io.tar import Member
from omniprep.media.remote import WHOLE_BYTES, Place, open_item, pieces, pin, read_whole

MAX_MEDIA_BYTES = 8 << 30
"""Largest local file; decoders read it piece by piece."""
MAX_REMOTE_BYTES = 1 << 30
"""Largest remote object; it is held in memory where it is opened without `Source.fetched`."""
SPOOLED_BYTES = WHOLE_BYTES
"""Remote objects and parts of tars above this size are not held in memory while they are decoded, but on the disk."""
_FILE_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK  # without O_NONBLOCK, opening a pipe would hang
_LINK_ERRORS = (errno.ELOOP, errno.ENOTDIR)
"""What `os.open` with O_NOFOLLOW raises for a link to a file, and for a link to a folder."""
_FOLDER_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY


@dataclass(frozen=True, slots=True)
class Source:
    """Where the bytes of one media item are: a local path, a remote URI, or the bytes themselves."""

    path: str | None = None
    uri: str | None = None
    data: bytes | memoryview | None = None
    root: str | None = None
    """Folder that must contain `path` whenever it is opened; None for paths that do not come from a row."""
    member: Member | None = None
    """The part of the file that is meant, where that is a tar."""
    mark: str = field(default="", compare=False)
    """Of an object in a store: its ETag when it was planned. Later reads are of that object, or fail."""
    length: int = field(default=-1, compare=False)
    """Of an object in a store: its bytes when it was planned; -1 where they are not known yet."""
    note: str = field(default="", compare=False)
    """Added to the label of inline data: which text was decoded as base64."""
    name: str = field(default="", compare=False)
    """Label of data that were read from somewhere else before."""
    spooled: BinaryIO | None = field(default=None, compare=False)
    """A file of the remote object's bytes (`fetched`)."""

    @property
    def label(self) -> str:
        """Name of the item in messages."""
        note = f" ({self.note})" if self.note else ""
        if self.member is not None:
            return f"{self.path or self.uri}!{self.member.name}"
        return self.path or self.uri or self.name or f"inline data of {len(self.data or b'')} bytes{note}"

    @property
    def key(self) -> str:
        """Cache key: within one build, equal keys mean equal bytes."""
        if self.member is not None:
            return f"{self.path or self.uri}!{self.member.offset}+{self.member.size}"
        return self.path or self.uri or hashlib.sha256(self.data or b"").hexdigest()

    def size(self) -> int:
        """Bytes of the item, by the file system or the store; rejects media_not_found and media_fetch_failed."""
        if self.data is not None:
            return len(self.data)
        if self.spooled is not None:
            return os.fstat(self.spooled.fileno()).st_size
        if self.member is not None:
            return self.member.size
        with os_errors_as_rejects(self.label):
            if self.path is not None:
                return os.stat(self.path).st_size
            return self.length if self.length >= 0 else pin(self.place).size

    @property
    def place(self) -> Place:
        """Where an item in a store lies."""
        assert self.uri is not None
        return Place(self.uri, self.member, self.mark, self.size() if self.member is not None else self.length)

    def pinned(self) -> "Source":
        """The item with what tells its present content from a later one, if it lies in a store; one request there.

        Rejects what cannot be read, as `size`.
        """
        if self.uri is None:
            return self
        with os_errors_as_rejects(self.label):
            first = pin(self.place)
        return replace(self, mark=first.mark, length=first.size)

    def read(self) -> bytes:
        """Read the whole item; rejects media_not_found, media_outside_root, media_too_large and bad_media (empty)."""
        if self.data is not None:
            data = bytes(self.data)
        elif self.path is not None or self.spooled is not None:
            with self.open() as file:
                data = file.read()
        else:
            self._check_size(self.size(), MAX_REMOTE_BYTES)
            with os_errors_as_rejects(self.label):
                data = read_whole(self.place)
        if not data:
            raise Reject(RejectCode.BAD_MEDIA, f"{self.label}: the file is empty")
        return data

    def open(self) -> BinaryIO:
        """Open the item as a seekable file, which the caller closes; bytes in memory are not copied."""
        if self.spooled is not None:
            return opened_again(self.spooled)
        if self.path is not None:
            file = self._open_path(self.path)
            if self.member is None:
                return file
            self._check_size(self.member.size, MAX_MEDIA_BYTES)
            return _io.BufferedReader(_FilePart(file, self.member.offset, self.member.size), 64 << 10)
        if self.uri is not None and self.data is None:
            self._check_size(self.size(), MAX_REMOTE_BYTES)
            with os_errors_as_rejects(self.label):
                return open_item(self.place)
        if isinstance(self.data, memoryview) and len(self.data):
            return _io.BufferedReader(_MemoryFile(self.data), 64 << 10)
        return _io.BytesIO(self.read())

    def head(self, length: int) -> bytes:
        """Read the first `length` bytes; rejects as `read`."""
        with self.open() as file:
            return file.read(length)

    @contextmanager
    def fetched(self) -> "Iterator[Source]":
        """The same item, whose bytes are read from a store once, however often it is opened within the block.

        Up to `SPOOLED_BYTES` are held in memory, more in a file without a name. Rejects as `read`.
        """
        if self.uri is None or self.data is not None or self.spooled is not None:
            yield self
            return
        size = self.size()
        self._check_size(size, MAX_REMOTE_BYTES)
        if size <= SPOOLED_BYTES:
            with os_errors_as_rejects(self.label):
                data = read_whole(self.place)
            yield replace(self, data=memoryview(data))
            return
        with _temporary_folder_errors():
            file = tempfile.TemporaryFile(prefix="omniprep-")  # noqa: SIM115 - closed below
        with file:
            self._download(file)
            yield replace(self, spooled=file)

    def _download(self, file: BinaryIO) -> None:
        """Write the item into a file, piece by piece; rejects one that changes meanwhile."""
        parts = pieces(self.place)
        while True:
            with os_errors_as_rejects(self.label):
                piece = next(parts, None)
            if piece is None:
                return
            with _temporary_folder_errors():
                file.write(piece)
                file.flush()

    def _open_path(self, path: str) -> BinaryIO:
        with os_errors_as_rejects(self.label):
            handle = os.open(path, _FILE_FLAGS) if self.root is None else _open_inside(path, self.root, self.label)
        try:
            status = os.fstat(handle)
            if not stat.S_ISREG(status.st_mode):
                raise Reject(RejectCode.BAD_MEDIA, f"{self.label}: {file_type(status.st_mode)}, not a file")
            self._check_size(status.st_size, MAX_MEDIA_BYTES)
        except BaseException:
            os.close(handle)
            raise
        return cast(BinaryIO, os.fdopen(handle, "rb"))

    def _check_size(self, size: int, limit: int) -> None:
        if size > limit:
            raise Reject(RejectCode.MEDIA_TOO_LARGE, f"{self.label}: {size:,} bytes, the limit is {limit:,}")
        if not size:
            raise Reject(RejectCode.BAD_MEDIA, f"{self.label}: the file is empty")


def file_type(mode: int) -> str:
    """The type of a file in words, from `st_mode`."""
    if stat.S_ISDIR(mode):
        return "a folder"
    return "a file" if stat.S_ISREG(mode) else "a device, pipe or socket"


def device_name(file: IO[bytes]) -> str | None:
    """`/dev/fd/N`, by which this process and its children can open a local file again.

    None for files in memory, and on systems without /dev/fd.
    """
    try:
        name = f"/dev/fd/{file.fileno()}"
    except OSError:  # io.UnsupportedOperation: a file in memory
        return None
    return name if os.path.exists(name) else None


def opened_again(file: BinaryIO) -> BinaryIO:
    """The same file with a position of its own, and where the system can with a descriptor of its own."""
    name = f"/proc/self/fd/{file.fileno()}"
    if os.path.exists(name):  # Linux; elsewhere a second descriptor would share the position
        return open(name, "rb")
    size = os.fstat(file.fileno()).st_size
    return _io.BufferedReader(_FilePart(os.fdopen(os.dup(file.fileno()), "rb"), 0, size), 64 << 10)


@contextmanager
def named(file: BinaryIO) -> Iterator[str]:
    """A name under which a library or another program can open the file: /dev/fd/N, else that of a copy on the disk."""
    name = device_name(file)
    if name is not None:
        yield name
        return
    file.seek(0)
    with _temporary_folder_errors():
        copy = tempfile.NamedTemporaryFile(prefix="omniprep-")  # noqa: SIM115 - closed below
    with copy:
        while piece := file.read(1 << 20):
            with _temporary_folder_errors():
                copy.write(piece)
        with _temporary_folder_errors():
            copy.flush()
        yield device_name(copy) or copy.name


@contextmanager
def _temporary_folder_errors() -> Iterator[None]:
    """A full or missing temporary folder is no fault of the item: OmniprepError, which ends the build."""
    try:
        yield
    except OSError as error:
        raise OmniprepError(
            "large media are decoded from a copy in the temporary folder, which cannot be written "
            f"({error.strerror or error}); free its disk, or name another folder by TMPDIR"
        ) from error


def is_inside(path: str, root: str) -> bool:
    """Whether a path leads into a folder once links and '..' are resolved."""
    names = _names_below(path, root)
    if names and not any(os.path.islink(os.path.join(root, *names[:depth])) for depth in range(1, len(names) + 1)):
        return True  # without links there is nothing to resolve: realpath of both paths would take 25 µs
    resolved, top = os.path.realpath(path), os.path.realpath(root)
    return resolved == top or resolved.startswith(top.rstrip(os.sep) + os.sep)


def _names_below(path: str, folder: str) -> list[str] | None:
    """The names that lead from a folder to a path spelled FOLDER/NAME/.../NAME; None for any other spelling."""
    prefix = folder.rstrip(os.sep) + os.sep
    names = path[len(prefix) :].split(os.sep) if path.startswith(prefix) else [""]
    return None if any(name in ("", os.curdir, os.pardir) for name in names) else names


def _open_inside(path: str, root: str, label: str) -> int:
    """Open a path that must lie in a folder, even if the folders between are replaced at the same time.

    No directory is followed through a link, so a part of the path that became a link in the meantime fails to open.
    """
    outside = Reject(RejectCode.MEDIA_OUTSIDE_ROOT, f"{label}: lies outside {root}; allow its folder with --media-root")
    top = io.local_path(root)
    # Most paths have no links. Trying that first saves two realpath calls, each an lstat for every folder from "/" on.
    if (names := _names_below(path, top)) is not None:
        try:
            return _open_without_links(top, names)
        except OSError as error:
            if error.errno not in _LINK_ERRORS:
                raise
    if not is_inside(path, top):
        raise outside
    top = os.path.realpath(top)
    try:
        return _open_without_links(top, os.path.relpath(os.path.realpath(path), top).split(os.sep))
    except OSError as error:
        if error.errno in _LINK_ERRORS:
            raise outside from error
        raise


def _open_without_links(top: str, names: list[str]) -> int:
    """Open top/names[0]/.../names[-1]; OSError with one of `_LINK_ERRORS` where a name is a link."""
    folder = os.open(top, _FOLDER_FLAGS)
    try:
        for name in names[:-1]:
            below = os.open(name, _FOLDER_FLAGS | os.O_NOFOLLOW, dir_fd=folder)
            os.close(folder)
            folder = below
        return os.open(names[-1], _FILE_FLAGS | os.O_NOFOLLOW, dir_fd=folder)
    finally:
        os.close(folder)


@contextmanager
def os_errors_as_rejects(label: str) -> Iterator[None]:
    """Turn errors of the file system or the store into the reject of one item."""
    try:
        yield
    except FileNotFoundError as error:
        raise Reject(RejectCode.MEDIA_NOT_FOUND, f"{label}: no such file") from error
    except IsADirectoryError as error:
        raise Reject(RejectCode.BAD_MEDIA, f"{label}: a folder, not a file") from error
    except ChangedObjectError as error:
        raise Reject(RejectCode.DECODE_MISMATCH, f"{label}: was changed in the store since it was planned") from error
    except io.StoreUnavailableError as error:
        # Each row with media would be rejected from here on: the build stops, and goes on when the store answers.
        raise OmniprepError(f"{label}: {error.strerror}") from error
    except OSError as error:
        reason = error.strerror or str(error)  # str(error) would repeat the path
        raise Reject(RejectCode.MEDIA_FETCH_FAILED, f"{label}: {reason}") from error


class _Part(_io.RawIOBase):
    """A file of `size` bytes that are read from elsewhere."""

    def __init__(self, size: int) -> None:
        self._size, self._offset = size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._offset, os.SEEK_END: self._size}[whence]
        if start + offset < 0:
            raise OSError(errno.EINVAL, "seek before the start")
        self._offset = start + offset
        return self._offset

    def readinto(self, buffer: Any) -> int:
        count = max(0, min(len(buffer), self._size - self._offset))
        data = self._bytes(self._offset, count)
        buffer[: len(data)] = data
        self._offset += len(data)
        return len(data)

    def _bytes(self, offset: int, count: int) -> bytes | memoryview:
        raise NotImplementedError


class _MemoryFile(_Part):
    """A file over bytes that another object owns, such as a memory-mapped plan."""

    def __init__(self, data: memoryview) -> None:
        super().__init__(len(data))
        self._data = data

    def _bytes(self, offset: int, count: int) -> memoryview:
        return self._data[offset : offset + count]


class _FilePart(_Part):
    """A part of a file, such as a member of a tar. It has no descriptor, since that would be the whole file's."""

    def __init__(self, file: BinaryIO, start: int, size: int) -> None:
        super().__init__(size)
        self._file, self._start = file, start

    def _bytes(self, offset: int, count: int) -> bytes:
        return os.pread(self._file.fileno(), count, self._start + offset)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()
