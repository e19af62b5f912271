"""Opens JSON files: compression, encoding, and lines of bounded length.

The encoding is recognized by a file's first bytes (UTF-8, UTF-16 and UTF-32, with or without a byte order mark); it is
not guessed line by line. Compressed files are read as streams. One that is cut, or has bytes behind its end, stops the
build, since the rows behind the damage are lost. No line longer than the limit is held in memory.
"""

import codecs
import gzip
import io as _io
import json
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, Literal

from omniprep import io
from omniprep.errors import OmniprepError

MAX_LINE_BYTES = 1 << 30
"""Default for the longest line (or element of a JSON array); inline media of a row may have hundreds of MB."""
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
"""How a file begins that Git LFS left in place of the real one."""
_HEAD = 64 << 10
"""First bytes of a file by which its form and encoding are recognized."""
_MAGIC: dict[str, tuple[bytes, ...]] = {
    "gz": (b"\x1f\x8b",),
    "zst": (b"\x28\xb5\x2f\xfd", *(bytes([0x50 + number]) + b"\x2a\x4d\x18" for number in range(16))),
}
"""How compressed files begin; of zstd also frames that are to be skipped."""
_BUFFER = 1 << 20
_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16-LE, whose mark is its beginning
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_OTHER_FORMATS = (
    (b"\x1f\x8b", "gzip data; its name must end in .gz"),
    (b"\x28\xb5\x2f\xfd", "zstd data; its name must end in .zst"),
    (b"PK\x03\x04", "a zip archive; unpack it"),
    (b"BZh", "bzip2 data; unpack it, or compress with gzip or zstd"),
    (b"\xfd7zXZ\x00", "xz data; unpack it, or compress with gzip or zstd"),
    (b"PAR1", "Parquet; its name must end in .parquet"),
    (LFS_POINTER, "a Git LFS pointer and not the file itself; run git lfs pull where the data was cloned"),
)
_WEB_PAGE = re.compile(
    rb"\s*(<!--.*?-->\s*)*<(!doctype\s+html|html|head|body|\?xml|error)\b", re.DOTALL | re.IGNORECASE
)
Form = Literal["lines", "values"]


def other_format(head: bytes) -> str:
    """What a file of these first bytes is and what to do about it, where that is no form of rows; else ""."""
    text = head.removeprefix(codecs.BOM_UTF8)
    if _WEB_PAGE.match(text[:4096]):
        return "a web page: an error or login page was probably saved in place of the file; fetch it again"
    return next((name for mark, name in _OTHER_FORMATS if head.startswith(mark)), "")


def refuse_other_format(uri: str) -> None:
    """OmniprepError where a file is none that its name says, but one that is known."""
    with os_errors_named(uri):
        head, size = io.read_head(uri, _HEAD)
    if not size:
        raise OmniprepError(f"{uri}: is empty")
    if other := other_format(head):
        raise OmniprepError(f"{uri}: is {other}")


@contextmanager
def os_errors_named(uri: str) -> Iterator[None]:
    """Turn an OSError of the block into an OmniprepError that names the input."""
    try:
        yield
    except OSError as error:
        raise OmniprepError(f"{uri}: {error.strerror or error}") from error


def open_file(uri: str) -> BinaryIO:
    """Open an input; OmniprepError where it cannot be opened."""
    with os_errors_named(uri):
        return io.open_input(uri)


@contextmanager
def open_text(uri: str, codec: str = "", encoding: str = "") -> Iterator[BinaryIO]:
    """Open a JSON file as UTF-8 bytes; it can seek without `codec` and `encoding` (from `find_form`)."""
    with open_file(uri) as file:
        plain = _decompress(file, uri, codec)
        yield _io.BufferedReader(_Recoder(plain, uri, encoding), _BUFFER) if encoding else plain


class _Decompressor(_io.RawIOBase):
    """A stream of decompressed bytes that raises one exception for a damaged file, whatever library reads it."""

    def __init__(self, stream: Any, uri: str, codec: str) -> None:
        self._stream, self._uri, self._codec = stream, uri, codec

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._stream.read(len(buffer))
        except (OSError, EOFError, RuntimeError, ValueError, zlib.error) as error:
            if isinstance(error, OSError) and error.errno is not None:  # the disk or store failed, not the data
                raise OmniprepError(f"{self._uri}: cannot be read: {error}") from error
            if "requires too much memory" in str(error):  # libzstd's limit for streams, which Arrow cannot raise
                raise OmniprepError(
                    f"{self._uri}: compressed with a window of more than 128 MiB (zstd --long or --ultra); compress it "
                    "again: zstd -d --long=31 -c OLD | zstd > NEW"
                ) from error
            raise OmniprepError(f"{self._uri}: damaged as {self._codec}: {error}") from error
        buffer[: len(data)] = data
        return len(data)


