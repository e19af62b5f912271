"""Files and folders by name, local or in a store.

Local files take the short way: plain `open`, and rename after fsync. A store makes an object visible only when its
upload ends, which is the same promise: a name that exists is whole.
"""

import errno
import glob
import io
import os
import shutil
import stat
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, cast

from omniprep.errors import did_you_mean
from omniprep.io.gate import gate_of, remove_object, spooled, swap_object
from omniprep.io.objects import read_object
from omniprep.io.stores import REMOTE_MARK, call_store, filesystem, is_local, local_path

__all__ = [
    "atomic_writer",
    "did_you_mean_file",
    "exists",
    "expand",
    "is_folder",
    "list_folder",
    "make_folder",
    "open_input",
    "read_bytes",
    "read_head",
    "read_range",
    "remove",
    "size",
    "swap",
    "walk",
    "write_atomic",
]


def exists(uri: str) -> bool:
    """Whether a file or folder of that name is there."""
    if is_local(uri):
        return os.path.exists(local_path(uri))
    fs, path = filesystem(uri)
    return call_store(uri, lambda: bool(fs.exists(path)))


def size(uri: str) -> int:
    """Size in bytes.

    Raises:
        FileNotFoundError: There is no such file.
    """
    if is_local(uri):
        return os.stat(local_path(uri)).st_size
    fs, path = filesystem(uri)
    return call_store(uri, lambda: int(fs.size(path)))


def read_head(uri: str, length: int) -> tuple[bytes, int]:
    """The first `length` bytes of a file, and its size; one request on S3."""
    if not is_local(uri):
        part = read_object(uri, 0, length)
        return part.data, part.size
    with os.fdopen(_regular(local_path(uri)), "rb") as file:
        return file.read(length), os.fstat(file.fileno()).st_size


def _regular(path: str) -> int:
    """A descriptor of a regular file: a named pipe among the files of a dataset would be waited for without end."""
    # O_NONBLOCK: opening a pipe that nobody writes to returns at once; for regular files it means nothing.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", path)
    return descriptor


def open_input(uri: str) -> BinaryIO:
    """Open for reading, seekable, unbuffered beyond the store's own read-ahead."""
    if is_local(uri):
        return os.fdopen(_regular(local_path(uri)), "rb")
    fs, path = filesystem(uri)
    file = call_store(uri, lambda: fs.open(path, "rb"))
    # fsspec's files lack readline(size) and more of what files can do.
    return cast(BinaryIO, io.BufferedReader(file, 1 << 20))


def read_bytes(uri: str) -> bytes:
    """The whole file."""
    if is_local(uri):
        with os.fdopen(_regular(local_path(uri)), "rb") as file:
            return file.read()
    fs, path = filesystem(uri)
    return call_store(uri, lambda: cast(bytes, fs.cat_file(path)))


def read_range(uri: str, start: int, end: int) -> bytes:
    """Bytes [start, end) with one request."""
    if is_local(uri):
        with os.fdopen(_regular(local_path(uri)), "rb") as file:
            return os.pread(file.fileno(), end - start, start)
    fs, path = filesystem(uri)
    return call_store(uri, lambda: cast(bytes, fs.cat_file(path, start=start, end=end)))


def make_folder(uri: str) -> None:
    """Make a folder and its parents (nothing to do on object stores)."""
    if is_local(uri):
        os.makedirs(local_path(uri), exist_ok=True)


