"""Every file omniprep touches goes through here: local paths and fsspec URIs (s3://, gs://, hf://, memory://) alike.

Local files take the short way (plain `open`, rename after fsync); remote stores make an object visible only when its
upload ends, which is the same promise: a name that exists is whole. Remote calls are tried `len(WAITS) + 1` times
where the fault may pass (HTTP 5xx and 429, timeouts, broken connections); what stays is an OSError that names the
URI: FileNotFoundError for 404, PermissionError for 401 and 403. Listings are never cached: other machines write here.
"""

import errno
import glob as _glob
import io as _io
import os
import random
import re
import shutil
import stat
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

from omniprep.errors import OmniprepError
from omniprep.gate import Gate, gate_of, remove_object, spooled, swap_object
from omniprep.gate import changes_through as _changes_through

REMOTE_MARK = "://"
WAITS = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Seconds before each further try of a remote call; a quarter is added or taken at random, so that workers spread."""
_PASSING = {errno.EIO, errno.EBUSY, errno.EAGAIN, errno.ETIMEDOUT, errno.ECONNRESET, errno.EREMOTEIO, errno.EPIPE}
_LASTING = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, FileExistsError)
_PACKAGES = {
    **dict.fromkeys(("s3", "s3a"), "'omniprep[s3]'"),
    **dict.fromkeys(("gs", "gcs"), "gcsfs"),
    **dict.fromkeys(("az", "abfs", "abfss", "adl"), "adlfs"),
    "hf": "huggingface_hub",
}
"""What brings a protocol to fsspec."""
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*")
"""RFC 3986: what may stand before "://" for a name to be a URI."""
T = TypeVar("T")


def is_local(uri: str) -> bool:
    """Whether the name is a file of this machine: a plain path, or file://.

    A path may hold "://" itself (`/data/a://b`, or a file in a folder called `odd:`): what stands before it is then no
    scheme, or one that fsspec does not know while there is such a folder. `./odd://x` is a path always.
    """
    scheme, mark, _ = uri.partition(REMOTE_MARK)
    if not mark or scheme == "file":
        return True
    if not _SCHEME.fullmatch(scheme):
        return "::" not in scheme  # chains of fsspec (simplecache::s3://) are no paths, and are refused
    return not is_known_scheme(scheme) and os.path.isdir(f"{scheme}:")


def is_known_scheme(scheme: str) -> bool:
    """Whether fsspec knows a kind of store by this name."""
    from fsspec.registry import known_implementations, registry

    return scheme in known_implementations or scheme in registry


def local_path(uri: str) -> str:
    """The plain path of a local URI."""
    return uri[7:] if uri.startswith("file://") else uri


def _remote(protocol: str) -> Any:
    if protocol in ("http", "https"):  # fsspec's own client follows redirects into this network
        return _web(protocol)
    import fsspec

    try:
        # fsspec keeps instances itself, and knows about forks.
        return fsspec.filesystem(protocol, use_listings_cache=False)
    except ImportError as error:
        package = _PACKAGES.get(protocol, "")
        advice = f"pip install {package}" if package else str(error)
        raise OmniprepError(f"{protocol}:// needs a package that is not installed here: {advice}") from error
    except ValueError as error:
        raise OmniprepError(
            f"{protocol}:// is no kind of store that is known (s3://, gs://, az://, hf:// and others of fsspec are); "
            f"a path on this machine that holds '://' is given as ./{protocol}://…"
        ) from error


@lru_cache(maxsize=2)
def _web(scheme: str) -> Any:
    from omniprep.http.files import HttpFileSystem

    return HttpFileSystem(scheme)


def _may_pass(error: Exception) -> bool:
    """Whether a remote call that failed like this may work in a moment."""
    if isinstance(error, _LASTING) or type(error).__name__ == "OfflineModeIsEnabled":  # HF_HUB_OFFLINE is set
        return False
    if isinstance(error, TimeoutError | ConnectionError):
        return True
    status = _status(error)
    if status is not None:
        return status >= 500 or status in (408, 429)
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in _PASSING
    return _of_client(error)  # its timeouts, some of which are OSErrors without a number


def _of_client(error: Exception) -> bool:
    """Whether an error is of a class of the store's client or its HTTP library, whatever these are called this year."""
    package = type(error).__module__.split(".")[0]
    return package not in sys.stdlib_module_names and package != "omniprep"


