"""What tells cheaply that an input changed: its size and a sample of its content, or the mark that a store keeps.

A local file of up to `WHOLE_BYTES` is hashed whole. Of a larger one `BLOCKS` blocks of `BLOCK_BYTES` are, spread evenly
from its first byte to its last, so its head and its tail are among them. The modification time does not count: a copy,
a checkout or a `touch` changes it, and not the rows. What cannot be seen so is a change of a large file between the
blocks that leaves its size as it was, such as a digit that is replaced by another.

Datasets of earlier versions recorded size and modification time; they are held against just these.
"""

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, BinaryIO

from omniprep.io.files import open_input
from omniprep.io.stores import call_store, filesystem, is_local, local_path

__all__ = ["BLOCKS", "BLOCK_BYTES", "WHOLE_BYTES", "fingerprint", "has_fingerprint", "listed", "sample_offsets"]

BLOCK_BYTES = 32 << 10
BLOCKS = 16
WHOLE_BYTES = BLOCKS * BLOCK_BYTES
"""512 KiB: read from disk and hashed in a millisecond, so that 10,000 inputs take seconds."""


_listings: ContextVar[dict[str, dict[str, Any]] | None] = ContextVar("omniprep_listings", default=None)
LEAST_LISTED = 3
"""Objects of a folder from which on it is listed (1,000 objects a request) instead of asking for each of them."""


@contextmanager
def listed(uris: Iterable[str]) -> Iterator[None]:
    """Within the block, in this thread, `fingerprint` of these files is told by listings of their folders on S3, made
    now; of other files and stores it asks as ever.
    """
    folders: dict[str, set[str]] = {}
    for uri in uris:
        if uri.startswith(("s3://", "s3a://")):
            folders.setdefault(uri.rpartition("/")[0], set()).add(uri)
    infos: dict[str, dict[str, Any]] = {}
    for folder, wanted in folders.items():
        if len(wanted) >= LEAST_LISTED:
            fs, path = filesystem(folder)
            entries = call_store(folder, lambda fs=fs, path=path: fs.ls(path, detail=True))  # type: ignore[misc]
            by_name = {str(entry["name"]).rpartition("/")[2]: entry for entry in entries}
            infos |= {uri: by_name[name] for uri in wanted if (name := uri.rpartition("/")[2]) in by_name}
    token = _listings.set(infos)
    try:
        yield
    finally:
        _listings.reset(token)


def fingerprint(uri: str) -> dict[str, Any]:
    """Size and `sample_sha256` of a local file; size and `mark` (ETag, or the time) of an object in a store."""
    if is_local(uri):
        with open_input(uri) as file:
            size = os.fstat(file.fileno()).st_size
            return {"bytes": size, "sample_sha256": _sample_sha256(file, size)}
    info = (_listings.get() or {}).get(uri)
    if info is None:
        fs, path = filesystem(uri)
        info = call_store(uri, lambda: fs.info(path))
    mark = info.get("ETag") or info.get("etag") or info.get("LastModified") or info.get("mtime") or info.get("blob_id")
    return {"bytes": int(info["size"]), "mark": str(mark)}


def sample_offsets(size: int) -> list[int]:
    """Where the sampled blocks of a file of more than `WHOLE_BYTES` begin."""
    return [number * (size - BLOCK_BYTES) // (BLOCKS - 1) for number in range(BLOCKS)]


def _sample_sha256(file: BinaryIO, size: int) -> str:
    if size <= WHOLE_BYTES:
        return hashlib.sha256(file.read(WHOLE_BYTES)).hexdigest()
    digest = hashlib.sha256()
    for offset in sample_offsets(size):
        digest.update(os.pread(file.fileno(), BLOCK_BYTES, offset))
    return digest.hexdigest()


def has_fingerprint(path: str, recorded: Mapping[str, Any]) -> bool:
    """Whether a local file has the fingerprint that was recorded of it, by this version or an earlier one."""
    status = os.stat(local_path(path))
    if status.st_size != recorded.get("bytes"):
        return False
    if (sample := recorded.get("sample_sha256")) is not None:
        return bool(fingerprint(path)["sample_sha256"] == sample)
    return status.st_mtime_ns == recorded.get("mtime_ns")
