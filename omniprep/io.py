"""Every file omniprep touches goes through here: local paths and fsspec URIs (s3://, gs://, hf://, memory://) alike.

Local files take the short way (plain `open`, rename after fsync); remote stores make an object visible only when its upload
ends, which is the same promise: a name that exists is whole.
"""

import glob as _glob
import os
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

REMOTE_MARK = "://"


def is_local(uri: str) -> bool:
    """Whether the URI names a file of this machine (a plain path or file://)."""
    return REMOTE_MARK not in uri or uri.startswith("file://")


def local_path(uri: str) -> str:
    """The plain path of a local URI."""
    return uri[7:] if uri.startswith("file://") else uri


def _remote(protocol: str) -> Any:
    import fsspec

    return fsspec.filesystem(protocol)  # fsspec keeps instances itself, and knows about forks


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
    return bool(fs.exists(path))


def size(uri: str) -> int:
    """Size in bytes.

    Raises:
        FileNotFoundError: There is no such file.
    """
    if is_local(uri):
        return os.stat(local_path(uri)).st_size
    fs, path = filesystem(uri)
    return int(fs.size(path))


def fingerprint(uri: str) -> dict[str, Any]:
    """What tells cheaply that an input changed: size, and modification time or ETag."""
    if is_local(uri):
        stat = os.stat(local_path(uri))
        return {"bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns}
    fs, path = filesystem(uri)
    info = fs.info(path)
    mark = info.get("ETag") or info.get("etag") or info.get("LastModified") or info.get("mtime") or info.get("blob_id")
    return {"bytes": int(info["size"]), "mark": str(mark)}


def open_input(uri: str) -> BinaryIO:
    """Open for reading, seekable, unbuffered beyond the store's own read-ahead."""
    if is_local(uri):
        return open(local_path(uri), "rb")
    fs, path = filesystem(uri)
    return cast(BinaryIO, fs.open(path, "rb"))


def read_bytes(uri: str) -> bytes:
    """The whole file."""
    if is_local(uri):
        with open(local_path(uri), "rb") as file:
            return file.read()
    fs, path = filesystem(uri)
    return cast(bytes, fs.cat_file(path))


def read_range(uri: str, start: int, end: int) -> bytes:
    """Bytes [start, end) with one request."""
    if is_local(uri):
        with open(local_path(uri), "rb") as file:
            return os.pread(file.fileno(), end - start, start)
    fs, path = filesystem(uri)
    return cast(bytes, fs.cat_file(path, start=start, end=end))


def make_folder(uri: str) -> None:
    """Make a folder and its parents (nothing to do on object stores)."""
    if is_local(uri):
        os.makedirs(local_path(uri), exist_ok=True)


@contextmanager
def atomic_writer(uri: str) -> Iterator[BinaryIO]:
    """A file that appears under its name only when the block ends well: written beside, fsynced, renamed.

    On an exception nothing is left behind. Remote stores upload to a name that becomes visible when the upload ends.
    """
    if is_local(uri):
        path = local_path(uri)
        beside = f"{path}.{uuid.uuid4().hex[:8]}.tmp"
        try:
            with open(beside, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, path)
        except BaseException:
            Path(beside).unlink(missing_ok=True)
            raise
        return
    fs, path = filesystem(uri)
    # Spooled locally: a failed block then uploads nothing, on any store, multipart or not.
    with tempfile.TemporaryFile(prefix="omniprep-") as spool:
        yield cast(BinaryIO, spool)
        length = spool.tell()
        spool.seek(0)
        if length < 64 << 20:
            fs.pipe_file(path, spool.read())
            return
        with fs.open(path, "wb") as target:
            while block := spool.read(16 << 20):
                target.write(block)


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
    fs.invalidate_cache(path)
    if not fs.exists(path):
        return []
    return sorted(str(entry).rstrip("/").rsplit("/", 1)[-1] for entry in fs.ls(path, detail=False))


def remove(uri: str) -> None:
    """Remove a file or a whole folder; nothing to do where it is absent."""
    fs, path = filesystem(uri)
    if fs.exists(path):
        fs.rm(path, recursive=True)


def expand(pattern: str) -> list[str]:
    """Expand a glob, keeping the way the pattern was written (relative stays relative, s3:// keeps its prefix)."""
    if is_local(pattern):
        return sorted(_glob.glob(local_path(pattern), recursive=True))
    fs, path = filesystem(pattern)
    protocol = pattern.split(REMOTE_MARK, 1)[0]
    return sorted(f"{protocol}{REMOTE_MARK}{found}" for found in fs.glob(path))
