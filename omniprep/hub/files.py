"""Files of a folder that may come from a stranger, opened so that nothing outside the folder is ever read.

A path is opened folder by folder from the root's descriptor, and no step follows a symbolic link: a `rejected.jsonl`
that is a link to a key file, or a `shards` that is a link to another folder, is refused instead of uploaded.
"""

import errno
import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING

from omniprep.errors import OmniprepError

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoFile


@dataclass(frozen=True, slots=True)
class LocalFile:
    """A regular file inside a folder.

    Attributes:
        root: The folder, as the user named it.
        name: Path inside it, with forward slashes; without "." and "..".
    """

    root: Path
    name: str

    @contextmanager
    def open(self) -> Iterator[BufferedReader]:
        """The file, open for reading; an OmniprepError unless it is a regular file, under no link."""
        with open(self._descriptor(), "rb") as file:
            yield file

    @contextmanager
    def pinned(self) -> Iterator[str]:
        """A path, for code that wants one, that stays this very file inside the block even if another takes its place.

        Where the system has no /proc it is the plain path, checked on entering.
        """
        with self.open() as file:
            descriptor_path = f"/proc/self/fd/{file.fileno()}"
            yield descriptor_path if os.path.exists(descriptor_path) else str(self.root / self.name)

    def size(self) -> int:
        """Bytes."""
        with self.open() as file:
            return os.fstat(file.fileno()).st_size

    def read(self) -> bytes:
        """The whole content."""
        with self.open() as file:
            return file.read()

    def sha256(self) -> str:
        """SHA-256 of the content (hex)."""
        with self.open() as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def _descriptor(self) -> int:
        parts = self.name.split("/")
        assert all(part not in ("", ".", "..") for part in parts), self.name
        folder = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY)
        try:
            for part in parts[:-1]:
                inner = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=folder)
                os.close(folder)
                folder = inner
            # O_NONBLOCK: opening a named pipe must not wait for its writer; it is refused below.
            descriptor = os.open(parts[-1], os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
        except OSError as error:
            # O_NOFOLLOW gives ELOOP for a link to a file, ENOTDIR for one where a folder is meant.
            is_link = error.errno in (errno.ELOOP, errno.ENOTDIR)
            reason = "a symbolic link, or under one" if is_link else os.strerror(error.errno or 0)
            raise OmniprepError(f"{self.root / self.name}: {reason}; only files inside the folder are sent") from error
        finally:
            os.close(folder)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise OmniprepError(f"{self.root / self.name}: not a regular file; only files inside the folder are sent")
        return descriptor


def is_same(entry: "RepoFile", size: int, sha256: Callable[[], str], content: Callable[[], bytes]) -> bool:
    """Whether a file has the content that the Hub lists: SHA-256 of large files (LFS), git's SHA-1 of small ones."""
    if entry.size != size:
        return False
    if entry.lfs is not None:
        return bool(entry.lfs.sha256 == sha256())
    data = content()
    return bool(entry.blob_id == hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest())
