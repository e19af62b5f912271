"""Run a stage's tasks: in this process, or on Ray workers that stay warm; results come as they finish.

A worker that dies under a task costs that task a second try, which finds the rows that crash the worker
(compiler/isolate/crashing_rows.py). In this process a mark beside the plan takes that part: a task whose mark exists
was running when the process before this one died.

At most two tasks a worker are submitted at a time, so memory is bounded by the workers and not by the corpus. Each
demands a CPU and the memory that it may hold, so no node gets more than it can do. Numbers that a shard's bytes depend
on are computed on one thread everywhere.
"""

import dataclasses
import os
import re
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from omniprep import io
from omniprep.compiler.output.manifest import versions
from omniprep.compiler.run.cluster import UnmetDemand, cluster_cpus, is_local, largest_memory, start_ray
from omniprep.compiler.run.tasks import Receipt, Task
from omniprep.compiler.run.worker_status import SECONDS, ProgressPoller, Show, progress_listener, ray_listener
from omniprep.errors import OmniprepError, unforeseen
from omniprep.garbage import collect_seldom, collect_young
from omniprep.progress import WorkerStatus

TRIES = 4
"""Attempts at one task: one normal, the rest isolated."""
TASK_MEMORY = 1 << 30
"""Bytes that a task demands of its node beside what its stage says: Python, torch and a tokenizer with 0.8 GiB at
most, and the largest chunk of rows (tests/test_memory.py)."""
MEMORY_STEP = 256 << 20
"""Demands are multiples of it: Ray keeps a queue for each demand that differs."""
LEAST_SUBMITTED = 16
"""With --workers auto in a cluster, so that one which begins with no node grows by more than a CPU at a time."""
LOOK_SECONDS = 5.0
"""Between two looks at the cluster while no task ends."""


@contextmanager
def single_threaded() -> Iterator[None]:
    """One thread for torch's kernels inside the block, also where torch is first imported there."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    on_import = _LimitTorch()
    if "torch" in sys.modules:
        on_import.limit()
    else:  # rows of text and pictures may not need it, and its import takes longer than planning a small input
        sys.meta_path.insert(0, on_import)
    try:
        yield
    finally:
        if on_import in sys.meta_path:
            sys.meta_path.remove(on_import)
        on_import.restore()


class _LimitTorch(MetaPathFinder):
    """Sets torch to one thread as soon as it is imported."""

    def __init__(self) -> None:
        self._before: int | None = None

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Find torch as Python would, and limit it once its module has run."""
        if fullname != "torch":
            return None
        sys.meta_path.remove(self)
        spec = find_spec(fullname)
        if spec is None or spec.loader is None:
            return spec
        run = spec.loader.exec_module

        def run_and_limit(module: ModuleType) -> None:
            run(module)
            self.limit()

        spec.loader.exec_module = run_and_limit  # type: ignore[method-assign]
        return spec

    def limit(self) -> None:
        """One thread from now on."""
        import torch

        self._before = torch.get_num_threads()
        torch.set_num_threads(1)

    def restore(self) -> None:
        """As many threads as torch had."""
        if self._before is not None:
            import torch

            torch.set_num_threads(self._before)


def run_tasks(
    tasks: Sequence[Task], workers: int, marks: Sequence[str], say: Callable[[str], None], show: Show | None = None,
    memory: Sequence[int] = (), *, grow: bool = False,
) -> Iterator[tuple[int, Receipt]]:  # fmt: skip
    """Run tasks, by Ray or here (0 workers), and yield (index, receipt) in order of completion.

    Args:
        tasks: What to run, in this order.
        workers: How many run at once.
        marks: A file name for each task that may end this process, which is given up after `TRIES`.
        say: Takes a line on what is tried again.
        show: Takes the status of each worker.
        memory: Bytes that each task holds beside `TASK_MEMORY`, about.
        grow: Whether `workers` becomes the CPUs of the Ray cluster when nodes come or go.
    """
    if workers > 0:
        yield from _run_on_ray(tasks, workers, say, show, memory, grow)
        return
    listener = None if show is None else lambda *report: show([WorkerStatus("", *report)])
    with single_threaded(), progress_listener(listener):
        for index, task in enumerate(tasks):
            yield index, _run_marked(task, marks[index], say) if marks else _run(task)


def _run(task: Task) -> Receipt:
    with io.changes_through(task.out, task.fence):
        return task.run()


def _run_marked(task: Task, mark: str, say: Callable[[str], None]) -> Receipt:
    if io.exists(mark):
        say("the run before this one ended in the middle of a task; its rows are tried one by one")
        task = _isolated(task)
    io.write_atomic(mark, b"")
    try:
        return _run(task)
    finally:  # whatever Python can still see is no death of the process
        io.remove(mark)


def _isolated(task: Task) -> Task:
    return dataclasses.replace(task, isolate=True)