def _decompress(file: BinaryIO, uri: str, codec: str) -> BinaryIO:
    if not codec:
        return file
    head = file.read(_HEAD)
    if not head:
        raise OmniprepError(f"{uri}: damaged as {codec}: the file is empty, and not even the header is there")
    if not head.startswith(_MAGIC[codec]):
        other = f"but {known}" if (known := other_format(head)) else f"so its name must not end in .{codec}"
        raise OmniprepError(f"{uri}: damaged as {codec}: it is no {codec} data, {other}")
    file.seek(0)
    if codec == "gz":
        stream: Any = gzip.GzipFile(fileobj=file)
    else:
        import pyarrow as pa

        # Arrow's stream raises for a frame that is cut; others end there as if the file did.
        stream = pa.CompressedInputStream(pa.PythonFile(file, mode="r"), "zstd")
    return _io.BufferedReader(_Decompressor(stream, uri, codec), _BUFFER)


class _Recoder(_io.RawIOBase):
    """A text file in another encoding, read as UTF-8."""

    def __init__(self, file: BinaryIO, uri: str, encoding: str) -> None:
        self._file, self._uri, self._encoding = file, uri, encoding
        self._decoder = codecs.getincrementaldecoder(encoding)()
        self._left, self._begun = b"", False

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
                message = f"{self._uri}: begins as {self._encoding.upper()}, but is not: {error}; save it as UTF-8"
                raise OmniprepError(message) from error
            self._begun = self._begun or bool(text)
        part, self._left = self._left[: len(buffer)], self._left[len(buffer) :]
        buffer[: len(part)] = part
        return len(part)


def find_form(uri: str, codec: str, suffix: Literal["jsonl", "json"]) -> tuple[Form, str, int]:
    """Find the form and encoding ("" for UTF-8) of a JSON file by its content, as the reference's loader does; and its
    size (0 of compressed files, which are not cut).

    The form is "lines", or "values" (an array, or objects over several lines). The suffix decides unclear cases: a
    .json file has lines only if the first line is an object and more lines follow; a .jsonl file has none only if its
    first value is an array, goes on after the first line, or shares that line with the next value.
    """
    size = 0
    if codec:
        with open_text(uri, codec) as file:
            head = file.read(_HEAD)
    else:
        with os_errors_named(uri):
            head, size = io.read_head(uri, _HEAD)
    if other := other_format(head):
        raise OmniprepError(f"{uri}: is {other}")
    encoding = _encoding(head)
    if encoding:
        with open_text(uri, codec, encoding) as file:
            head = file.read(_HEAD)
    text = head.removeprefix(codecs.BOM_UTF8).lstrip(b" \t\r\n")
    if suffix == "jsonl":
        return ("values" if text.startswith(b"[") or not _is_lines(text) else "lines"), encoding, size
    line, _, rest = text.partition(b"\n")
    return ("lines" if rest.strip() and _is_object(line) else "values"), encoding, size


def find_encoding(uri: str, codec: str) -> str:
    """Encoding of a file of delimited text by its byte order mark; empty for UTF-8."""
    with open_text(uri, codec) as file:
        head = file.read(4)
    return next((name for mark, name in _BYTE_ORDER_MARKS if head.startswith(mark)), "")


def _encoding(head: bytes) -> str:
    """Encoding of a JSON text by its first bytes; empty for UTF-8.

    JSON begins with an ASCII character, which has zero bytes beside it in UTF-16 and UTF-32 (RFC 4627, section 3).
    """
    for mark, name in _BYTE_ORDER_MARKS:
        if head.startswith(mark):
            return name
    return "" if b"\0" not in head[:4] else json.detect_encoding(head).removesuffix("-sig").replace("utf-8", "")


def _is_lines(head: bytes) -> bool:
    """Whether a text that begins with an object has one object a line; the reference allows any space between two.

    False for indented objects (`jq .`), for lines that end in CR alone, and for several objects on a line. True where
    the first value is damaged, or longer than `head`: its line will be rejected when it is read.
    """
    line, _, rest = head.partition(b"\n")
    if line.strip() == b"{" and rest:  # an indented object, which may be longer than `head`
        return False
    text = head.decode(errors="replace")
    try:
        _, end = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        return True
    rest_of_line = text[end:].split("\n", 1)[0].lstrip()
    return "\n" not in text[:end] and not rest_of_line.startswith("{")


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line.decode()), dict)
    except (ValueError, RecursionError):
        return False


def next_line(file: BinaryIO, limit: int) -> tuple[bytes | None, int]:
    """The next line (None: longer than `limit`, skipped), and its size with the line end; (b"", 0) at the end."""
    pieces: list[bytes] = []
    size, ended = 0, False
    while not ended and (piece := file.readline(_BUFFER)):
        size += len(piece)
        ended = piece.endswith(b"\n")
        pieces.append(piece)
        if size - ended > limit:
            pieces.clear()
    return (b"".join(pieces) if size - ended <= limit else None), size
