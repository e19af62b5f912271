"""A bounded folder of bins that were read from a remote store, so that the next epoch reads them locally.

One file a bin, named after dataset, shard and place, written beside and renamed: any number of processes may share
the folder. The files used longest ago are removed when the folder outgrows its bound; a file that another process
removes is simply read from the store again. A checksum is compared as for any other read.
"""

import contextlib
import hashlib
import os
from pathlib import Path

from omniprep import io

__all__ = ["BinCache"]


class BinCache:
    """The folder.

    Args:
        folder: Made where it is absent.
        limit: Bytes kept; a bin that is larger is not kept.
        dataset: What tells this dataset from others, and from later builds at the same place.
    """

    def __init__(self, folder: str, limit: int, dataset: str) -> None:
        self._folder, self._limit, self._dataset = Path(folder), limit, dataset
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
            self._make_room(length)
            io.write_atomic(str(path), data)
        return data

    def drop(self, uri: str, offset: int, length: int) -> None:
        """Forget a bin whose bytes turned out damaged."""
        self._path(uri, offset, length).unlink(missing_ok=True)

    def _path(self, uri: str, offset: int, length: int) -> Path:
        name = hashlib.sha256(f"{self._dataset}\0{uri}\0{offset}\0{length}".encode()).hexdigest()[:40]
        return self._folder / f"{name}.bin"

    def _make_room(self, length: int) -> None:
        found = []
        for entry in os.scandir(self._folder):
            with contextlib.suppress(FileNotFoundError):
                found.append((entry.stat().st_mtime_ns, entry.stat().st_size, entry.path))
        used = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if used + length <= self._limit:
                return
            Path(path).unlink(missing_ok=True)
            used -= size
