"""The Ray that a build runs on: joined or started when the first task needs it, and what its nodes can hold.

Ray takes seconds to start and each of its workers seconds to import what tasks need, so nothing here starts it before
a stage has work for it.
"""

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from omniprep.compiler.run.machine import available_cpus
from omniprep.config import Workers
from omniprep.errors import OmniprepError

THREADS = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS"), "1")
ENVIRONMENT = {**THREADS, "TOKENIZERS_PARALLELISM": "false", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
OBJECT_STORE_BYTES = 256 << 20
"""Of a Ray that is started here: a fixed bound, since tasks and receipts are small and bins never travel."""
START_SECONDS = 10.0
"""Until Ray and its workers have started and imported what tasks need; measured on 2 cores: 8 to 12."""
LONG_SECONDS = 60.0
"""Work that goes to Ray whatever the number of CPUs: there a decoder that dies costs a row, and here it ends the
build."""
REACH_SECONDS = 10.0
"""For the head of a cluster to take a connection. Ray itself tries an address that nobody answers for ever."""
_HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
"""What every gRPC client sends first: the preface of HTTP/2, and settings without an entry (RFC 9113, 3.4)."""
_HTTP2_SETTINGS = b"\x04"
"""Type of the frame that a server of HTTP/2 must send first."""
PATIENCE_SECONDS = 900.0
"""A build whose every task fits on no node waits so long for a node that does: autoscalers bring one within minutes."""
REMIND_SECONDS = 60.0


@dataclass
class _Session:
    """The Ray of the build under way; at most one a process, as Ray itself is."""

    address: str | None
    named: bool
    """Whether the user named the address for this build, and not the environment."""
    ours: bool = False
    """Whether Ray was initialized by this session, which then shuts it down."""


_session: _Session | None = None


@contextmanager
def ray_session(workers: Workers, address: str | None) -> Iterator[None]:
    """A block whose tasks may run on Ray: the one that this process has, a cluster's, or one that is started here.

    Ray is initialized when the first task needs it (`start_ray`) and shut down after the block, if it was so
    initialized. A session within a session is part of it.

    Args:
        workers: As `BuildConfig.workers`; 0 never needs Ray.
        address: As `BuildConfig.ray_address`. None: the cluster that RAY_ADDRESS names, else one that is started here.
    """
    global _session
    if _session is not None or workers == 0:
        yield
        return
    _session = _Session(address or os.environ.get("RAY_ADDRESS") or None, named=bool(address))
    try:
        yield
    finally:
        ended, _session = _session, None
        if ended.ours:
            import ray

            ray.shutdown()


def start_ray(workers: int) -> None:
    """Initialize Ray with the session's address, or a local one of `workers` CPUs; nothing where that was done."""
    import ray

    if ray.is_initialized():
        return
    session = _session
    assert session is not None, "tasks run on Ray within a ray_session"
    options: dict[str, Any] = {"include_dashboard": False, "log_to_driver": False, "logging_level": "ERROR"}
    options["runtime_env"] = {"env_vars": ENVIRONMENT}
    address = session.address or "local"  # not one that happens to run on this machine
    if address == "local":
        options |= {"num_cpus": workers, "object_store_memory": OBJECT_STORE_BYTES}
    else:
        _reach(address)
    handler = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address=address, **options)
    except (ConnectionError, RuntimeError, ValueError) as error:
        said = " ".join(str(error).split())
        ray.shutdown()  # of what was begun
        raise OmniprepError(
            f"Ray cannot be started or reached ({address}): {said}; --workers 0 needs no Ray"
        ) from error
    session.ours = True
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)  # Ray puts its own, which ends the process without a word


