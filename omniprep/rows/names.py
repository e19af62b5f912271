"""Names in folders and patterns: which are hidden, and what braces stand for."""

import os
import re

from omniprep import io
from omniprep.errors import OmniprepError

_BRACES = re.compile(r"\{(?:(\d+)\.\.(\d+)|([^{},]*(?:,[^{},]*)+))\}")


def expand_braces(pattern: str) -> list[str]:
    """Names that a pattern with {000..099} or {a,b} stands for, as in shells; one without gives itself."""
    match = _BRACES.search(pattern)
    if match is None or (io.is_local(pattern) and os.path.lexists(pattern)):
        return [pattern]
    first, last, words = match.groups()
    parts = words.split(",") if words else [str(n).zfill(len(first)) for n in range(int(first), int(last) + 1)]
    if not parts:
        raise OmniprepError(f"{pattern}: {match[0]} is an empty range")
    head, tail = pattern[: match.start()], pattern[match.end() :]
    return [name for part in parts for name in expand_braces(head + part + tail)]


def hidden_parts(path: str) -> int:
    """Number of hidden names in a path: those that begin with a dot (as for `datasets` and globs), and folders that
    begin with an underscore (`__MACOSX`; Spark's `_temporary`, where failed writes remain).
    """
    *folders, name = path.split(io.REMOTE_MARK, 1)[-1].split("/")
    hidden = sum(part.startswith(("_", ".")) and part.strip(".") != "" for part in folders)
    return hidden + (name.startswith(".") and name.strip(".") != "")
