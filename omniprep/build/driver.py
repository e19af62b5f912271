"""What build and repack have in common: one process at a time in a folder, the same work goes on where it stopped, and
whatever goes wrong ends in one line.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from omniprep import io
from omniprep.build.folder import finished, prepare, sweep, told
from omniprep.build.lease import NAME as LEASE
from omniprep.build.lease import Lease, hold
from omniprep.config import BuildConfig
from omniprep.errors import Terminated
from omniprep.progress import Reporter

__all__ = ["run_in_folder", "stopped_by_signal"]


def run_in_folder(
    config: BuildConfig, identity: dict[str, Any], progress: Reporter, work: Callable[[Lease], dict[str, Any]],
    report: Callable[[], None] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Write a dataset into `config.out`, or go on with the one that is under way there; returns its manifest.

    Args:
        config: Options; `out` and `overwrite` are looked at here.
        identity: What makes this dataset this dataset (omniprep/build/folder.py); one that is other is refused.
        progress: Told what was done before.
        work: Does what is left and returns the manifest, which it writes last.
        report: Writes report.html, which `work` does too; called where a run was killed between the two.

    Raises:
        OmniprepError: The folder holds something else, another process is at work there, or a disk fails.
    """
    with told(config.out), stopped_by_signal():
        if (manifest := finished(config, identity)) is not None:
            if io.exists(io.join(config.out, LEASE)):  # of a run that was killed at its very end, or that begins anew
                with hold(config.out, progress.message):
                    pass
            sweep(config.out)
            if report is not None and not io.exists(io.join(config.out, "report.html")):
                report()
            progress.message(f"{config.out}: already built with these options and inputs; nothing to do")
            return manifest
        with hold(config.out, progress.message) as lease:
            prepare(config, identity)
            return work(lease)


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
