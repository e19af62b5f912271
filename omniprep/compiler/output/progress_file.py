"""DIR/plan/progress.json: how far the run is that works in a folder, for `omniprep status` (docs/observability.md).

The driver writes it, from a thread of its own and through the run's fence, so that a run which lost the folder cannot.
It is gone when the work ended well, so a finished dataset has the same files whoever watched its build. A run that
failed leaves it with the reason; a run that was killed leaves it as it last was.
"""

import json
import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from omniprep import io
from omniprep.compiler.output.lease import Lease, LostLeaseError, process_identity
from omniprep.config import Workers
from omniprep.observe.command import end_of, this_command
from omniprep.observe.reporter import Several
from omniprep.observe.totals import Totals
from omniprep.progress import Reporter

PROGRESS = ("plan", "progress.json")
VERSION = 1
SECONDS, STORE_SECONDS = 2.0, 10.0
"""Between two writings; in a store each is four requests."""
REJECT_SECONDS = 5.0
"""Between two tasks whose rejects are read for the file beyond those that are shown: reading them takes a look at the
whole plan of a split."""


class ProgressFile(Totals):
    """Counts, and writes what it counted every few seconds until `close`."""

    def __init__(self, lease: Lease, command: str, workers: Workers, progress: Reporter) -> None:
        super().__init__()
        self.lease, self.command, self.used_workers, self.progress = lease, command, workers, progress
        self.began, self.reported = time.time(), False
        self.uri = io.join(lease.fence.out, *PROGRESS)
        self._rejects_taken = -REJECT_SECONDS
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="omniprep-progress", daemon=True)
        self._thread.start()

    def wants_rejects(self) -> bool:
        """Those of one task every few seconds: the last ones are shown."""
        if time.monotonic() - self._rejects_taken < REJECT_SECONDS:
            return False
        self._rejects_taken = time.monotonic()
        return True

    def event(self, name: str, facts: Mapping[str, Any]) -> None:
        """Count, and learn what --workers auto decided."""
        super().event(name, facts)
        if name == "workers":
            self.used_workers = facts["workers"]

    def record(self, state: str, error: dict[str, Any] | None = None) -> dict[str, Any]:
        """The content of the file."""
        identity = process_identity()
        with self.lock:
            left = {name: stage.total - stage.done for name, stage in self.stages.items() if stage.total is not None}
            running = [name for name, stage in self.stages.items() if stage.running]
            return {
                "version": VERSION,
                "command": self.command,
                "arguments": this_command.arguments,
                "folder": os.getcwd(),
                "state": state,
                "error": error,
                "token": self.lease.fence.token,
                "host": identity["host"],
                "pid": identity["pid"],
                "generation": self.lease.generation,
                "began": round(self.began, 3),
                "time": round(time.time(), 3),
                "workers": self.used_workers,
                "stages": [
                    {"state": "running" if stage.running else "done", **stage.facts()} for stage in self.stages.values()
                ],
                "rejects_by_code": self.rejects_by_code(),
                "last_rejects": list(self.rejects),
                "tasks": [status._asdict() for status in self.statuses],
                "queue": {
                    "running": len(self.statuses),
                    "waiting": sum(left[name] for name in running if name in left),
                },
            }

    def write(self, state: str, error: dict[str, Any] | None = None) -> None:
        """Write the file; LostLeaseError where the folder is not this run's any more."""
        io.make_folder(io.join(self.lease.fence.out, PROGRESS[0]))  # datasets that were pulled have no such folder
        with io.changes_through(self.lease.fence.out, self.lease.fence):
            io.write_atomic(self.uri, json.dumps(self.record(state, error)).encode())

    def close(self, error: BaseException | None) -> None:
        """End the writing: the file goes, or says what ended the run."""
        self._stop.set()
        self._thread.join()
        if error is None:
            io.remove(self.uri)
        elif not isinstance(error, LostLeaseError):
            name, facts = end_of(error)
            try:
                self.write(name, facts)
            except (OSError, LostLeaseError) as fault:  # what ended the run is told, not this
                self._report(fault)

    def _keep(self) -> None:
        # The first is not written at once, so that a build of a moment leaves the disk alone.
        while not self._stop.wait(SECONDS if io.is_local(self.uri) else STORE_SECONDS):
            try:
                self.write("running")
            except LostLeaseError:  # the driver's next change says so
                return
            except OSError as error:  # the next may work; what matters shows itself when a shard is written
                self._report(error)

    def _report(self, error: Exception) -> None:
        if not self.reported:
            self.reported = True
            self.progress.message(f"{self.uri}: cannot be written, so omniprep status shows an older state ({error})")


@contextmanager
def kept_progress(lease: Lease, command: str, workers: Workers, progress: Reporter) -> Iterator[Reporter]:
    """A reporter that shows on `progress` and keeps progress.json, within a block that holds the lease."""
    file = ProgressFile(lease, command, workers, progress)
    took = {"host": lease.previous.host, "pid": lease.previous.pid} if lease.previous is not None else None
    progress.event("lease_taken", {"out": lease.fence.out, "token": lease.fence.token, "from": took})
    try:
        yield Several(progress, file)
    except BaseException as error:  # told, and raised again
        ending, name = error, "lease_released"
        try:
            lease.check()
        except LostLeaseError as lost:  # what else went wrong in a folder of another run is that run's work
            ending, name = lost, "lease_lost"
        file.close(ending)
        progress.event(name, {"out": lease.fence.out, "token": lease.fence.token})
        raise
    file.close(None)
    progress.event("lease_released", {"out": lease.fence.out, "token": lease.fence.token})
