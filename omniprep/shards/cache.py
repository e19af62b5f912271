"""A bounded folder of bins that were read from a remote store, so that the next epoch reads them locally.

One file a bin, named after dataset, shard and place, written beside and renamed: any number of processes may share
the folder. The files used longest ago are removed when the folder outgrows its bound; a file that another process
removes is simply read from the store again. A checksum is compared as for any other read.

Listing a folder of 100,000 bins takes longer than reading one, so a process keeps a running total and looks at the
folder itself only after it has written a 256th of the bound: 256 files listed a miss, whatever the size of the bins.
What other processes wrote since then it does not know of, so n processes may exceed the bound by n/256 of it.
"""

import contextlib
import hashlib
import os
import re
import warnings
from pathlib import Path

from omniprep import io

__all__ = ["BinCache"]

_SCANS = 256  # of the folder, while it is filled once
_OURS = re.compile(r"[0-9a-f]{40}\.bin(\.[0-9a-f]{8}\.tmp)?")  # a killed process leaves its unfinished file


class BinCache:
    """The folder.

    Args:
        folder: Made where it is absent. Files of other names are left alone and not counted.
        limit: Bytes kept; a bin that is larger is not kept.
        dataset: What tells this dataset from others, and from later builds at the same place.
    """

    def __init__(self, folder: str, limit: int, dataset: str) -> None:
        self._folder, self._limit, self._dataset = Path(folder), limit, dataset
        self._used, self._trusted = 0, 0  # bytes in the folder, and bytes until they are counted again
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
        """Forget a bin whose bytes turned out damaged."""
        self._path(uri, offset, length).unlink(missing_ok=True)

    def _path(self, uri: str, offset: int, length: int) -> Path:
        name = hashlib.sha256(f"{self._dataset}\0{uri}\0{offset}\0{length}".encode()).hexdigest()[:40]
        return self._folder / f"{name}.bin"

    def _keep(self, path: Path, data: bytes) -> None:
        if self._trusted <= 0 or self._used + len(data) > self._limit:
            self._make_room(len(data))
        try:
            io.write_atomic(str(path), data)
        except OSError as error:  # the bin itself was read: a full disk costs the next epoch time, not this one
            warnings.warn(f"{self._folder}: bins are not kept: {error}", stacklevel=2)
            return
        self._used += len(data)
        self._trusted -= len(data)

    def _make_room(self, length: int) -> None:
        """Count what is there, and remove what was used longest ago until `length` more bytes fit."""
        found = []
        with os.scandir(self._folder) as entries:
            for entry in entries:
                if _OURS.fullmatch(entry.name):
                    with contextlib.suppress(FileNotFoundError):  # another process removed it meanwhile
                        facts = entry.stat()
                        found.append((facts.st_mtime_ns, facts.st_size, entry.path))
        self._used = sum(size for _, size, _ in found)
        # A little more than is needed: a full folder would else be listed for every bin.
        room = max(length, self._limit // _SCANS)
        for _, size, path in sorted(found):
            if self._used + room <= self._limit:
                break
            Path(path).unlink(missing_ok=True)
            self._used -= size
        self._trusted = self._limit // _SCANS
