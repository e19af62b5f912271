"""What this machine may give to a build: the CPUs of this process, by its affinity and its control group."""

import math
import os
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")
_OWN_CGROUP = Path("/proc/self/cgroup")


def available_cpus() -> int:
    """CPUs that this process may use at once, at least 1.

    The least of the machine's CPUs, this process's affinity (`taskset`, Slurm), and the quota of each control group
    above it (Docker's `--cpus`, the CPU limit of Kubernetes). A quota of 2.5 CPUs counts as 2: a third worker would
    have the others throttled half of the time.
    """
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.floor(min(affinity, _cgroup_quota())))


def _cgroup_quota() -> float:
    """CPUs that the control groups of this process may use; infinite where no group has a quota."""
    try:
        lines = _OWN_CGROUP.read_text().splitlines()
    except OSError:  # not Linux, or no /proc
        return math.inf
    quotas = [math.inf]
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:  # version 2: one tree for all controllers
            quotas += [_quota_v2(folder) for folder in _up_to_root(_CGROUPS, path)]
        elif "cpu" in controllers.split(","):
            quotas += [_quota_v1(folder) for folder in _up_to_root(_CGROUPS / "cpu", path)]
    return min(quotas)


def _up_to_root(root: Path, path: str) -> list[Path]:
    """A control group's folder and those above it: a limit of any of them holds.

    Inside a container the path may be that of the host, which is not mounted there: the root then is the container's.
    """
    relative = Path(path.lstrip("/"))
    return [root / folder for folder in (relative, *relative.parents)] if ".." not in relative.parts else [root]


def _quota_v2(folder: Path) -> float:
    try:
        quota, period = (folder / "cpu.max").read_text().split()
        return math.inf if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):  # no such group, or no quota
        return math.inf


def _quota_v1(folder: Path) -> float:
    try:
        quota = int((folder / "cpu.cfs_quota_us").read_text())
        return math.inf if quota <= 0 else quota / int((folder / "cpu.cfs_period_us").read_text())
    except (OSError, ValueError, ZeroDivisionError):
        return math.inf
