"""From the bytes of a JSON file to its text: what it is compressed with, its encoding, and lines of bounded length.

Files that are not UTF-8 are recognized by their first bytes and read as what they are (UTF-16 and UTF-32, with or
without a byte order mark); nothing is guessed line by line. Compressed files are read as streams: a file that is cut,
or has something behind its end, stops the build, and no line is held that is longer than the limit.
"""

import codecs
import gzip
import io as _io
import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, Literal

from omniprep import io
from omniprep.errors import OmniprepError

__all__ = ["MAX_LINE_BYTES", "Form", "find_form", "next_line", "open_file", "open_text"]

MAX_LINE_BYTES = 1 << 30
"""Longest line (or element of a JSON array) by default: inline media of a row may be hundreds of MB."""
_HEAD = 64 << 10
_BUFFER = 1 << 20
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_OTHERS = (
    (b"\x1f\x8b", "gzip data; its name must end in .gz"),
    (b"\x28\xb5\x2f\xfd", "zstd data; its name must end in .zst"),
    (b"PK\x03\x04", "a zip archive; unpack it"),
    (b"BZh", "bzip2 data; unpack it, or compress with gzip or zstd"),
    (b"\xfd7zXZ\x00", "xz data; unpack it, or compress with gzip or zstd"),
    (b"PAR1", "Parquet; its name must end in .parquet"),
    (b"version https://git-lfs.github.com/spec/", "a Git LFS pointer and not the file itself; run git lfs pull"),
)
Form = Literal["lines", "values"]


def open_file(uri: str) -> BinaryIO:
    """Open an input.

    Raises:
        OmniprepError: It cannot be opened; says why.
    """
    try:
        return io.open_input(uri)
    except OSError as error:
        raise OmniprepError(f"{uri}: {error.strerror or error}") from error


@contextmanager
def open_text(uri: str, codec: str = "", encoding: str = "") -> Iterator[BinaryIO]:
    """A JSON file as UTF-8 bytes; without codec and encoding it can seek.

    Args:
        uri: The file.
        codec: "gz", "zst" or nothing.
        encoding: Of `find_form`; nothing for UTF-8.

    Raises:
        OmniprepError: It cannot be opened; and, from any read in the block, that it is damaged.
    """
    with open_file(uri) as file:
        plain = _decompressed(file, uri, codec)
        yield _Recoded.buffered(plain, uri, encoding) if encoding else plain


class _Damage(_io.RawIOBase):
    """A stream of decompressed bytes whose faults are told as the file's.

    Each library has its own exceptions for a file that is cut or altered; what they have in common is that the rows
    behind that place are lost, so the build must stop.
    """

    def __init__(self, stream: Any, uri: str, codec: str) -> None:
        self._stream, self._uri, self._codec = stream, uri, codec

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._stream.read(len(buffer))
        except (OSError, EOFError, RuntimeError, ValueError, zlib.error) as error:
            if isinstance(error, OSError) and error.errno is not None:  # of the disk or store, not of the data
                raise OmniprepError(f"{self._uri}: cannot be read: {error}") from error
            if "requires too much memory" in str(error):  # libzstd's limit for streams, and Arrow has no option for it
                raise OmniprepError(
                    f"{self._uri}: compressed with a window of more than 128 MiB (zstd --long or --ultra); compress it "
                    "again: zstd -d --long=31 -c OLD | zstd > NEW"
                ) from error
            raise OmniprepError(f"{self._uri}: damaged as {self._codec}: {error}") from error
        buffer[: len(data)] = data
        return len(data)


def _decompressed(file: BinaryIO, uri: str, codec: str) -> BinaryIO:
    if not codec:
        return file
    if not file.read(1):
        raise OmniprepError(f"{uri}: damaged as {codec}: the file is empty, and not even the header is there")
    file.seek(0)
    if codec == "gz":
        stream: Any = gzip.GzipFile(fileobj=file)
    else:
        import pyarrow as pa

        # Arrow's stream tells a frame that is cut; the one of python-zstandard ends there as if the file did.
        stream = pa.CompressedInputStream(pa.PythonFile(file, mode="r"), "zstd")
    return _io.BufferedReader(_Damage(stream, uri, codec), _BUFFER)


