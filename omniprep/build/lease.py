"""One build at a time in a folder: a small file that says who works there, with a sign of life.

    {"token", "host", "boot", "pid", "started", "beat", "time"}

A process of the same machine is asked for directly (pid and start time), so a build that was killed is followed at
once. Another machine's lease counts as alive until its last sign is `STALE` seconds old by our clock and, since
clocks differ, does not move while we watch for `WATCH` seconds. Locally the file is made with O_EXCL; on object
stores, which may lack that, it is written and read back, and who reads another's token gives way. No lock is held: a
lease that is lost stops the build that lost it.
"""

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omniprep import io
from omniprep.errors import OmniprepError

NAME = "lease.json"
BEAT = 20.0
"""Seconds between signs of life."""
STALE = 180.0
WATCH = 3 * BEAT
SETTLE = 1.0
"""Seconds after which a lease on a remote store is read back."""


class Lease:
    """A held lease; `check` says whether it is still ours."""

    def __init__(self, uri: str, entry: dict[str, Any]) -> None:
        """Begin to give signs of life."""
        self._uri, self._entry = uri, entry
        self._stop = threading.Event()
        self._lost = ""
        self._thread = threading.Thread(target=self._beat, name="omniprep-lease", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise where another build has taken the folder.

        Raises:
            OmniprepError: It has.
        """
        if self._lost:
            raise OmniprepError(self._lost)

    def _beat(self) -> None:
        while not self._stop.wait(BEAT):
            try:
                found = _read(self._uri)
                if found is not None and found["token"] != self._entry["token"]:
                    self._lost = f"{_where(self._uri)}: {_who(found)} has taken over; this build stops"
                    return
                self._entry |= {"beat": self._entry["beat"] + 1, "time": time.time()}
                io.write_atomic(self._uri, json.dumps(self._entry).encode())
            except OSError as error:  # the next beat may work; what matters shows itself when a shard is written
                self._entry["error"] = str(error)

    def release(self) -> None:
        """End the signs of life and remove the file."""
        self._stop.set()
        self._thread.join(timeout=BEAT)
        found = _read(self._uri)
        if found is not None and found["token"] == self._entry["token"]:
            io.remove(self._uri)


@contextmanager
def hold(out: str, say: Callable[[str], None] = lambda text: None) -> Iterator[Lease]:
    """Be the only build in a folder.

    Args:
        out: The folder; made where it is absent.
        say: Told while another machine's lease is watched.

    Raises:
        OmniprepError: Another build is at work there.
        OSError: The folder cannot be written.
    """
    io.make_folder(out)
    uri = io.join(out, NAME)
    entry = {"token": uuid.uuid4().hex, **_ourselves(), "beat": 0, "time": time.time()}
    found = _read(uri)
    if found is not None:
        _wait_for_death(uri, found, say)
    _take(uri, entry, found)
    lease = Lease(uri, entry)
    try:
        yield lease
    finally:
        lease.release()


def _take(uri: str, entry: dict[str, Any], dead: dict[str, Any] | None) -> None:
    data = json.dumps(entry).encode()
    if io.is_local(uri) and dead is None:
        try:
            number = os.open(io.local_path(uri), os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        except FileExistsError:
            raise OmniprepError(f"{_where(uri)}: another build began there at the same moment") from None
        with os.fdopen(number, "wb") as file:
            file.write(data)
        return
    io.write_atomic(uri, data)
    time.sleep(0.1 if io.is_local(uri) else SETTLE)
    found = _read(uri)
    if found is None or found["token"] != entry["token"]:
        raise OmniprepError(f"{_where(uri)}: another build began there at the same moment")


def _wait_for_death(uri: str, found: dict[str, Any], say: Callable[[str], None]) -> None:
    """Return when the holder of a lease is dead.

    Raises:
        OmniprepError: It lives, or cannot be told from one that does.
    """
    us = _ourselves()
    if (found["host"], found["boot"]) == (us["host"], us["boot"]):
        if _started(found["pid"]) == found["started"]:
            raise OmniprepError(
                f"{_where(uri)}: another build is at work there ({_who(found)}); wait for it, or choose another --out"
            )
        return
    age = time.time() - found["time"]
    if 0 <= age < STALE:
        raise OmniprepError(
            f"{_where(uri)}: another build is at work there ({_who(found)}; its last sign of life is {age:.0f} s old). "
            f"If that machine is gone, try again in {STALE - age:.0f} s"
        )
    say(f"{_where(uri)}: {_who(found)} gave no sign of life for long; watching for {WATCH:.0f} s whether it does")
    end = time.monotonic() + WATCH
    while time.monotonic() < end:
        time.sleep(min(1.0, WATCH / 4))
        now = _read(uri)
        if now is None:
            return
        if (now["token"], now["beat"]) != (found["token"], found["beat"]):
            raise OmniprepError(f"{_where(uri)}: another build is at work there ({_who(now)})")


def _read(uri: str) -> dict[str, Any] | None:
    try:
        data = io.read_bytes(uri)
    except FileNotFoundError:
        return None
    try:
        entry: dict[str, Any] = json.loads(data)
        if {"token", "host", "boot", "pid", "started", "beat", "time"} <= entry.keys():
            return entry
    except (ValueError, AttributeError):
        pass
    # Half-written by a process that died in between: as good as one of another machine that is long dead.
    return {"token": "", "host": "unknown", "boot": "", "pid": 0, "started": 0, "beat": 0, "time": 0.0}


def _ourselves() -> dict[str, Any]:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        boot = ""
    return {"host": socket.gethostname(), "boot": boot, "pid": os.getpid(), "started": _started(os.getpid())}


def _started(pid: int) -> int:
    """When a process started, in clock ticks since boot; 0 where there is none, -1 where the system does not tell."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[19])
    except FileNotFoundError:
        if Path("/proc/self/stat").exists():
            return 0
    except (OSError, IndexError, ValueError):
        return -1
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return 0
    except PermissionError:
        return -1
    return -1


def _where(uri: str) -> str:
    return uri.removesuffix(NAME).rstrip("/") or "."


def _who(entry: dict[str, Any]) -> str:
    return f"process {entry['pid']} on {entry['host']}"
