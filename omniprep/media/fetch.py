"""From what a row names (path, URI, URL, base64, bytes) to where the bytes are, staying inside the allowed folders.

How text is read as a path or as base64 is ms-swift's load_file (swift/llm/template/vision_utils.py): `data:` is base64;
an existing file, or text of at most 200 characters, is a path; anything longer is base64. Paths are taken relative to
the file that names them, then to each --media-root, and must stay inside one of those folders once links and '..' are
resolved.
"""

import binascii
import errno
import hashlib
import io as _io
import os
import re
from dataclasses import dataclass
from typing import Any, BinaryIO

from omniprep import io
from omniprep.errors import Reject, RejectCode

_DATA_URI = re.compile(r"data:(.*?);base64,(.+)", re.DOTALL)
MAX_MEDIA_BYTES = 8 << 30
"""Of a local file, which decoders read piece by piece."""
MAX_REMOTE_BYTES = 1 << 30
"""Of a remote object, which is held in memory."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where the bytes of one media item are: a local path, a remote URI, or the bytes themselves."""

    path: str | None = None
    uri: str | None = None
    data: bytes | memoryview | None = None

    @property
    def label(self) -> str:
        """What to call it in messages."""
        return self.path or self.uri or f"inline data of {len(self.data or b'')} bytes"

    @property
    def key(self) -> str:
        """The same for the same bytes within one build."""
        return self.path or self.uri or hashlib.sha256(self.data or b"").hexdigest()

    def read(self) -> bytes:
        """The whole item.

        Raises:
            Reject: media_not_found, media_fetch_failed, bad_media (empty).
        """
        if self.data is not None:
            data = bytes(self.data)
        else:
            try:
                self.check_size()
                data = io.read_bytes(self.path or self.uri or "")
            except FileNotFoundError as error:
                raise Reject(RejectCode.MEDIA_NOT_FOUND, f"{self.label}: no such file") from error
            except OSError as error:
                raise Reject(RejectCode.MEDIA_FETCH_FAILED, f"{self.label}: {error}") from error
        if not data:
            raise Reject(RejectCode.BAD_MEDIA, f"{self.label}: the file is empty")
        return data

    def open(self) -> BinaryIO:
        """The item as a seekable file in memory; bytes that are there already are not copied.

        Raises:
            Reject: As `read`.
        """
        if isinstance(self.data, memoryview) and len(self.data):
            return _io.BufferedReader(_View(self.data), 64 << 10)
        return _io.BytesIO(self.read())

    def check_size(self) -> None:
        """Look at the size before a decoder or the memory does.

        Raises:
            Reject: media_too_large, bad_media (empty).
        """
        name, most = (self.path, MAX_MEDIA_BYTES) if self.path is not None else (self.uri, MAX_REMOTE_BYTES)
        size = len(self.data or b"") if name is None else io.size(name)
        if size > most:
            raise Reject(RejectCode.MEDIA_TOO_LARGE, f"{self.label}: {size:,} bytes, the limit is {most:,}")
        if not size:
            raise Reject(RejectCode.BAD_MEDIA, f"{self.label}: the file is empty")


class _View(_io.RawIOBase):
    """A file over bytes of somebody else, such as a mapped plan."""

    def __init__(self, data: memoryview) -> None:
        self._data, self._at = data, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: len(self._data)}[whence]
        if start + offset < 0:
            raise OSError(errno.EINVAL, "seek before the start")
        self._at = start + offset
        return self._at

    def readinto(self, buffer: Any) -> int:
        part = self._data[self._at : self._at + len(buffer)]
        buffer[: len(part)] = part
        self._at += len(part)
        return len(part)


