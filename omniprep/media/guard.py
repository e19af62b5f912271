"""The one place where what a media library raises becomes a reject.

A damaged file makes decoders raise almost anything: Pillow's plugins alone raise ZeroDivisionError, struct.error,
AttributeError, NotImplementedError and zlib.error. A list of types is never complete, and `except Exception` would
call our own defects damaged files. So it is told by where the exception was raised: in a frame of the library (or of
what the library calls), it is the file's fault; in a frame of omniprep, it goes on as it is.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from omniprep.errors import OmniprepError, Reject, RejectCode

_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
# Objects of this process in a library's message ("<_io.BufferedReader name=7>", "... at 0x7f..."): rejected.jsonl must
# be the same in every build.
_OBJECT = re.compile(r"'?(<_io\.[^<>]*>|<[^<>]* at 0x[0-9a-fA-F]+>|/dev/fd/\d+)'?")

# FFmpeg's numbers, and the number of an open file in place of its name.
_NUMBERS = re.compile(r"\[Errno \d{5,}\] |: '\d*'$")
_PLAINLY = {
    "Internal psf_fseek() failed.": "the file is cut or damaged, or of a kind in which libsndfile cannot move about"
}
"""Messages of libraries that say nothing to a reader, and what they mean."""

_PREFIX = re.compile(r"^\s*\[[\d:]+\] \S+:\d+: *")
"""What decord writes before a message: the time, and a line of its own source."""


@contextmanager
def library_faults(label: str, code: RejectCode) -> Iterator[None]:
    """Call a media library on a file inside the block; what it raises rejects the row.

    Args:
        label: What the file is called in messages.
        code: Of the reject.

    Raises:
        Reject: With `code`.
    """
    try:
        yield
    except (Reject, OmniprepError):
        raise
    except Exception as error:
        if not raised_by_library(error):
            raise
        raise Reject(code, f"{label}: {said(error)}") from error


def said(error: Exception) -> str:
    """What a library's exception says, on one line and without anything that differs from run to run."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    text = " ".join(_PREFIX.sub("", lines[-1]).split()) if lines else ""
    text = _NUMBERS.sub("", _OBJECT.sub("the file", text))[:300]
    text = _PLAINLY.get(text, text)
    plain = isinstance(error, OSError | ValueError | RuntimeError) and text
    return text if plain else f"{type(error).__name__}: {text}".rstrip(": ")


def raised_by_library(error: Exception) -> bool:
    """Whether an exception was raised outside omniprep: its innermost frame is none of ours."""
    trace: TracebackType | None = error.__traceback__
    filename = ""
    while trace is not None:
        filename = trace.tb_frame.f_code.co_filename
        trace = trace.tb_next
    return not filename.startswith(_PACKAGE)