def _status(error: Exception) -> int | None:
    """The HTTP status that an error of one of the stores' clients carries, wherever that client keeps it."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):  # botocore
        found = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    else:  # aiohttp; requests and httpx; gcsfs and Google's own
        found = getattr(error, "status", None) or getattr(response, "status_code", None) or getattr(error, "code", None)
    if isinstance(error, OSError) and error.errno is None and str(error).startswith("Forbidden: "):
        return 403  # gcsfs says it in words alone
    return found if isinstance(found, int) else None


def _patiently(uri: str, call: Callable[[], T]) -> T:
    """Do a remote call, again where its fault may pass.

    Raises:
        OSError: It does not; names the URI.
    """
    for wait in (*WAITS, None):
        try:
            return call()
        except Exception as error:
            said = " ".join(str(error).split())  # some clients use several lines
            if isinstance(error, FileNotFoundError):
                raise FileNotFoundError(errno.ENOENT, "no such object", uri) from error
            if isinstance(error, PermissionError) or _status(error) in (401, 403):
                raise PermissionError(errno.EACCES, f"access denied ({said})", uri) from error
            if not _may_pass(error):
                raise (OSError(errno.EIO, said, uri) if _of_client(error) else error) from error
            if wait is None:
                raise OSError(errno.EIO, f"{said} (after {len(WAITS) + 1} tries)", uri) from error
            time.sleep(wait * random.uniform(0.75, 1.25))
    raise AssertionError("not reached")


def filesystem(uri: str) -> tuple[Any, str]:
    """The fsspec filesystem of a URI, and the path inside it."""
    if is_local(uri):
        return _remote("file"), local_path(uri)
    protocol = uri.split(REMOTE_MARK, 1)[0]
    fs = _remote(protocol)
    return fs, cast(str, fs._strip_protocol(uri))


def join(uri: str, *parts: str) -> str:
    """Join with forward slashes for remote URIs and the system's separator for local ones."""
    if is_local(uri):
        return os.path.join(local_path(uri), *parts)
    return "/".join([uri.rstrip("/"), *parts])


def exists(uri: str) -> bool:
    """Whether a file or folder of that name is there."""
    if is_local(uri):
        return os.path.exists(local_path(uri))
    fs, path = filesystem(uri)
    return _patiently(uri, lambda: bool(fs.exists(path)))


def size(uri: str) -> int:
    """Size in bytes.

    Raises:
        FileNotFoundError: There is no such file.
    """
    if is_local(uri):
        return os.stat(local_path(uri)).st_size
    fs, path = filesystem(uri)
    return _patiently(uri, lambda: int(fs.size(path)))


def fingerprint(uri: str) -> dict[str, Any]:
    """What tells cheaply that an input changed: size, and modification time or ETag."""
    if is_local(uri):
        found = os.stat(local_path(uri))
        return {"bytes": found.st_size, "mtime_ns": found.st_mtime_ns}
    fs, path = filesystem(uri)
    info = _patiently(uri, lambda: fs.info(path))
    mark = info.get("ETag") or info.get("etag") or info.get("LastModified") or info.get("mtime") or info.get("blob_id")
    return {"bytes": int(info["size"]), "mark": str(mark)}


def _regular(path: str) -> int:
    """A descriptor of a regular file: a named pipe among the files of a dataset would be waited for without end.

    Raises:
        OSError: It cannot be opened, or is no regular file.
    """
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
    file = _patiently(uri, lambda: fs.open(path, "rb"))
    # fsspec's files lack readline(size) and more of what files can do.
    return cast(BinaryIO, _io.BufferedReader(file, 1 << 20))


def read_bytes(uri: str) -> bytes:
    """The whole file."""
    if is_local(uri):
        with os.fdopen(_regular(local_path(uri)), "rb") as file:
            return file.read()
    fs, path = filesystem(uri)
    return _patiently(uri, lambda: cast(bytes, fs.cat_file(path)))


def read_range(uri: str, start: int, end: int) -> bytes:
    """Bytes [start, end) with one request."""
    if is_local(uri):
        with os.fdopen(_regular(local_path(uri)), "rb") as file:
            return os.pread(file.fileno(), end - start, start)
    fs, path = filesystem(uri)
    return _patiently(uri, lambda: cast(bytes, fs.cat_file(path, start=start, end=end)))


def make_folder(uri: str) -> None:
    """Make a folder and its parents (nothing to do on object stores)."""
    if is_local(uri):
        os.makedirs(local_path(uri), exist_ok=True)


