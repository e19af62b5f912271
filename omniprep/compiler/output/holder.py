"""Reads a lease: who works in a folder. The file may be anything: cut off, forged, of another version."""

import hashlib
import json
import math
from dataclasses import dataclass
from functools import lru_cache

from omniprep import io

LEASE = "lease.json"
MOST_BYTES = 1 << 16
"""A longer file is no lease."""
_SHOWN = 64


@dataclass(frozen=True, slots=True)
class Holder:
    """Who works in the folder, by its lease. A file that is no lease (a process died while it wrote it) counts as one
    of an unknown machine whose last sign of life is long ago.
    """

    content: str
    """Hash of the whole file: another one is a sign of life."""
    token: str = ""
    host: str = "unknown"
    boot: str = ""
    pidns: str = ""
    pid: int = 0
    started: int = 0
    time: float = 0.0

    def __str__(self) -> str:
        """For messages."""
        return f"process {self.pid} on {self.host[:_SHOWN]}"


def read_holder(uri: str) -> Holder | None:
    """What a lease says; None where there is none."""
    try:
        return parse(io.read_range(uri, 0, MOST_BYTES) if io.is_local(uri) else io.read_bytes(uri))
    except FileNotFoundError:
        return None


_STRINGS, _NUMBERS = ("token", "host", "boot"), ("pid", "started", "beat")


@lru_cache(maxsize=8)  # the lease is read before each file appears, and mostly says what it said before
def parse(data: bytes) -> Holder:
    """What the bytes of a lease say; whatever is no lease is a `Holder` that is unknown and long dead."""
    content = hashlib.sha256(data).hexdigest()
    try:
        entry = json.loads(data) if len(data) < MOST_BYTES else None
    except (ValueError, RecursionError):
        entry = None
    if not isinstance(entry, dict):
        return Holder(content)
    numbers = [entry.get(name) for name in _NUMBERS]
    moment, pidns = entry.get("time"), entry.get("pidns", "")
    if (
        all(isinstance(entry.get(name), str) for name in _STRINGS)
        and isinstance(pidns, str)
        and all(isinstance(number, int) and not isinstance(number, bool) for number in numbers)
        and isinstance(moment, int | float)
        and not isinstance(moment, bool)
        and abs(moment) < 1e12
        and math.isfinite(moment)
        and 0 < entry["pid"] < 1 << 32
    ):
        token, host, boot = (entry[name] for name in _STRINGS)
        return Holder(content, token, host, boot, pidns, entry["pid"], entry["started"], float(moment))
    return Holder(content)
