"""One run at a time in a folder: a small file that says who works there, with a sign of life.

    {"token", "host", "boot", "pidns", "pid", "started", "beat", "time"}

A process of the same machine is looked up (pid and start time), so a run that was killed is followed at once.
The same machine means the same host name, boot and namespace of process ids: two containers of one machine, even of
one host name, are two machines here, since neither sees the processes of the other. Another machine's lease counts as
alive until its last sign is `STALE` seconds old by our clock and, since clocks differ and jump, does not change while
we watch for `WATCH` seconds by a clock that cannot jump.

The lease only informs. The fence (compiler/output/fence.py) makes sure that a run which was taken for dead, and is not,
changes nothing any more. A lease that is gone is lost: the run that had it never writes it anew.
"""

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from omniprep import io
from omniprep.compiler.output.fence import Fence, LostLeaseError
from omniprep.compiler.output.holder import LEASE, Holder, parse, read_holder
from omniprep.compiler.output.ownfiles import FOLDERS
from omniprep.errors import OmniprepError
from omniprep.shards.names import refuse_linked_folders

__all__ = ["NAME", "Lease", "LostLeaseError", "hold", "liveness"]

NAME = LEASE
BEAT = 20.0
"""Seconds between signs of life."""
STALE = 180.0
WATCH = 3 * BEAT
SETTLE = 1.0
"""Seconds after which a lease on a remote store is read back."""


class Lease:
    """A held lease.

    Attributes:
        fence: The right that goes with it; workers need it too.
        generation: Part of the names of the files that this run writes (compiler/output/folder.py); set by `prepare`.
        previous: Whose dead lease this one took the place of.
    """

    def __init__(self, fence: Fence, entry: dict[str, Any], previous: Holder | None = None) -> None:
        """Begin to give signs of life."""
        self.fence, self.generation, self.previous = fence, "", previous
        self._uri, self._entry = io.join(fence.out, NAME), entry
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="omniprep-lease", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise LostLeaseError where the folder is not this run's any more."""
        self.fence.check()

    def _beat(self) -> None:
        while not self._stop.wait(BEAT):
            try:
                self.beat()
            except LostLeaseError:  # the next change, or check, says so
                return
            except OSError as error:  # the next beat may work; what matters shows itself when a shard is written
                self._entry["error"] = str(error)[:100]

    def beat(self) -> None:
        """Give a sign of life; LostLeaseError where the lease is gone or another's, which stays as it is."""
        self.fence.check()
        self._entry |= {"beat": self._entry["beat"] + 1, "time": time.time()}
        data = json.dumps(self._entry).encode()
        if io.is_local(self._uri):
            with io.changes_through(self.fence.out, self.fence):
                io.write_atomic(self._uri, data)
        elif not io.swap(self._uri, data, lambda content: parse(content).token == self.fence.token):
            self.fence.check()

    def release(self) -> None:
        """End the signs of life, and remove the file and the run's own folder."""
        self._stop.set()
        self._thread.join(timeout=BEAT)
        fence = self.fence
        try:
            fence = fence.renewed()  # a sign of life that is still under way comes to nothing
            with io.changes_through(fence.out, fence):
                io.remove(self._uri)
        except (LostLeaseError, FileNotFoundError):
            return  # what lies there is another's
        finally:
            fence.close()


@contextmanager
def hold(out: str, say: Callable[[str], None] = lambda text: None) -> Iterator[Lease]:
    """Be the only run in a folder; within the block, in this thread, the folder is changed through the fence.

    Refused where another run is at work, or a folder of the dataset is a link; `say` tells of another machine's lease.
    Whatever the block finds wrong in a folder that it lost is the other run's work: it ends with LostLeaseError then.
    """
    io.make_folder(out)
    if io.is_local(out):
        refuse_linked_folders(Path(out), FOLDERS)
    uri = io.join(out, NAME)
    dead = read_holder(uri)
    if dead is not None:
        dead = _wait_for_death(uri, dead, say)
    fence = Fence(out, replaced="" if dead is None else dead.content)
    entry = {"token": fence.token, **process_identity(), "beat": 0, "time": time.time()}
    fence.open()
    try:
        _take(uri, fence, entry, dead)
        lease = Lease(fence, entry, dead)
    except BaseException:
        fence.close()
        raise
    try:
        with io.changes_through(out, fence):
            try:
                yield lease
            except Exception:
                lease.check()
                raise
    finally:
        lease.release()


def _take(uri: str, fence: Fence, entry: dict[str, Any], dead: Holder | None) -> None:
    data = json.dumps(entry).encode()
    if io.is_local(uri):
        if dead is not None:
            _put_aside(uri, fence, dead)
        _create(uri, fence, data)
        fence.close_others()
        # A run that was taken for dead may have given a sign of life just before; it cannot any more.
        if not _is_ours(uri, fence):
            _write_ours(uri, fence, data)
        return
    # The store lets one of several create it, or replace what they saw; one that cannot is read back after a while.
    if not io.swap(uri, data, None if dead is None else lambda content: parse(content) == dead):
        raise _lost_race(uri)
    time.sleep(SETTLE)
    try:
        fence.check()
    except LostLeaseError:
        raise _lost_race(uri) from None