@contextmanager
def changes_through(folder: str, gate: Gate | None) -> Iterator[None]:
    """Within the block, in this thread, every file that appears in a folder or goes from it asks the gate (None: as
    outside of the block).
    """
    with _changes_through(join(folder, ""), gate):
        yield


@contextmanager
def atomic_writer(uri: str) -> Iterator[BinaryIO]:
    """A file that appears under its name only when the block ends well: written beside, fsynced, renamed.

    On an exception nothing is left behind. Remote stores upload to a name that becomes visible when the upload ends.
    Where changes of the folder go through a gate, it is asked at the end, and the file appears only if it agrees.
    """
    gate = gate_of(local_path(uri) if is_local(uri) else uri)
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
    with spooled(uri, fs, path, gate, _patiently) as spool:
        yield spool


def swap(uri: str, data: bytes, seen: Callable[[bytes], bool] | None) -> bool:
    """Write an object of a store if its content is what was seen; None: if there is none. Returns whether it was."""
    fs, path = filesystem(uri)
    return swap_object(uri, fs, path, data, seen, _patiently)


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
        found = _patiently(uri, lambda: fs.ls(path, detail=False))
    except FileNotFoundError:
        return []
    return sorted({str(entry).rstrip("/").rsplit("/", 1)[-1] for entry in found if str(entry).rstrip("/") != path})


def walk(uri: str) -> list[str]:
    """Paths of all files below a folder, relative to it, with forward slashes; sorted. Links to folders are followed.

    Names of folders that hold nothing are left out. A folder is entered once, whatever the number of links to it.

    Raises:
        OSError: A folder inside cannot be listed (nothing is left out in silence).
    """
    if not is_local(uri):
        fs, path = filesystem(uri)
        found = _patiently(uri, lambda: fs.find(path))
        head = path.rstrip("/") + "/"
        return sorted(str(name).removeprefix(head) for name in found if str(name) != path)

    def stop(error: OSError) -> None:
        raise error

    top, names, entered = local_path(uri), [], set()
    for folder, inside, files in os.walk(top, onerror=stop, followlinks=True):
        real = os.path.realpath(folder)
        if real in entered:  # a link to a folder above or beside it
            inside.clear()
            continue
        entered.add(real)
        below = os.path.relpath(folder, top)
        names += [name if below == "." else f"{below}/{name}" for name in files]
    return sorted(names)


def is_folder(uri: str) -> bool:
    """Whether a folder of that name is there; in an object store: whether names begin with it."""
    if is_local(uri):
        return os.path.isdir(local_path(uri))
    if uri.startswith(("http://", "https://")):  # fsspec would fetch the whole file to look for links in it
        return False
    fs, path = filesystem(uri)
    return _patiently(uri, lambda: bool(fs.isdir(path)))


def remove(uri: str) -> None:
    """Remove a file or a whole local folder; nothing to do where it is absent. Asks the gate that it goes through."""
    gate = gate_of(local_path(uri) if is_local(uri) else uri)
    if is_local(uri):
        target = Path(local_path(uri))
        if gate and os.path.lexists(target):
            gone = Path(gate.staging, f"{target.name}.{uuid.uuid4().hex[:8]}.gone")
            gate.check()
            try:
                os.replace(target, gone)
            except FileNotFoundError:
                gate.check()
                return
            target = gone
        if target.is_dir() and not target.is_symlink():
            shutil.rmtree(target)
        else:
            target.unlink(missing_ok=True)
        return
    fs, path = filesystem(uri)
    if not _patiently(uri, lambda: fs.exists(path)):
        return
    if gate is None:
        _patiently(uri, lambda: fs.rm(path, recursive=True))
    else:
        remove_object(uri, fs, path, gate, _patiently)


def expand(pattern: str) -> list[tuple[str, bool]]:
    """Expand a glob, keeping the way the pattern was written (relative stays relative, s3:// keeps its prefix).

    Returns:
        (name, whether it is a folder), sorted.
    """
    if is_local(pattern):
        return [(name, os.path.isdir(name)) for name in sorted(_glob.glob(local_path(pattern), recursive=True))]
    fs, path = filesystem(pattern)
    protocol = pattern.split(REMOTE_MARK, 1)[0]
    found = _patiently(pattern, lambda: fs.glob(path, detail=True))
    return sorted((f"{protocol}{REMOTE_MARK}{name}", info["type"] == "directory") for name, info in found.items())
