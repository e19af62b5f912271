"""Find the bytes that a row's media reference (path, URI, URL, base64, bytes) stands for, inside the allowed folders.

Text is read as a path or as base64 like in ms-swift's load_file (swift/llm/template/vision_utils.py): `data:` is
base64; an existing file, or text of at most 200 characters, is a path; anything longer is base64. Paths are relative to
the input file's folder, then to each --media-root, and must stay inside one of those folders once links and '..' are
resolved.
"""

import binascii
import io as _io
import os
import re
import stat
from dataclasses import dataclass, replace
from typing import Any

from omniprep import io
from omniprep.errors import OmniprepError, Reject, RejectCode, did_you_mean
from omniprep.io.tar import TAR_MARK, Member, MemberName, members_of
from omniprep.lru import BoundedCache
from omniprep.media.recognize import HEAD_BYTES, describe
from omniprep.media.remote import Place
from omniprep.media.source import Source, file_type, is_inside

_DATA_URI = re.compile(r"data:(.*?);base64,(.+)", re.DOTALL)
_MAX_PATH_LENGTH = 4096
"""PATH_MAX of Linux; no longer text names a file."""
_MAX_PATH_TEXT = 200
"""Longer text that names no file is base64, as in load_file."""
_BASE64 = re.compile(r"[A-Za-z0-9+/=\s_-]*")
_SUFFIXES = ((".jpg", ".jpeg", ".png", ".webp"), (".mp4", ".mov", ".mkv", ".webm"), (".wav", ".mp3", ".flac", ".m4a"))
"""Of files that are mixed up after a conversion; looked for only to say so."""