def _is_ours(uri: str, fence: Fence) -> bool:
    holder = read_holder(uri)
    return holder is not None and holder.token == fence.token


def _put_aside(uri: str, fence: Fence, dead: Holder) -> None:
    """Of several runs that found the same dead lease, one gets hold of the file."""
    aside = os.path.join(fence.staging, "dead")
    if read_holder(uri) != dead:
        raise _lost_race(uri)
    try:
        os.replace(io.local_path(uri), aside)
    except FileNotFoundError:
        raise _lost_race(uri) from None
    if read_holder(aside) != dead:  # of a run that was quicker by that much: it gets it back, or stops where it cannot
        with suppress(OSError):
            os.link(aside, io.local_path(uri))
        raise _lost_race(uri)


def _create(uri: str, fence: Fence, data: bytes) -> None:
    """Make the lease, whole from the first moment, where there is none."""
    path, ready = io.local_path(uri), os.path.join(fence.staging, "lease")
    try:
        Path(ready).write_bytes(data)
        try:
            os.link(ready, path)
        except (FileExistsError, FileNotFoundError):
            raise
        except OSError:  # a file system without hard links
            with os.fdopen(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY), "wb") as file:
                file.write(data)
    except (FileExistsError, FileNotFoundError):  # another run was quicker: the lease is there, or our folder is gone
        raise _lost_race(uri) from None


def _write_ours(uri: str, fence: Fence, data: bytes) -> None:
    ready = os.path.join(fence.staging, "lease-again")
    try:
        Path(ready).write_bytes(data)
        os.replace(ready, io.local_path(uri))
    except FileNotFoundError:
        raise _lost_race(uri) from None


def _lost_race(uri: str) -> OmniprepError:
    return OmniprepError(f"{_folder(uri)}: another build began there at the same moment")


def _wait_for_death(uri: str, holder: Holder, say: Callable[[str], None]) -> Holder | None:
    """Return the holder of a lease when it is dead, None when its lease has gone; refuse a live one."""
    found, age = liveness(holder), time.time() - holder.time
    if found == "alive":
        raise OmniprepError(
            f"{_folder(uri)}: another build is at work there ({holder}); wait for it, or choose another --out"
        )
    if found == "dead":
        return holder
    if found == "fresh":
        raise OmniprepError(
            f"{_folder(uri)}: another build is at work there ({holder}; its last sign of life is {age:.0f} s old). "
            f"If that machine is gone, try again in {STALE - age:.0f} s"
        )
    say(f"{_folder(uri)}: {holder} gave no sign of life for long; watching for {WATCH:.0f} s whether it does")
    end = time.monotonic() + WATCH
    while time.monotonic() < end:
        time.sleep(min(1.0, WATCH / 4))
        now = read_holder(uri)
        if now is None:
            return None
        if now.content != holder.content:
            raise OmniprepError(f"{_folder(uri)}: another build is at work there ({now})")
    return holder


def liveness(holder: Holder) -> Literal["alive", "dead", "fresh", "stale"]:
    """Whether the process of a lease lives: alive or dead where it can be looked up, which is on its own machine; else
    fresh or stale, by the age of its last sign of life.
    """
    ours = process_identity()
    same_machine = (holder.host, holder.boot, holder.pidns) == (ours["host"], ours["boot"], ours["pidns"])
    if ours["pidns"] and same_machine:
        started = _started(holder.pid)
        return "alive" if started and started == holder.started else "dead"
    return "fresh" if 0 <= time.time() - holder.time < STALE else "stale"


def process_identity() -> dict[str, Any]:
    """What tells this process from any other: host, boot, namespace of process ids, id and start time."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        boot = ""
    return {
        "host": socket.gethostname(),
        "boot": boot,
        "pidns": process_namespace(),
        "pid": os.getpid(),
        "started": _started(os.getpid()),
    }


def process_namespace() -> str:
    """Id of the namespace of our process ids; "" where it cannot be read, and then no process is ever looked up."""
    if not sys.platform.startswith("linux"):
        return "one"  # systems without such namespaces
    try:
        if os.readlink("/proc/self") != str(os.getpid()):
            return ""  # this /proc shows the processes of another namespace
        return f"{os.stat('/proc/self/ns/pid').st_dev}:{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return ""


def _started(pid: int) -> int:
    """When a process started, in clock ticks since boot; 0 where there is none, or one that is dead and whose parent
    has not asked for its end; -1 where it cannot be read.
    """
    try:
        facts = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        return 0 if facts[0] in ("Z", "X") else int(facts[19])
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


def _folder(uri: str) -> str:
    return uri.removesuffix(NAME).rstrip("/") or "."
