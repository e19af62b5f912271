"""Turns what media libraries raise into rejects.

A damaged file makes decoders raise almost anything: Pillow's plugins alone raise ZeroDivisionError, struct.error,
AttributeError, NotImplementedError and zlib.error. A list of types is never complete, and `except Exception` would
blame files for our own bugs. What decides is where the exception was raised: in a frame of a library, the file is to
blame; in a frame of omniprep, the exception is a bug and propagates.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from omniprep.errors import OmniprepError, Reject, RejectCode

_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
# Objects in a library's message ("<_io.BufferedReader name=7>", "... at 0x7f...") differ from run to run, but
# rejected.jsonl must be the same in every build.
_OBJECT = re.compile(r"'?(<_io\.[^<>]*>|<[^<>]* at 0x[0-9a-fA-F]+>|/dev/fd/\d+)'?")
# FFmpeg's error numbers, and a file descriptor where the message would have a file name.
_NUMBERS = re.compile(r"\[Errno \d{5,}\] |: '\d*'$")
# decord begins a message with the time and a line of its own source.
_PREFIX = re.compile(r"^\s*\[[\d:]+\] \S+:\d+: *")
_PLAIN_TEXTS = {
    "Internal psf_fseek() failed.": "the file is cut or damaged, or of a kind in which libsndfile cannot move about"
}
"""What a library's internal message means."""


@contextmanager
def library_faults(label: str, code: RejectCode) -> Iterator[None]:
    """Turn what a media library raises in the block into a reject with `code`."""
    try:
        yield
    except (Reject, OmniprepError):
        raise
    except Exception as error:
        if not raised_by_library(error):
            raise
        raise Reject(code, f"{label}: {said(error)}") from error


def said(error: Exception) -> str:
    """The message of a library's exception on one line, without anything that differs from run to run."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    text = " ".join(_PREFIX.sub("", lines[-1]).split()) if lines else ""
    text = _NUMBERS.sub("", _OBJECT.sub("the file", text))[:300]
    text = _PLAIN_TEXTS.get(text, text)
    speaks_for_itself = isinstance(error, OSError | ValueError | RuntimeError) and text
    return text if speaks_for_itself else f"{type(error).__name__}: {text}".rstrip(": ")


def raised_by_library(error: Exception) -> bool:
    """Whether the innermost frame of an exception's traceback lies outside omniprep."""
    trace: TracebackType | None = error.__traceback__
    filename = ""
    while trace is not None:
        filename = trace.tb_frame.f_code.co_filename
        trace = trace.tb_next
    return not filename.startswith(_PACKAGE)