def _reach(address: str) -> None:
    """Fail in one line where no Ray head takes connections at an address; Ray would try for ever, and log each try."""
    host, mark, port = address.rpartition("://")[2].rpartition(":")
    if address == "auto" or not mark or not port.isdigit():
        return  # Ray looks for a cluster on this machine, or says what is wrong with the address
    hint = "is its head node up (ray status), and the port open from here?"
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=REACH_SECONDS) as connection:
            if os.environ.get("RAY_USE_TLS") == "1":
                return
            connection.sendall(_HTTP2_PREFACE)
            answer = connection.recv(9, socket.MSG_WAITALL)
    except (OSError, OverflowError) as error:
        raise OmniprepError(f"Ray cannot be reached at {address}: {error}; {hint}") from error
    if answer[3:4] != _HTTP2_SETTINGS:
        raise OmniprepError(
            f"Ray cannot be reached at {address}: what answers there is no Ray head; give the port of `ray start "
            "--head` (6379 unless --port says another), not that of the dashboard"
        )


def count_workers(wanted: Workers, seconds: Sequence[float]) -> int:
    """How many workers run the tasks of a stage; 0: this process.

    Args:
        wanted: As `BuildConfig.workers`. auto: the CPUs of the cluster or of this machine, or this process where Ray
            would take longer to start than it saves.
        seconds: What each task that is left takes a core, about.
    """
    if not seconds:
        return 0
    if wanted != "auto":
        return wanted
    session = _session
    assert session is not None, "tasks run on Ray within a ray_session"
    if not (session.ours or session.named or _is_worth_it(seconds, session)):
        return 0
    start_ray(available_cpus())
    return cluster_cpus()


def _is_worth_it(seconds: Sequence[float], session: _Session) -> bool:
    """Whether Ray ends the tasks sooner than this process, its start included; and long work in any case."""
    work = sum(seconds)
    if session.address in (None, "local") and not _is_initialized():
        workers = min(available_cpus(), len(seconds))
    else:
        workers = len(seconds)  # as many as a cluster has: to know it, this process would have to join it first
    return work > LONG_SECONDS or work > START_SECONDS + work / workers


def _is_initialized() -> bool:
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


def planned_workers(wanted: Workers, address: str | None) -> int:
    """Workers that a build of these options would have if it is a long one, at least 1."""
    if wanted != "auto":
        return max(wanted, 1)
    if not address and os.environ.get("RAY_ADDRESS", "local") == "local":
        return available_cpus()
    with ray_session(wanted, address):
        start_ray(available_cpus())
        return cluster_cpus()


def cluster_cpus() -> int:
    """CPUs of all nodes that are there now; at least 1, since an autoscaling cluster may begin with none."""
    import ray

    return max(1, int(ray.cluster_resources().get("CPU", 0)))


def is_local() -> bool:
    """Whether Ray runs on this machine alone, and was started for this build: no node can join it."""
    return _session is not None and _session.ours and _session.address in (None, "local")


def largest_memory() -> int:
    """Bytes of memory that the largest node of the cluster has for tasks."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return int(max((resources.get("memory", 0) for resources in nodes), default=0))


class UnmetDemand:
    """Tells of tasks that no node of the cluster could ever run, and ends the build where none comes that could.

    Such tasks stay with Ray meanwhile: that is what an autoscaler looks at.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._since: float | None = None
        self._told = -REMIND_SECONDS

    def check(self, demands: Iterable[int]) -> None:
        """Look at the memory (bytes) that each task under way demands, beside its CPU."""
        import ray

        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        sizes = [resources.get("memory", 0) for resources in nodes if resources.get("CPU", 0) >= 1]
        largest = max(sizes, default=-1)
        demanded = list(demands)
        if not demanded or max(demanded) <= largest:
            self._since = None
            return
        now = time.monotonic()
        self._since = now if self._since is None or min(demanded) <= largest else self._since
        has = f"the largest has {largest / 2**30:.1f} GiB" if sizes else "none has a CPU"
        missing = (
            f"no node of the Ray cluster has 1 CPU and {max(demanded) / 2**30:.1f} GiB of memory for a task ({has})"
        )
        if now - self._since > PATIENCE_SECONDS:
            raise OmniprepError(
                f"{missing}, for {PATIENCE_SECONDS / 60:g} minutes; start one. What is finished stays: the same "
                "command again goes on from here"
            )
        if now - self._told >= REMIND_SECONDS:
            self._told = now
            self._say(f"{missing}; waiting for one")
