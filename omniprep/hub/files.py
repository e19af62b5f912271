"""Files of a folder that may come from a stranger, opened so that nothing outside the folder is ever read.

A name is walked from the folder's descriptor down, and no step follows a symbolic link: a `rejected.jsonl` that is
a link to a key file, or a `shards` that is a link to another folder, is refused instead of uploaded.
"""

import errno
import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

from omniprep.errors import OmniprepError

__all__ = ["LocalFile"]


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
        """The file, open for reading.

        Raises:
            OmniprepError: It is absent, a link, under a link, or no regular file.
        """
        with open(self._descriptor(), "rb") as file:
            yield file

    @contextmanager
    def pinned(self) -> Iterator[str]:
        """A path that stays this very file while the block runs, whatever is put in its place meanwhile.

        For code that wants a path. Where the system has no /proc it is the plain path, checked on entering.
        """
        with self.open() as file:
            through = f"/proc/self/fd/{file.fileno()}"
            yield through if os.path.exists(through) else str(self.root / self.name)

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
            found = os.open(parts[-1], os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
        except OSError as error:
            # O_NOFOLLOW gives ELOOP for a link to a file, ENOTDIR for one where a folder is meant.
            linked = error.errno in (errno.ELOOP, errno.ENOTDIR)
            why = "a symbolic link, or under one" if linked else os.strerror(error.errno or 0)
            raise OmniprepError(f"{self.root / self.name}: {why}; only files inside the folder are sent") from error
        finally:
            os.close(folder)
        if not stat.S_ISREG(os.fstat(found).st_mode):
            os.close(found)
            raise OmniprepError(f"{self.root / self.name}: not a regular file; only files inside the folder are sent")
        return found