@dataclass(frozen=True, slots=True)
class MediaRoots:
    """The folders that media may be read from: that of the input file (`base`), then the --media-root folders."""

    base: str
    roots: tuple[str, ...] = ()
    allow_http: bool = False

    def locate(self, reference: Any) -> Source:
        """The source of a media item: path, URI, base64 text, bytes, or {bytes, path} (bytes win).

        Rejects media_not_found, media_outside_root, media_url_forbidden, bad_base64 and bad_media.
        """
        value = reference
        if isinstance(reference, dict):
            value = reference.get("bytes") or reference.get("path") or reference.get("url")
        if isinstance(value, bytes | bytearray | memoryview):
            if not len(value):
                raise Reject(RejectCode.BAD_MEDIA, "inline data is empty")
            return Source(data=bytes(value))
        if isinstance(reference, dict) and value is None:
            keys = ", ".join(map(repr, reference)) or "nothing"
            raise Reject(RejectCode.BAD_MEDIA, f"a media item is an object with {keys}; it needs bytes, path or url")
        if isinstance(value, MemberName):  # of an input that the user named, not of a path in a row
            local = io.is_local(value.tar)
            tar = Source(path=os.path.abspath(io.local_path(value.tar))) if local else Source(uri=value.tar)
            return replace(tar, member=value.member).pinned()
        if not isinstance(value, str) or not value.strip():
            raise Reject(RejectCode.BAD_MEDIA, "a media item names nothing")
        text = value.strip()
        if text.startswith("data:"):
            match = _DATA_URI.match(text)
            if match is None:
                raise Reject(RejectCode.BAD_BASE64, "a data: URI must be data:TYPE;base64,DATA")
            return Source(data=_decode_base64(text, match.start(2)))
        if text.startswith(("http://", "https://")):
            return self._fetch_url(text)
        if TAR_MARK in text[:_MAX_PATH_LENGTH] and not self.is_file(text):
            path, name = text.split(TAR_MARK, 1)
            return _member(self.locate(path + TAR_MARK[:-1]), name)
        if io.REMOTE_MARK in text[:32] and not io.is_local(text):
            return self._remote(text)
        if "\0" in text or not _is_unicode(text):
            character = "a NUL" if "\0" in text else "half of a character (a lone surrogate)"
            raise Reject(RejectCode.MEDIA_NOT_FOUND, f"{_short(text)}: no such file: the name holds {character}")
        source = self._find(io.local_path(text))
        if source is not None:
            return source
        if len(text) <= _MAX_PATH_TEXT or text.startswith("file://"):
            raise self._not_found(text)
        return self._read_base64(text)

    def places(self, reference: Any) -> list[Place]:
        """Where `locate` will look first for a media item, or for each of a list of frames, if that is in a store."""
        if isinstance(reference, list | tuple):
            return [place for part in reference for place in self.places(part)]
        if isinstance(reference, dict):
            reference = None if reference.get("bytes") else reference.get("path") or reference.get("url")
        if isinstance(reference, MemberName):
            return [] if io.is_local(reference.tar) else [Place(reference.tar, reference.member, "", -1)]
        if not isinstance(reference, str) or TAR_MARK in reference[:_MAX_PATH_LENGTH]:
            return []
        text = reference.strip()
        if not text or len(text) > _MAX_PATH_TEXT or text.startswith(("data:", "http://", "https://")):
            return []
        if io.REMOTE_MARK in text[:32] and not io.is_local(text):
            return [Place(text, None, "", -1)] if self._allows(text) else []
        base = self._folders()[0]
        if io.is_local(base) or ".." in text.split("/") or text.startswith("/") or not _is_unicode(text):
            return []
        return [Place(io.join(base, text), None, "", -1)]

    def _allows(self, uri: str) -> bool:
        """Whether a URI lies in one of the allowed folders, by its spelling."""
        roots = [root for root in self._folders() if not io.is_local(root)]
        return ".." not in uri.split("/") and any(uri.startswith(root.rstrip("/") + "/") for root in roots)

    def _not_found(self, text: str) -> Reject:
        """The reject for a path that names no file; a folder or device of that name is mentioned."""
        for folder in self._folders():
            try:
                if io.is_local(folder):
                    kind = file_type(os.stat(self._joined(folder, io.local_path(text))).st_mode)
                    return Reject(RejectCode.MEDIA_NOT_FOUND, f"{_short(text)}: {kind}, not a file")
            except (OSError, ValueError):
                continue  # nothing there, or a name that the system does not accept
        if text.startswith("/"):
            return Reject(RejectCode.MEDIA_NOT_FOUND, f"{_short(text)}: no such file")
        folders = ", ".join(self._folders())
        hint = self._near(text) or "--media-root adds a folder"
        return Reject(RejectCode.MEDIA_NOT_FOUND, f"{_short(text)}: no such file (looked in {folders}); {hint}")

    def _near(self, text: str) -> str:
        """What a path may have meant: other slashes, another suffix, several files; "" where nothing is found.

        In a store nothing is looked for: each try is a request.
        """
        if not all(map(io.is_local, self._folders())):
            return ""
        if "," in text and all(self.is_file(name.strip()) for name in text.split(",")):
            return "several media are a list of names"
        path = text.replace("\\", "/")
        stem, suffix = os.path.splitext(path)
        suffixes = (
            suffix.lower(),
            suffix.upper(),
            *next((group for group in _SUFFIXES if suffix.lower() in group), ()),
        )
        names = (path, *(stem + other for other in suffixes))
        near = next((name for name in names if name != text and self.is_file(name)), "")
        return f"there is {_short(near)}" if near else ""

    def _read_base64(self, text: str) -> Source:
        """Decode a long text that names no file, as the reference does.

        If the result is no known kind of file and the text looks like a path, the reject says that there is no such
        file: a long path that does not exist is the usual reason.
        """
        try:
            data = _decode_base64(text)
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
        if "\0" in text or len(text) > _MAX_PATH_LENGTH or not _is_unicode(text):
            return None
        outside = False
        for folder in self._folders():
            if not io.is_local(folder):
                uri = io.join(folder, text)
                if ".." not in text.split("/") and not text.startswith("/"):
                    source = Source(uri=uri)
                    try:
                        return source.pinned()
                    except Reject as reject:  # the next folder may have it
                        if reject.code != RejectCode.MEDIA_NOT_FOUND:
                            raise
                continue
            path = self._joined(folder, text)
            try:
                if not stat.S_ISREG(os.stat(path).st_mode):
                    continue
            except (OSError, ValueError):
                continue  # nothing there, or a name that the system does not accept
            for root in self._folders():
                if io.is_local(root) and is_inside(path, io.local_path(root)):
                    return Source(path=path, root=root)
            outside = True
        if outside:
            raise Reject(
                RejectCode.MEDIA_OUTSIDE_ROOT,
                f"{_short(text)}: lies outside {', '.join(self._folders())}; allow its folder with --media-root"
                + (f" {os.path.dirname(text)}" if text.startswith("/") else ""),
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
        if not self._allows(uri):
            raise Reject(
                RejectCode.MEDIA_OUTSIDE_ROOT,
                f"{uri}: lies outside {', '.join(self._folders())}; allow its folder with --media-root "
                f"{uri.rpartition('/')[0]}",
            )
        return Source(uri=uri).pinned()

    def _fetch_url(self, url: str) -> Source:
        from omniprep.io.http_client import fetch_url, shown

        if not self.allow_http:
            raise Reject(RejectCode.MEDIA_URL_FORBIDDEN, f"{shown(url)}: URLs are fetched only with --allow-http")
        return Source(data=fetch_url(url))


_tars: BoundedCache[str, dict[str, Member | None]] = BoundedCache(64 << 20, lambda members: 200 * len(members) + 200)
"""Members of the tars that rows name, by key of the tar; None for a name that two members have."""


def _member(tar: Source, name: str) -> Source:
    """A member of a tar as a source; the tar's headers are read once a process."""
    members = _tars.get(tar.key)
    if members is None:
        members = {}
        try:
            with tar.open() if tar.path is not None else io.open_input(tar.uri or "") as file:
                for entry in members_of(file, tar.label):
                    members[entry.name] = None if entry.name in members else entry
        except OSError as error:
            raise Reject(RejectCode.MEDIA_FETCH_FAILED, f"{tar.label}: {error.strerror or error}") from error
        except OmniprepError as error:
            raise Reject(RejectCode.BAD_MEDIA, str(error)) from error
        _tars.put(tar.key, members)
    if name not in members:
        hint = did_you_mean(name, members)
        raise Reject(RejectCode.MEDIA_NOT_FOUND, f"{_short(f'{tar.label}!{name}')}: the tar has no such member{hint}")
    member = members[name]
    if member is None:
        raise Reject(RejectCode.BAD_MEDIA, f"{_short(f'{tar.label}!{name}')}: the tar has two members of that name")
    return replace(tar, member=member).pinned()


def _is_unicode(text: str) -> bool:
    """Whether a text has no lone surrogate (half of a character, as strings that were cut have)."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _looks_like_a_path(text: str) -> bool:
    """Whether a text was probably meant as a path: it begins like one, or has characters that base64 lacks."""
    return len(text) <= _MAX_PATH_LENGTH and (
        not _BASE64.fullmatch(text) or re.match(r"(/|\.{1,2}/|~|[A-Za-z]:[\\/])", text) is not None
    )


_PIECE = 4 << 20
"""Characters decoded at a time; the text may be hundreds of MB, and slicing off its header would copy it."""


def _decode_base64(text: str, start: int = 0) -> bytes:
    """Decode text[start:], or reject it with bad_base64."""
    try:
        buffer = _io.BytesIO()
        for offset in range(start, len(text), _PIECE):
            piece = binascii.a2b_base64(text[offset : offset + _PIECE])
            if offset + _PIECE < len(text) and len(piece) != _PIECE // 4 * 3:
                raise binascii.Error("line breaks or padding inside")
            buffer.write(piece)
        data = buffer.getvalue()
    except (binascii.Error, ValueError):
        try:  # line breaks move the borders between groups of four characters, so the text is decoded in one piece
            data = binascii.a2b_base64(text[start:])
        except (binascii.Error, ValueError) as error:
            raise Reject(RejectCode.BAD_BASE64, f"inline media is not base64: {error}") from error
    if not data:
        raise Reject(RejectCode.BAD_BASE64, "inline media is empty")
    return data


def _short(text: str, limit: int = 120) -> str:
    return text if len(text) <= limit else text[: limit - 20 if limit > 40 else limit] + "…"