@dataclass(frozen=True, slots=True)
class Places:
    """Where media may lie: the folder of the file that names them, and the further roots."""

    base: str
    roots: tuple[str, ...] = ()
    allow_http: bool = False

    def locate(self, named: Any) -> Source:
        """Find what a row names.

        Args:
            named: Path, URI, base64 text, bytes, or {bytes, path} (bytes win).

        Raises:
            Reject: media_not_found, media_outside_root, media_url_forbidden, bad_base64, bad_media.
        """
        if isinstance(named, dict):
            named = named.get("bytes") or named.get("path") or named.get("url")
        if isinstance(named, bytes | bytearray | memoryview):
            if not len(named):
                raise Reject(RejectCode.BAD_MEDIA, "inline data is empty")
            return Source(data=bytes(named))
        if not isinstance(named, str) or not named.strip():
            raise Reject(RejectCode.BAD_MEDIA, "a media item names nothing")
        text = named.strip()
        if text.startswith("data:"):
            match = _DATA_URI.match(text)
            if match is None:
                raise Reject(RejectCode.BAD_BASE64, "a data: URI must be data:TYPE;base64,DATA")
            return Source(data=_decode(text, match.start(2)))
        if text.startswith(("http://", "https://")):
            return self._fetch_url(text)
        if io.REMOTE_MARK in text[:32] and not text.startswith("file://"):
            return self._remote(text)
        found = self._find(io.local_path(text))
        if found is not None:
            return found
        if len(text) <= 200 or text.startswith("file://"):
            raise Reject(
                RejectCode.MEDIA_NOT_FOUND, f"{_short(text)}: no such file (looked in {', '.join(self._folders())})"
            )
        return Source(data=_decode(text))

    def is_file(self, text: str) -> bool:
        """Whether the text names a file inside the allowed folders."""
        try:
            return self._find(text) is not None
        except Reject:
            return False

    def _folders(self) -> list[str]:
        return [self.base or ".", *self.roots]

    def _find(self, text: str) -> Source | None:
        if "\0" in text or len(text) > 4096:
            return None
        outside = None
        for folder in self._folders():
            if not io.is_local(folder):
                uri = io.join(folder, text)
                if ".." not in text.split("/") and not text.startswith("/") and io.exists(uri):
                    return Source(uri=uri)
                continue
            path = os.path.join(io.local_path(folder), os.path.expanduser(text))
            try:
                if not os.path.isfile(path):
                    continue
            except OSError:
                return None
            real = os.path.realpath(path)
            for root in self._folders():
                if io.is_local(root) and _inside(real, os.path.realpath(io.local_path(root))):
                    source = Source(path=path)
                    source.check_size()
                    return source
            outside = path
        if outside is not None:
            raise Reject(
                RejectCode.MEDIA_OUTSIDE_ROOT,
                f"{_short(text)}: lies outside {', '.join(self._folders())}; allow its folder with --media-root",
            )
        return None

    def _remote(self, uri: str) -> Source:
        roots = [root for root in self._folders() if not io.is_local(root)]
        if ".." in uri.split("/") or not any(uri.startswith(root.rstrip("/") + "/") for root in roots):
            raise Reject(
                RejectCode.MEDIA_OUTSIDE_ROOT,
                f"{uri}: lies outside {', '.join(self._folders())}; allow its folder with --media-root",
            )
        return Source(uri=uri)

    def _fetch_url(self, url: str) -> Source:
        from omniprep.media.http import fetch_url, shown

        if not self.allow_http:
            raise Reject(RejectCode.MEDIA_URL_FORBIDDEN, f"{shown(url)}: URLs are fetched only with --allow-http")
        return Source(data=fetch_url(url))


def _inside(path: str, root: str) -> bool:
    return path == root or path.startswith(root.rstrip(os.sep) + os.sep)


_PIECE = 4 << 20


def _decode(text: str, start: int = 0) -> bytes:
    """Base64 from a place in a text on, piece by piece: the text may be hundreds of MB, and is not copied."""
    try:
        whole = _io.BytesIO()
        for at in range(start, len(text), _PIECE):
            piece = binascii.a2b_base64(text[at : at + _PIECE])
            if at + _PIECE < len(text) and len(piece) != _PIECE // 4 * 3:
                raise binascii.Error("line breaks or padding inside")
            whole.write(piece)
        data = whole.getvalue()
    except (binascii.Error, ValueError):
        data = _decode_whole(text[start:])
    if not data:
        raise Reject(RejectCode.BAD_BASE64, "inline media is empty")
    return data


def _decode_whole(text: str) -> bytes:
    try:
        return binascii.a2b_base64(text)
    except (binascii.Error, ValueError) as error:
        raise Reject(RejectCode.BAD_BASE64, f"inline media is not base64: {error}") from error


def _short(text: str) -> str:
    return text if len(text) <= 120 else text[:100] + "…"
