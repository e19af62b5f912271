"""What keeps a run that lost its folder from changing it, however long it slept and wherever it wakes.

Asking "is the folder still mine?" and then renaming a file into it are two steps, and a process can be stopped between
them (SIGSTOP, a suspended machine, a pause of minutes in a store's client). So the second step fails by itself:

*Local folders.* Each run has a folder of its own beside the dataset, `run-TOKEN.tmp`. Every file is written there and
renamed to its name; every file that goes is renamed into it first. Whoever takes the folder over removes the folders of
all other runs (`close_others`) before it looks at anything. A rename from or into a folder that was removed fails
(ENOENT), and a rename that was under way is done before the removal is, or never. So after the removal nothing of the
old run can appear or vanish, and what the new run then sees is what stays. The file system decides; no clock enters.

*Stores.* They have no rename. Each change asks for the lease first, and is made on a condition (io/gate.py): an
object is created only where there is none, replaced or removed only where it is the one that was looked at. A build
that begins anew over another one gives its shards, receipts and plans names of its own (`generation`), so an old run
cannot hit them even where a store knows no conditions.
"""

import os
import re
import shutil
import uuid
from dataclasses import dataclass, field, replace

from omniprep import io
from omniprep.compiler.output.holder import LEASE, read_holder
from omniprep.errors import OmniprepError

RUN = re.compile(r"run-[0-9a-f]{32}\.tmp")
"""Name of a run's own folder."""
CLOSE_TRIES = 100
"""A run that is still alive may put a file into its folder while it is removed; each of its tries ends in one file."""


class LostLeaseError(OmniprepError):
    """Another run has taken the folder over, or its lease is gone; this run changes nothing any more."""


@dataclass(frozen=True, slots=True)
class Fence:
    """The right of one run to change one folder: a `Gate` that can be sent to workers."""

    out: str
    token: str = field(default_factory=lambda: uuid.uuid4().hex)
    replaced: str = ""
    """Hash of the dead lease that this run's took the place of. Where a store shows that one still, its view is late:
    a run that wakes writes another one, never the same again.
    """
    folder: str = ""
    """Part of the name of the run's own folder; "": the token."""

    @property
    def staging(self) -> str:
        """As `Gate.staging`."""
        return os.path.join(io.local_path(self.out), f"run-{self.folder or self.token}.tmp")

    def check(self) -> None:
        """As `Gate.check`: LostLeaseError unless the lease has this run's token, and its folder is there."""
        folder = self.out.rstrip("/") or "."
        holder = read_holder(io.join(self.out, LEASE))
        if holder is None:
            raise LostLeaseError(
                f"{folder}: {LEASE} is gone, so another run may have begun there; this one stops. The same command "
                "again goes on"
            )
        if holder.content == self.replaced and not io.is_local(self.out):
            return
        if holder.token != self.token:
            raise LostLeaseError(f"{folder}: {holder} has taken over; this build stops")
        if io.is_local(self.out) and not os.path.isdir(self.staging):
            raise LostLeaseError(
                f"{folder}: another build has removed {os.path.basename(self.staging)}; this one stops"
            )

    def open(self) -> None:
        """Make the run's own folder (local folders only)."""
        if io.is_local(self.out):
            os.mkdir(self.staging)

    def renewed(self) -> "Fence":
        """The same right with another folder: this fence loses it (FileNotFoundError: it was lost before)."""
        fresh = replace(self, folder=uuid.uuid4().hex)
        if io.is_local(self.out):
            os.rename(self.staging, fresh.staging)
        return fresh

    def close(self) -> None:
        """Remove the run's own folder with what is left in it."""
        if io.is_local(self.out):
            _remove_run(self.staging)

    def close_others(self) -> None:
        """Remove the folders of all other runs; none of them can change anything any more once this returns."""
        if not io.is_local(self.out):
            return
        for name in io.list_folder(self.out):
            path = os.path.join(io.local_path(self.out), name)
            if RUN.fullmatch(name) and path != self.staging:
                _remove_run(path)


def _remove_run(path: str) -> None:
    for _ in range(CLOSE_TRIES):
        shutil.rmtree(path, ignore_errors=True)
        if not os.path.lexists(path):
            return
    os.rmdir(path)  # raises the error that rmtree ignored
