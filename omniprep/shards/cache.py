"""A bounded folder of bins that were read from a remote store, so that the next epoch reads them locally.

One file a bin, named by a hash of dataset, shard and byte range, written under another name and renamed: any number of
processes may share the folder. The least recently used files are removed when the folder outgrows its bound; a bin that
another process removed is read from the store again. Checksums are compared as for any other read.

Listing a folder of 100,000 bins takes longer than reading one bin, so a process keeps a running total and lists the
folder only after it has written a 256th of the bound, which is 256 entries listed for each bin written. It does not see
what other processes wrote since then, so n processes may exceed the bound by n/256 of it.
"""

import contextlib
import hashlib
import os
import re
import warnings
from pathlib import Path

from omniprep import io

_SCANS = 256  # how often the folder is listed while it is filled once
_BIN_FILE = re.compile(r"[0-9a-f]{40}\.bin(\.[0-9a-f]{8}\.tmp)?")  # a killed process leaves its unfinished file


class BinCache:
    """The cache of one dataset (by its identity) in a folder that may hold others; other names are not counted."""

    def __init__(self, folder: str, limit: int, dataset: str) -> None:
        self._folder, self._limit, self._dataset = Path(folder), limit, dataset
        self._used, self._until_listing = 0, 0  # bytes in the folder, and bytes to write before it is listed again
        self._folder.mkdir(parents=True, exist_ok=True)

    def read(self, uri: str, offset: int, length: int) -> bytes:
        """Bytes [offset, offset + length) of a shard, from the folder or with one range request."""
        path = self._path(uri, offset, length)
        try:
            data = path.read_bytes()
            os.utime(path)
            if len(data) == length:
                return data
        except FileNotFoundError:
            pass
        data = io.read_range(uri, offset, offset + length)
        if len(data) == length <= self._limit:
            self._keep(path, data)
        return data

    def drop(self, uri: str, offset: int, length: int) -> None:
        """Remove a bin whose bytes are damaged."""
        self._path(uri, offset, length).unlink(missing_ok=True)

    def _path(self, uri: str, offset: int, length: int) -> Path:
        name = hashlib.sha256(f"{self._dataset}\0{uri}\0{offset}\0{length}".encode()).hexdigest()[:40]
        return self._folder / f"{name}.bin"

    def _keep(self, path: Path, data: bytes) -> None:
        if self._until_listing <= 0 or self._used + len(data) > self._limit:
            self._make_room(len(data))
        try:
            io.write_atomic(str(path), data)
        except OSError as error:  # the bin was read all the same: a full disk costs time in the next epoch, no data
            warnings.warn(f"{self._folder}: bins are not kept: {error}", stacklevel=2)
            return
        self._used += len(data)
        self._until_listing -= len(data)

    def _make_room(self, length: int) -> None:
        """List the folder, and remove the least recently used bins until `length` more bytes fit."""
        files = []
        with os.scandir(self._folder) as entries:
            for entry in entries:
                if _BIN_FILE.fullmatch(entry.name):
                    with contextlib.suppress(FileNotFoundError):  # another process removed it meanwhile
                        status = entry.stat()
                        files.append((status.st_mtime_ns, status.st_size, entry.path))
        self._used = sum(size for _, size, _ in files)
        # More than is needed, or a full folder would be listed for every bin.
        room = max(length, self._limit // _SCANS)
        for _, size, path in sorted(files):
            if self._used + room <= self._limit:
                break
            Path(path).unlink(missing_ok=True)
            self._used -= size
        self._until_listing = self._limit // _SCANS
