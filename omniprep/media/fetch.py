"""From what a row names (path, URI, URL, base64, bytes) to where the bytes are, staying inside the allowed folders.

How text is read as a path or as base64 is ms-swift's load_file (swift/llm/template/vision_utils.py): `data:` is base64;
an existing file, or text of at most 200 characters, is a path; anything longer is base64. Paths are taken relative to
the file that names them, then to each --media-root, and must stay inside one of those folders once links and '..' are
resolved.
"""

import binascii
import io as _io
import os
import re
import stat
from dataclasses import dataclass
from typing import Any

from omniprep import io
from omniprep.errors import Reject, RejectCode
from omniprep.media.recognise import HEAD_BYTES, describe
from omniprep.media.source import Source, file_type, is_inside, os_errors_as_rejects

_DATA_URI = re.compile(r"data:(.*?);base64,(.+)", re.DOTALL)
_MOST_PATH = 4096
"""Bytes of a path that the system takes (PATH_MAX)."""
_BASE64 = re.compile(r"[A-Za-z0-9+/=\s_-]*")


@dataclass(frozen=True, slots=True)
class MediaRoots:
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
        original = named
        if isinstance(named, dict):
            named = named.get("bytes") or named.get("path") or named.get("url")
        if isinstance(named, bytes | bytearray | memoryview):
            if not len(named):
                raise Reject(RejectCode.BAD_MEDIA, "inline data is empty")
            return Source(data=bytes(named))
        if isinstance(original, dict) and named is None:
            keys = ", ".join(map(repr, original)) or "nothing"
            raise Reject(RejectCode.BAD_MEDIA, f"a media item is an object with {keys}; it needs bytes, path or url")
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
        if io.REMOTE_MARK in text[:32] and not io.is_local(text):
            return self._remote(text)
        if "\0" in text or not _is_unicode(text):
            what = "a NUL" if "\0" in text else "half of a character (a lone surrogate)"
            raise Reject(RejectCode.MEDIA_NOT_FOUND, f"{_short(text)}: no such file: the name holds {what}")
        found = self._find(io.local_path(text))
        if found is not None:
            return found
        if len(text) <= 200 or text.startswith("file://"):
            raise self._not_found(text)
        return self._base64(text)

    def _not_found(self, text: str) -> Reject:
        """The reject for a path that names no file, with what stands there instead."""
        where = f"looked in {', '.join(self._folders())}"
        for folder in self._folders():
            try:
                if io.is_local(folder):
                    kind = file_type(os.stat(self._joined(folder, io.local_path(text))).st_mode)
                    return Reject(RejectCode.MEDIA_NOT_FOUND, f"{_short(text)}: {kind}, not a file")
            except (OSError, ValueError):
                continue  # nothing there, or a name that the system does not take
        return Reject(RejectCode.MEDIA_NOT_FOUND, f"{_short(text)}: no such file ({where})")

    def _base64(self, text: str) -> Source:
        """Text of more than 200 letters that names no file; the reference reads it as base64, whatever it is.

        Where it is no base64 of a media file, the message says what it looks like: a long path is the usual reason.
        """
        try:
            data = _decode(text)
        except Reject:
            if _looks_like_a_path(text):
                raise self._not_found(text) from None
            raise
        if describe(data[:HEAD_BYTES]) is None and _looks_like_a_path(text):
            raise self._not_found(text)
        return Source(data=data, note=f"{_short(text, 24)} names no file, so it was read as base64")

    def is_file(self, text: str) -> bool:
        """Whether the text names a file inside the allowed folders."""
        try:
            return self._find(text) is not None
        except Reject:
            return False

    def _folders(self) -> list[str]:
        return [self.base or ".", *self.roots]

    @staticmethod
    def _joined(folder: str, text: str) -> str:
        return os.path.join(io.local_path(folder), os.path.expanduser(text))

    def _find(self, text: str) -> Source | None:
        if "\0" in text or len(text) > _MOST_PATH or not _is_unicode(text):
            return None
        outside = False
        for folder in self._folders():
            if not io.is_local(folder):
                uri = io.join(folder, text)
                if ".." not in text.split("/") and not text.startswith("/"):
                    with os_errors_as_rejects(uri):
                        if io.exists(uri):
                            return Source(uri=uri)
                continue
            path = self._joined(folder, text)
            try:
                if not stat.S_ISREG(os.stat(path).st_mode):
                    continue
            except (OSError, ValueError):
                continue  # nothing there, or a name that the system does not take
            real = os.path.realpath(path)
            for root in self._folders():
                if io.is_local(root) and is_inside(real, os.path.realpath(io.local_path(root))):
                    return Source(path=path, root=root)
            outside = True
        if outside:
            raise Reject(
                RejectCode.MEDIA_OUTSIDE_ROOT,
                f"{_short(text)}: lies outside {', '.join(self._folders())}; allow its folder with --media-root",
            )
        return None

    def _remote(self, uri: str) -> Source:
        scheme = uri.partition(io.REMOTE_MARK)[0]
        if not io.is_known_scheme(scheme):
            known = "s3://, gs://, az://, hf:// and others of fsspec are"
            raise Reject(
                RejectCode.MEDIA_NOT_FOUND,
                f"{_short(uri)}: {scheme}:// is no kind of store that is known ({known}); a path that holds '://' is "
                f"given as ./{scheme}://…",
            )
        roots = [root for root in self._folders() if not io.is_local(root)]
        if ".." in uri.split("/") or not any(uri.startswith(root.rstrip("/") + "/") for root in roots):
            raise Reject(
                RejectCode.MEDIA_OUTSIDE_ROOT,
                f"{uri}: lies outside {', '.join(self._folders())}; allow its folder with --media-root",
            )
        return Source(uri=uri)

    def _fetch_url(self, url: str) -> Source:
        from omniprep.http.client import fetch_url, shown

        if not self.allow_http:
            raise Reject(RejectCode.MEDIA_URL_FORBIDDEN, f"{shown(url)}: URLs are fetched only with --allow-http")
        return Source(data=fetch_url(url))


def _is_unicode(text: str) -> bool:
    """Whether a text can be a name: no half of a letter (a lone surrogate, as cut strings hold)."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _looks_like_a_path(text: str) -> bool:
    """Whether a text that is no base64 of a known file was meant as a path: letters that base64 lacks, or a suffix."""
    return len(text) <= _MOST_PATH and (
        not _BASE64.fullmatch(text) or re.match(r"(/|\.{1,2}/|~|[A-Za-z]:[\\/])", text) is not None
    )


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


def _short(text: str, most: int = 120) -> str:
    return text if len(text) <= most else text[: most - 20 if most > 40 else most] + "…"


__all__ = ["MediaRoots", "Source"]