class _Recoded(_io.RawIOBase):
    """A text in another encoding, as UTF-8."""

    def __init__(self, file: BinaryIO, uri: str, encoding: str) -> None:
        self._file, self._uri, self._encoding = file, uri, encoding
        self._decoder = codecs.getincrementaldecoder(encoding)()
        self._left, self._begun = b"", False

    @classmethod
    def buffered(cls, file: BinaryIO, uri: str, encoding: str) -> BinaryIO:
        """One that lines can be read from."""
        return _io.BufferedReader(cls(file, uri, encoding), _BUFFER)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = b"."
        while data and not self._left:
            data = self._file.read(_HEAD)
            try:
                text = self._decoder.decode(data, final=not data)
                text = text if self._begun else text.removeprefix("\ufeff")
                self._left = text.encode()
            except UnicodeError as error:
                what = f"{self._uri}: begins as {self._encoding.upper()}, but is not: {error}; save it as UTF-8"
                raise OmniprepError(what) from error
            self._begun = self._begun or bool(text)
        part, self._left = self._left[: len(buffer)], self._left[len(buffer) :]
        buffer[: len(part)] = part
        return len(part)


def find_form(uri: str, codec: str, suffix: Literal["jsonl", "json"], size: int) -> tuple[Form, str]:
    """What a JSON file holds, whatever its name says, as the reference's loader finds out too.

    Args:
        uri: The file.
        codec: Of its name: "gz", "zst" or nothing.
        suffix: Of its name. A .json file is lines only where the first line alone is an object and more follow; a
            .jsonl file is none only where its first value is an array, or ends on another line than the first, or
            shares that with the next one.
        size: Its bytes, where it is not compressed: one request then gives its first ones.

    Returns:
        "lines", or "values" (an array, or objects over several lines); and the encoding, empty for UTF-8.

    Raises:
        OmniprepError: It is no JSON at all, or damaged.
    """
    if codec:
        with open_text(uri, codec) as file:
            head = file.read(_HEAD)
    else:
        head = _first_bytes(uri, min(size, _HEAD))
    for mark, what in _OTHERS:
        if head.startswith(mark):
            raise OmniprepError(f"{uri}: is {what}")
    encoding = _encoding(head)
    if encoding:
        with open_text(uri, codec, encoding) as file:
            head = file.read(_HEAD)
    text = head.removeprefix(codecs.BOM_UTF8).lstrip(b" \t\r\n")
    if suffix == "jsonl":
        return ("values" if text.startswith(b"[") or not _is_lines(text) else "lines"), encoding
    line, _, rest = text.partition(b"\n")
    return ("lines" if rest.strip() and _is_object(line) else "values"), encoding


def _first_bytes(uri: str, count: int) -> bytes:
    try:
        return io.read_range(uri, 0, count) if count else b""
    except OSError as error:
        raise OmniprepError(f"{uri}: {error.strerror or error}") from error


def _encoding(head: bytes) -> str:
    """The encoding that the first bytes of a JSON text show; empty for UTF-8.

    JSON begins with an ASCII letter, which has zero bytes beside it in UTF-16 and UTF-32 (RFC 4627, section 3).
    """
    for mark, name in _MARKS:
        if head.startswith(mark):
            return name
    return "" if b"\0" not in head[:4] else json.detect_encoding(head).removesuffix("-sig").replace("utf-8", "")


def _is_lines(head: bytes) -> bool:
    """Whether a text that begins with an object has one a line; the reference takes any space between two.

    Not so for indented objects (`jq .`), for lines that end in CR alone, and for objects that stand side by side. Where
    the first value is damaged, or longer than what was read, its line is one to reject.
    """
    line, _, rest = head.partition(b"\n")
    if line.strip() == b"{" and rest:  # indented, however long the object is
        return False
    text = head.decode(errors="replace")
    try:
        _, end = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        return True
    after = text[end:].split("\n", 1)[0].lstrip()
    return "\n" not in text[:end] and not after.startswith("{")


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line.decode()), dict)
    except (ValueError, RecursionError):
        return False


def next_line(file: BinaryIO, limit: int) -> tuple[bytes | None, int]:
    """The next line, and how many bytes it takes with its end; (b"", 0) at the end of the file.

    Args:
        file: To read from.
        limit: Most bytes of a line, its end not counted. A longer one is read past piece by piece, of which no more
            than that many bytes are held, and None stands for it.
    """
    pieces: list[bytes] = []
    size, ended = 0, False
    while not ended and (piece := file.readline(_BUFFER)):
        size += len(piece)
        ended = piece.endswith(b"\n")
        pieces.append(piece)
        if size - ended > limit:
            pieces.clear()
    return (b"".join(pieces) if size - ended <= limit else None), size