def _run_on_ray(
    tasks: Sequence[Task], workers: int, say: Callable[[str], None], show: Show | None, memory: Sequence[int],
    grow: bool,
) -> Iterator[tuple[int, Receipt]]:  # fmt: skip
    start_ray(workers)
    import ray

    poller = ProgressPoller(show) if show else None
    actor = poller.actor if poller else None
    demands = _demands(len(tasks), memory, say)
    unmet = UnmetDemand(say)
    # No retries by Ray: it would run into the same file again, and a retry here knows what to look for. SPREAD, since
    # Ray else fills one node before it takes the next, and tasks share its disk and network.
    remote = ray.remote(num_cpus=1, max_retries=0, scheduling_strategy="SPREAD")(_worker_function())
    running: dict[Any, int] = {}
    deaths = Counter[int]()
    queue = iter(enumerate(tasks))
    limit, looked = _most_submitted(workers, grow), time.monotonic()

    def submit(index: int, task: Task) -> None:
        running[remote.options(memory=demands[index]).remote(task, index, actor)] = index

    try:
        while True:
            while len(running) < limit and (entry := next(queue, None)) is not None:
                submit(*entry)
            if not running:
                return
            ready, _ = ray.wait(list(running), num_returns=1, timeout=SECONDS if poller else LOOK_SECONDS)
            if poller:
                poller.poll(set(running.values()))
            if time.monotonic() - looked > LOOK_SECONDS:
                looked = time.monotonic()
                limit = _most_submitted(cluster_cpus(), grow) if grow else limit
                unmet.check(demands[index] for index in running.values())
            if not ready:
                continue
            (finished,) = ready
            index = running.pop(finished)
            try:
                receipt = ray.get(finished)
            except ray.exceptions.RayTaskError as error:
                raise _error_of_task(index, error) from error
            except ray.exceptions.LocalRayletDiedError as error:
                raise OmniprepError(
                    "the Ray node of this process is gone; what is finished stays: the same command again goes on"
                ) from error
            except losses_of_nodes() as error:
                say(f"a node was lost ({type(error).__name__}); its task is done again")
                submit(index, tasks[index])
                continue
            except deaths_of_workers() as error:
                deaths[index] += 1
                if deaths[index] == TRIES:
                    raise OmniprepError(
                        f"a worker died {TRIES} times under the same task, also with its rows tried one by one: "
                        f"{_first_line(error)}"
                    ) from None
                say(f"a worker died ({type(error).__name__}); its task is done again, its rows tried one by one")
                submit(index, _isolated(tasks[index]))
                continue
            yield index, receipt
    finally:
        for reference in running:
            ray.cancel(reference, force=False)
        if poller:
            poller.close()


def _most_submitted(workers: int, grow: bool) -> int:
    """Tasks with Ray at once. It runs no more than its CPUs allow; those that wait with it are what an autoscaler sees,
    and spare a worker the way to the driver. Where the user gave a number, no more than that may run in a cluster.
    """
    if is_local():
        return 2 * workers
    return max(2 * workers, LEAST_SUBMITTED) if grow else workers


def _demands(count: int, memory: Sequence[int], say: Callable[[str], None]) -> list[int]:
    """Bytes of memory that each of `count` tasks demands of its node; none more than a Ray that cannot grow has."""
    demands = [TASK_MEMORY + extra for extra in memory or [0] * count]
    demands = [-(-demand // MEMORY_STEP) * MEMORY_STEP for demand in demands]
    if not is_local() or max(demands) <= (most := largest_memory()):
        return demands
    say(
        f"a task may need {max(demands) / 2**30:.1f} GiB of memory, and Ray has {most / 2**30:.1f} GiB here: such "
        "tasks run one at a time"
    )
    return [min(demand, most) for demand in demands]


def _error_of_task(index: int, error: Any) -> Exception:
    """What a task raised on another process, as one line for the user."""
    cause = error.cause
    if isinstance(cause, OmniprepError | OSError | MemoryError):
        return cause
    missing = re.search(r"No module named '([^']+)'", str(error))
    if missing:  # the task could not even be loaded: what raises then is Ray, with the reason in its text
        return OmniprepError(
            f"a node of the Ray cluster has no package {missing[1]}: install there what is installed here"
        )
    return unforeseen(f"task {index}", cause)


def losses_of_nodes() -> tuple[type[BaseException], ...]:
    """What Ray raises where a node went with its tasks: spot machines, autoscaling. No row is to blame."""
    from ray import exceptions

    names = ("NodeDiedError", "ObjectLostError", "OwnerDiedError")
    return tuple(getattr(exceptions, name) for name in names if hasattr(exceptions, name))


def deaths_of_workers() -> tuple[type[BaseException], ...]:
    """What Ray raises for a worker that is gone, perhaps by the row that it decoded."""
    from ray import exceptions

    names = ("WorkerCrashedError", "OutOfMemoryError")
    return tuple(getattr(exceptions, name) for name in names if hasattr(exceptions, name))


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _worker_function() -> Callable[[Task, int, Any], Receipt]:
    driver_folder, wanted = Path.cwd(), dict(versions())

    def run(task: Task, index: int, actor: Any) -> Receipt:
        collect_seldom()
        check_versions(wanted)
        if driver_folder.is_dir():  # relative paths mean the same on a cluster whose nodes have the driver's folder
            os.chdir(driver_folder)
        with single_threaded(), progress_listener(ray_listener(actor, index)):
            try:
                return _run(task)
            finally:
                collect_young()  # not beside what the next task holds

    return run


def check_versions(wanted: Mapping[str, str]) -> None:
    """Fail where this process has other versions than the driver of what shapes the bytes of shards."""
    others = [
        f"{name} {versions().get(name, 'is missing')} (the driver has {wanted.get(name, 'none')})"
        for name in sorted({*wanted, *versions()})
        if versions().get(name) != wanted.get(name)
    ]
    if others:
        raise OmniprepError(
            f"node {socket.gethostname()} would write other bytes: {', '.join(others)}; install the same versions on "
            "all nodes"
        )