@contextmanager
def atomic_writer(uri: str) -> Iterator[BinaryIO]:
    """A file that appears under its name only when the block ends well: written beside, fsynced, renamed.

    On an exception nothing is left behind. Remote stores upload to a name that becomes visible when the upload ends.
    Where changes of the folder go through a gate, it is asked at the end, and the file appears only if it agrees.
    """
    gate = gate_of(uri)
    if is_local(uri):
        path = local_path(uri)
        beside = f"{path}.{uuid.uuid4().hex[:8]}.tmp"
        if gate:
            beside = os.path.join(gate.staging, os.path.basename(beside))
        try:
            with open(beside, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            if gate:
                gate.check()
            os.replace(beside, path)
        except BaseException as error:  # Ctrl-C too must leave nothing beside; it goes on at once
            with suppress(FileNotFoundError, NotADirectoryError):
                os.unlink(beside)
            if gate and isinstance(error, OSError):
                gate.check()  # the staging folder is gone where the right is lost
                if error.filename == beside:
                    error.filename = path
            raise
        return
    fs, path = filesystem(uri)
    with spooled(uri, fs, path, gate) as spool:
        yield spool


def swap(uri: str, data: bytes, seen: Callable[[bytes], bool] | None) -> bool:
    """Write an object of a store if its content is what was seen; None: if there is none. Returns whether it was."""
    fs, path = filesystem(uri)
    return swap_object(uri, fs, path, data, seen)


def write_atomic(uri: str, data: bytes) -> None:
    """Write a whole file so that it is either absent or whole."""
    with atomic_writer(uri) as file:
        file.write(data)


def list_folder(uri: str) -> list[str]:
    """Names (not paths) in a folder, sorted; empty where there is none."""
    if is_local(uri):
        path = local_path(uri)
        return sorted(os.listdir(path)) if os.path.isdir(path) else []
    fs, path = filesystem(uri)
    try:
        entries = [str(entry).rstrip("/") for entry in call_store(uri, lambda: fs.ls(path, detail=False))]
    except FileNotFoundError:
        return []
    return sorted({entry.rsplit("/", 1)[-1] for entry in entries if entry != path})


def did_you_mean_file(uri: str) -> str:
    """As `omniprep.errors.did_you_mean`, of the names in the folder of a local file that is absent."""
    if not is_local(uri):
        return ""
    folder, name = os.path.split(local_path(uri).rstrip("/"))
    return did_you_mean(name, list_folder(folder or "."), folder)


def walk(uri: str) -> list[str]:
    """Paths of all files below a folder, relative to it, with forward slashes; sorted. Links to folders are followed.

    Names of folders that hold nothing are left out. A folder is entered once, whatever the number of links to it.

    Raises:
        OSError: A folder inside cannot be listed (nothing is left out in silence).
    """
    if not is_local(uri):
        fs, path = filesystem(uri)
        names = [str(name) for name in call_store(uri, lambda: fs.find(path))]
        return sorted(name.removeprefix(path.rstrip("/") + "/") for name in names if name != path)

    def fail(error: OSError) -> None:
        raise error

    top, names, entered = local_path(uri), [], set()
    for folder, subfolders, files in os.walk(top, onerror=fail, followlinks=True):
        real = os.path.realpath(folder)
        if real in entered:  # a link to a folder above or beside it
            subfolders.clear()
            continue
        entered.add(real)
        relative = os.path.relpath(folder, top)
        names += [name if relative == "." else f"{relative}/{name}" for name in files]
    return sorted(names)


def is_folder(uri: str) -> bool:
    """Whether a folder of that name is there; in an object store: whether names begin with it."""
    if is_local(uri):
        return os.path.isdir(local_path(uri))
    if uri.startswith(("http://", "https://")):  # fsspec would fetch the whole file to look for links in it
        return False
    fs, path = filesystem(uri)
    return call_store(uri, lambda: bool(fs.isdir(path)))


def remove(uri: str) -> None:
    """Remove a file or a whole local folder; nothing to do where it is absent. Asks the gate that it goes through."""
    gate = gate_of(uri)
    if is_local(uri):
        target = Path(local_path(uri))
        if gate and os.path.lexists(target):
            staged = Path(gate.staging, f"{target.name}.{uuid.uuid4().hex[:8]}.gone")
            gate.check()
            try:
                os.replace(target, staged)
            except FileNotFoundError:
                gate.check()
                return
            target = staged
        if target.is_dir() and not target.is_symlink():
            shutil.rmtree(target)
        else:
            target.unlink(missing_ok=True)
        return
    fs, path = filesystem(uri)
    if not call_store(uri, lambda: fs.exists(path)):
        return
    if gate is None:
        call_store(uri, lambda: fs.rm(path, recursive=True))
    else:
        remove_object(uri, fs, path, gate)


def expand(pattern: str) -> list[tuple[str, bool]]:
    """(name, whether a folder) of a glob, as the pattern was written (relative stays, s3:// keeps its prefix)."""
    if is_local(pattern):
        return [(name, os.path.isdir(name)) for name in sorted(glob.glob(local_path(pattern), recursive=True))]
    fs, path = filesystem(pattern)
    protocol = pattern.split(REMOTE_MARK, 1)[0]
    infos = call_store(pattern, lambda: fs.glob(path, detail=True))
    return sorted((f"{protocol}{REMOTE_MARK}{name}", info["type"] == "directory") for name, info in infos.items())
