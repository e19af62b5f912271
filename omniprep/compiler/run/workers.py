"""Run a stage's tasks: in this process, or on Ray workers that stay warm; results come as they finish.

A worker that dies under a task costs that task a second try, which finds the rows that crash the worker
(compiler/isolate/crashing_rows.py). In this process a mark beside the plan takes that part: a task whose mark exists
was running when the process before this one died.

At most two tasks a worker are submitted at a time, so memory is bounded by the workers and not by the corpus. Numbers
that a shard's bytes depend on are computed on one thread everywhere.
"""

import dataclasses
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omniprep import io
from omniprep.compiler.run.tasks import Receipt, Task
from omniprep.compiler.run.worker_status import SECONDS, ProgressPoller, Show, progress_listener, ray_listener
from omniprep.errors import OmniprepError, unforeseen
from omniprep.progress import WorkerStatus

THREADS = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS"), "1")
TRIES = 4
"""Attempts at one task: one normal, the rest isolated."""
ENVIRONMENT = {**THREADS, "TOKENIZERS_PARALLELISM": "false", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}


@contextmanager
def single_threaded() -> Iterator[None]:
    """One thread for torch's kernels inside the block."""
    import torch

    before = torch.get_num_threads()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def ray_session(workers: int, address: str | None) -> Iterator[None]:
    """A Ray to run on: the one that is there already, a cluster's, or a local one of `workers` cores."""
    if workers == 0:
        yield
        return
    import ray

    ours = not ray.is_initialized()
    if ours:
        options: dict[str, Any] = {"include_dashboard": False, "log_to_driver": False, "logging_level": "ERROR"}
        options["runtime_env"] = {"env_vars": ENVIRONMENT}
        if address is None:
            # A fixed bound of the object store: tasks and receipts are small, bins never travel.
            options |= {"num_cpus": workers, "object_store_memory": 256 << 20}
        handler = signal.getsignal(signal.SIGTERM)
        try:
            ray.init(address=address or "local", **options)  # not one that happens to run on this machine
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise OmniprepError(
                f"Ray cannot be started or reached ({address or 'local'}): {error}; --workers 0 needs no Ray"
            ) from error
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)  # Ray puts its own, which ends the process without a word
    try:
        yield
    finally:
        if ours:
            ray.shutdown()


def run_tasks(
    tasks: Sequence[Task], workers: int, marks: Sequence[str], say: Callable[[str], None], show: Show | None = None
) -> Iterator[tuple[int, Receipt]]:
    """Run tasks, by Ray or here (0 workers), and yield (index, receipt) in order of completion.

    `marks` has a file name for each task that may end this process, which is given up after `TRIES`; `say` takes a line
    on what is tried again, `show` the status of each worker.
    """
    if workers > 0:
        yield from _run_on_ray(tasks, workers, say, show)
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
    tasks: Sequence[Task], workers: int, say: Callable[[str], None], show: Show | None
) -> Iterator[tuple[int, Receipt]]:
    import ray

    poller = ProgressPoller(show) if show else None
    actor = poller.actor if poller else None
    # No retries by Ray: it would run into the same file again, and a retry here knows what to look for.
    remote = ray.remote(num_cpus=1, max_retries=0)(_worker_function())
    running: dict[Any, int] = {}
    deaths = Counter[int]()
    queue = iter(enumerate(tasks))
    try:
        while True:
            while len(running) < 2 * workers and (entry := next(queue, None)) is not None:
                index, task = entry
                running[remote.remote(task, index, actor)] = index
            if not running:
                return
            ready, _ = ray.wait(list(running), num_returns=1, timeout=SECONDS if poller else None)
            if poller:
                poller.poll(set(running.values()))
            if not ready:
                continue
            (finished,) = ready
            index = running.pop(finished)
            try:
                receipt = ray.get(finished)
            except ray.exceptions.RayTaskError as error:
                cause = error.cause
                if isinstance(cause, OmniprepError | OSError | MemoryError):
                    raise cause from None
                raise unforeseen(f"task {index}", cause) from error
            except deaths_of_workers() as error:
                deaths[index] += 1
                if deaths[index] == TRIES:
                    raise OmniprepError(
                        f"a worker died {TRIES} times under the same task, also with its rows tried one by one: "
                        f"{_first_line(error)}"
                    ) from None
                say(f"a worker died ({type(error).__name__}); its task is done again, its rows tried one by one")
                running[remote.remote(_isolated(tasks[index]), index, actor)] = index
                continue
            yield index, receipt
    finally:
        for reference in running:
            ray.cancel(reference, force=False)
        if poller:
            poller.close()


def deaths_of_workers() -> tuple[type[BaseException], ...]:
    """What Ray raises for a worker or node that is gone."""
    from ray import exceptions

    names = (
        "WorkerCrashedError",
        "OutOfMemoryError",
        "NodeDiedError",
        "LocalRayletDiedError",
        "OwnerDiedError",
        "ObjectLostError",
    )
    return tuple(getattr(exceptions, name) for name in names if hasattr(exceptions, name))


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _worker_function() -> Callable[[Task, int, Any], Receipt]:
    driver_folder = Path.cwd()

    def run(task: Task, index: int, actor: Any) -> Receipt:
        if driver_folder.is_dir():  # relative paths mean the same on a cluster whose nodes have the driver's folder
            os.chdir(driver_folder)
        with single_threaded(), progress_listener(ray_listener(actor, index)):
            return _run(task)

    return run
