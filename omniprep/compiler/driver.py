"""What build and repack have in common: one process at a time in a folder, the same work goes on where it stopped, and
whatever goes wrong ends in one line.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from omniprep import io
from omniprep.compiler.output.folder import BuildIdentity, finished, generation_of, os_errors_as_one_line, prepare
from omniprep.compiler.output.holder import LEASE
from omniprep.compiler.output.lease import Lease, hold
from omniprep.compiler.output.ownfiles import stale_objects, sweep
from omniprep.compiler.output.progress_file import PROGRESS, kept_progress
from omniprep.config import BuildConfig
from omniprep.errors import Terminated
from omniprep.progress import Reporter


def run_in_folder(
    config: BuildConfig, identity: BuildIdentity, progress: Reporter,
    work: Callable[[Lease, Reporter], dict[str, Any]],
    report: Callable[[], None] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Write a dataset into `config.out`, or go on with the one that is under way there; returns its manifest.

    Args:
        config: Options; `out` and `overwrite` are looked at here.
        identity: What makes this dataset this one (compiler/output/folder.py); a folder with another is refused.
        progress: Shows what was done before.
        work: Does what is left and returns the manifest, which it writes last; given the reporter to use.
        report: Writes report.html, which `work` does too; called where a run was killed between the two.

    Raises:
        OmniprepError: The folder holds something else, another process is at work there, or a disk fails.
    """
    done = f"{config.out}: already built with these options and inputs; nothing to do"
    with os_errors_as_one_line(config.out), stopped_by_signal():
        manifest = finished(config, identity)
        if manifest is not None and not _is_left_over(config.out, report is not None):
            progress.message(done)
            return manifest
        with hold(config.out, progress.message) as lease:
            manifest = finished(config, identity)  # by a run that was still at work a moment ago
            if manifest is None:
                lease.generation = prepare(config, identity, lease.fence.token)
                stale = stale_objects(config.out, lease.generation)
                # Not before `prepare`, which refuses folders of others: nothing is written there.
                with kept_progress(lease, identity.command, config.workers, progress) as shown:
                    manifest, done = work(lease, shown), ""
            else:
                stale = stale_objects(config.out, generation_of(config.out))
                if report is not None and not io.exists(io.join(config.out, "report.html")):
                    report()
                io.remove(io.join(config.out, *PROGRESS))  # of a run that was killed at its very end
            sweep(config.out)
            for uri in stale:
                io.remove(uri)
        if done:
            progress.message(done)
        return manifest


def _is_left_over(out: str, with_report: bool) -> bool:
    """Whether something of a run that was killed at its very end lies beside a finished dataset, or its last file is
    absent.
    """
    names = io.list_folder(out)
    if LEASE in names or (with_report and "report.html" not in names):
        return True
    return any(name.endswith(".tmp") for name in names) or bool(stale_objects(out, generation_of(out)))


@contextmanager
def stopped_by_signal() -> Iterator[None]:
    """SIGTERM ends the block as Ctrl-C does, with its clean-up (only in the main thread; elsewhere nothing changes)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: object) -> None:
        raise Terminated(signal.Signals(number).name)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
