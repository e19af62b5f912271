"""Find the rows of a task that crash the worker: they are tried one after another in a process of their own.

A task whose process died is done again in two passes. First a child process (compiler/isolate/child.py) goes through
all rows and says which it begins; where it dies, hangs or grows beyond its limit, the row is given a fresh process to
itself, and one that fails there too is rejected (decoder_crash, decode_timeout, decode_memory). Then the task is done
as always, without those rows: so every other row has the bytes it always has, and a death that had another cause (a
lost node, a full machine) costs only time. The price is a second decode of one split or shard and two process starts
for every crashing row.
"""

import dataclasses
import json
import math
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from omniprep.child_process import child_environment
from omniprep.compiler.run.tasks import Task
from omniprep.config import BuildConfig
from omniprep.errors import OmniprepError, Reject, RejectCode

START_SECONDS = 900.0
"""For a child to import what it needs and to make the family."""
_POLL = 0.05
_SHARE = 0.8
"""Of the memory that is free when the child starts."""


@dataclass(slots=True)
class _Child:
    process: "subprocess.Popen[bytes]"
    report: int
    errors: IO[bytes]


@dataclass(slots=True)
class ChildOutcome:
    """How a child ended: after all rows, or at a row, which has the reject as its reason."""

    row: int | None = None
    reject: Reject | None = None


def find_crashing_rows(task: Task, config: BuildConfig) -> dict[int, Reject]:
    """Rows of a task (by their number in it) that cannot be done in any process.

    None may take longer than `decode_timeout` (seconds), nor its process hold more than `decode_memory` (bytes).
    """
    rejects: dict[int, Reject] = {}
    start = 0
    while True:
        outcome = _try_from(task, start, config.decode_timeout or math.inf, config.decode_memory)
        if outcome.row is None:
            return rejects
        if outcome.row == start:  # the first row of a fresh process: nothing else can be to blame
            assert outcome.reject is not None
            rejects[start] = outcome.reject
            start += 1
        else:
            start = outcome.row


def _try_from(task: Task, start: int, timeout: float, memory: int) -> ChildOutcome:
    child = _start(task, start)
    try:
        return _follow(child, timeout, min(memory, int(_SHARE * free_memory())))
    finally:
        child.process.kill()
        child.process.wait()
        os.close(child.report)
        child.errors.close()


def _task_as_json(task: Task) -> str:
    """The task's class and fields, without its fence: the child writes nothing."""
    fields = dataclasses.asdict(dataclasses.replace(task, fence=None))
    return json.dumps({"class": type(task).__name__, **fields})


def _start(task: Task, start: int) -> _Child:
    report, childs_end = os.pipe()
    errors = tempfile.TemporaryFile(prefix="omniprep-trial-")  # noqa: SIM115  # outlives this function
    code = f"from omniprep.compiler.isolate.child import main; main({childs_end})"
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=errors,
        stderr=errors,
        pass_fds=(childs_end,),
        env=child_environment(),
    )
    os.close(childs_end)
    assert process.stdin is not None
    try:
        with process.stdin as pipe:
            pipe.write(f"{start}\n{_task_as_json(task)}".encode())
    except BrokenPipeError:
        pass  # it died at once: `_follow` finds that out, and says why
    return _Child(process, report, errors)


def _follow(child: _Child, timeout: float, memory: int) -> ChildOutcome:
    row, since, buffer = None, time.monotonic(), b""
    while True:
        ready, _, _ = select.select([child.report], [], [], _POLL)
        if ready:
            block = os.read(child.report, 1 << 16)
            if not block:
                return _outcome_of_death(child, row)
            *lines, buffer = (buffer + block).split(b"\n")
            for line in lines:
                event = json.loads(line)
                if "done" in event:
                    return ChildOutcome()
                if event.get("memory"):
                    return _rejected(row, RejectCode.DECODE_MEMORY, "asked for more memory than there is")
                row, since = event.get("row"), time.monotonic()
        limit = START_SECONDS if row is None else timeout
        if time.monotonic() - since > limit:
            if row is None:
                raise OmniprepError(f"a process to try rows in did not start within {limit:g} s")
            return _rejected(row, RejectCode.DECODE_TIMEOUT, f"did not end within {timeout:g} s")
        if row is not None and resident(child.process.pid) > memory:
            return _rejected(row, RejectCode.DECODE_MEMORY, f"took more than {memory >> 20} MiB")


def _rejected(row: int | None, code: RejectCode, what: str) -> ChildOutcome:
    return ChildOutcome(row, Reject(code, f"decoding the row's media {what}"))


def _outcome_of_death(child: _Child, row: int | None) -> ChildOutcome:
    status = child.process.wait()
    if row is None:
        child.errors.seek(0)
        lines = child.errors.read()[-2000:].decode(errors="replace").strip().splitlines()
        raise OmniprepError(
            f"a process to try rows in cannot start (exit status {status}): {lines[-1] if lines else 'it said nothing'}"
        )
    if status == -signal.SIGKILL:  # nobody here did it: the machine was out of memory
        return _rejected(row, RejectCode.DECODE_MEMORY, "made the system kill the process (out of memory)")
    how = signal.Signals(-status).name if status < 0 else f"exit status {status}"
    return _rejected(row, RejectCode.DECODER_CRASH, f"ended the process ({how})")


def resident(pid: int) -> int:
    """Bytes of memory that a process holds; 0 where the system does not tell."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError, ValueError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def free_memory() -> int:
    """Bytes that this process and its children may still take: of the machine, or of the control group if less."""
    free = 1 << 62
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                free = int(line.split()[1]) << 10
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        if limit != "max":
            free = min(free, int(limit) - int(Path("/sys/fs/cgroup/memory.current").read_text()))
    except (OSError, ValueError, IndexError):
        return free
    return max(free, 256 << 20)
