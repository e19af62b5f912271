"""Inputs and datasets on web servers, for fsspec: read only, through omniprep's own client (io/http_client.py).

fsspec's own filesystem for http follows redirects anywhere; a file that anybody serves could then bring in what a
server on this machine or network answers. Here a URL may lead wherever the person who typed it wants, and its redirects
to public addresses alone.
"""

import errno
import time
from typing import Any

from fsspec.spec import AbstractBufferedFile, AbstractFileSystem

from omniprep.errors import Reject, RejectCode
from omniprep.io import http_client as web

SECONDS = 300.0
"""For one request, and a second more for each MiB."""


class HttpFileSystem(AbstractFileSystem):  # type: ignore[misc]  # fsspec is untyped
    """Files of web servers whose size is known and that give byte ranges, or that are small enough to be held.

    Args:
        scheme: http or https; paths are what follows it.
    """

    cachable = False

    def __init__(self, scheme: str) -> None:
        super().__init__()
        self.protocol = scheme
        self._whole: dict[str, bytes] = {}

    def _strip_protocol(self, path: str) -> str:  # of an instance, not of the class: each scheme has its own
        return path.removeprefix(f"{self.protocol}://")

    def info(self, path: str, **options: Any) -> dict[str, Any]:
        """Size, and what tells cheaply that the file changed; OSError of the fitting kind for any fault."""
        url, end = self._url(path), time.monotonic() + SECONDS
        with _OSErrors(url), web.opened(url, end, headers={"Range": "bytes=0-0"}, given=True) as response:
            web.check_status(response, web.shown(url), 200, 206, 416)
            size = _whole_size(response.getheader("Content-Range")) if response.status != 200 else response.length
            facts = {
                "name": self._strip_protocol(path),
                "type": "file",
                "ETag": response.getheader("ETag"),
                "LastModified": response.getheader("Last-Modified"),
                "ranges": response.status != 200,
            }
        if size is None or not facts["ranges"]:
            size = len(self._read_whole(url))
        return {**facts, "size": size}

    def exists(self, path: str, **options: Any) -> bool:
        """Whether the server has the file; a fault is no answer, but raised as by `info`."""
        try:
            self.info(path)
        except FileNotFoundError:
            return False
        return True

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **options: Any) -> bytes:
        """The bytes from `start` to before `end`; both may be None. Errors as of `info`."""
        size = self.info(path)["size"] if end is None or (start or 0) < 0 or end < 0 else None
        first, last, _ = slice(start, end).indices(size) if size is not None else (start or 0, end or 0, 1)
        return self._fetch(self._url(path), first, last)

    def _fetch(self, url: str, first: int, last: int) -> bytes:
        if last <= first:
            return b""
        if url in self._whole:
            return self._whole[url][first:last]
        until = time.monotonic() + SECONDS + (last - first) / (1 << 20)
        headers = {"Range": f"bytes={first}-{last - 1}"}
        with _OSErrors(url), web.opened(url, until, headers=headers, given=True) as response:
            web.check_status(response, web.shown(url), 200, 206)
            if response.status == 206:
                return web.read_body(response, web.shown(url), until, good=(206,))
        return self._read_whole(url)[first:last]

    def _read_whole(self, url: str) -> bytes:
        """A file of a server without byte ranges, held in memory: one at a time, of at most 1 GiB."""
        if url not in self._whole:
            until = time.monotonic() + SECONDS + web.MAX_BYTES / (1 << 20)
            with _OSErrors(url), web.opened(url, until, given=True) as response:
                try:
                    data = web.read_body(response, web.shown(url), until)
                except Reject as reject:
                    if reject.code == RejectCode.MEDIA_TOO_LARGE:
                        reject = Reject(
                            reject.code, f"{reject.message}, as the server gives no byte ranges; download it"
                        )
                    if reject.code != RejectCode.BAD_MEDIA:
                        raise reject from None
                    data = b""  # an empty file
            self._whole = {url: data}
        return self._whole[url]

    def _open(self, path: str, mode: str = "rb", block_size: int | None = None, **options: Any) -> "_HttpFile":
        if mode != "rb":
            raise OSError(errno.EROFS, "web servers are read only", self._url(path))
        return _HttpFile(self, path, mode, block_size or "default")

    def ls(self, path: str, detail: bool = True, **options: Any) -> list[Any]:
        """Refuse: http has no folders."""
        raise OSError(errno.ENOTSUP, "a web server cannot list a folder; name each file", self._url(path))

    def find(self, path: str, *arguments: Any, **options: Any) -> list[str]:
        """Refuse, as `ls`; fsspec's own would take a fault for an empty folder."""
        raise OSError(errno.ENOTSUP, "a web server cannot list a folder; name each file", self._url(path))

    def isdir(self, path: str) -> bool:
        """No: http has no folders."""
        return False

    def _rm(self, path: str) -> None:
        raise OSError(errno.EROFS, "web servers are read only", self._url(path))

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **options: Any) -> None:
        """Refuse: read only."""
        raise OSError(errno.EROFS, "web servers are read only", self._url(path))

    def _url(self, path: str) -> str:
        return f"{self.protocol}://{self._strip_protocol(path)}"


class _HttpFile(AbstractBufferedFile):  # type: ignore[misc]  # fsspec is untyped
    def _fetch_range(self, start: int, end: int) -> bytes:
        return self.fs._fetch(self.fs._url(self.path), start, end)


class _OSErrors:
    """The client's rejects, made for rows, as the errors of a file system."""

    def __init__(self, url: str) -> None:
        self._label = web.shown(url)

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, web.LateError):
            raise OSError(errno.EPROTO, str(error), self._label) from error
        if isinstance(error, web.PassingError):
            raise TimeoutError(errno.ETIMEDOUT, str(error), self._label) from error
        if not isinstance(error, Reject):
            return
        reason = error.message.removeprefix(f"{self._label}: ")
        if error.code == RejectCode.MEDIA_NOT_FOUND:
            raise FileNotFoundError(errno.ENOENT, reason, self._label) from error
        if error.code == RejectCode.MEDIA_URL_FORBIDDEN:
            raise PermissionError(
                errno.EACCES, f"{reason}; if that address is meant, give its URL itself", self._label
            ) from error
        raise OSError(errno.EPROTO, reason, self._label) from error


def _whole_size(content_range: str | None) -> int | None:
    """The size of a file in "bytes 0-0/SIZE" or "bytes */SIZE"; None where the server does not say it."""
    size = (content_range or "").rpartition("/")[2].strip()
    return int(size) if size.isdecimal() and len(size) < 19 else None
