"""Run a stage's tasks: in this process, or on Ray workers that stay warm; results come as they finish.

A worker that dies under a task costs that task a second try, which finds the rows that kill
(compiler/isolate/crashing_rows.py). In this process a mark beside the plan takes that place: a task whose mark is
found was under way when the process before this one died.

A task is a plain picklable record, a stage a plain function of it. At most two tasks a worker are under way, so
memory is bounded by the workers and not by the corpus. Numbers that a shard's bytes depend on are computed on one
thread everywhere.
"""

import dataclasses
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from omniprep import io
from omniprep.compiler.run.worker_status import SECONDS, Doing, Show, Watch, heard_by, ray_listener
from omniprep.errors import OmniprepError, unforeseen

Task = TypeVar("Task")
Result = TypeVar("Result")
THREADS = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS"), "1")
TRIES = 4
"""Of one task: as it is, then apart."""
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
    """A Ray to run on: the one that is there already, a cluster's, or a local one of `workers` cores.

    Raises:
        OmniprepError: The cluster cannot be reached.
    """
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
    function: Callable[[Task], Result],
    tasks: Sequence[Task],
    workers: int,
    marks: Sequence[str],
    say: Callable[[str], None],
    show: Show | None = None,
) -> Iterator[tuple[int, Result]]:
    """Yield (number of the task, its result), in order of completion.

    Args:
        function: A module-level function; with Ray it runs in worker processes.
        tasks: Its arguments; dataclasses with a field `isolate`, set for tasks that ended a process.
        workers: Ray workers; 0 runs the tasks here, in order.
        marks: A file name for each task, used where workers is 0; none where no task can end the process.
        say: Told what went wrong and is tried again.
        show: Told what each worker is at (omniprep/compiler/run/worker_status.py); None where nobody watches.

    Raises:
        OmniprepError: From a task, or when a task ended its process `TRIES` times.
        OSError: From a task: the disk is full, the output cannot be written.
    """
    if workers == 0:
        with single_threaded(), heard_by(show and (lambda *told: show([Doing("", *told)]))):
            for number, task in enumerate(tasks):
                yield number, _marked(function, task, marks[number], say) if marks else function(task)
        return
    yield from _run_on_ray(function, tasks, workers, say, show)


def _marked(function: Callable[[Task], Result], task: Task, mark: str, say: Callable[[str], None]) -> Result:
    if io.exists(mark):
        say("the run before this one ended in the middle of a task; its rows are tried one by one")
        task = _isolated(task)
    io.write_atomic(mark, b"")
    try:
        return function(task)
    finally:  # whatever Python can still see is no death of the process
        io.remove(mark)


def _isolated(task: Task) -> Task:
    return dataclasses.replace(task, isolate=True)  # type: ignore[type-var]


def _run_on_ray(
    function: Callable[[Task], Result], tasks: Sequence[Task], workers: int, say: Callable[[str], None],
    show: Show | None,
) -> Iterator[tuple[int, Result]]:  # fmt: skip
    import ray

    watch = Watch(show) if show else None
    board = watch.board if watch else None
    # No retries by Ray: it would run into the same file again, and a retry here knows what to look for.
    remote = ray.remote(num_cpus=1, max_retries=0)(_single_threaded(function))
    waiting: dict[Any, int] = {}
    deaths = Counter[int]()
    queue = iter(enumerate(tasks))
    try:
        while True:
            while len(waiting) < 2 * workers and (entry := next(queue, None)) is not None:
                waiting[remote.remote(entry[1], entry[0], board)] = entry[0]
            if not waiting:
                return
            ready, _ = ray.wait(list(waiting), num_returns=1, timeout=SECONDS if watch else None)
            if watch:
                watch.look(set(waiting.values()))
            if not ready:
                continue
            (done,) = ready
            number = waiting.pop(done)
            try:
                result = ray.get(done)
            except ray.exceptions.RayTaskError as error:
                cause = error.cause
                if isinstance(cause, OmniprepError | OSError | MemoryError):
                    raise cause from None
                raise unforeseen(f"task {number}", cause) from error
            except deaths_of_workers() as error:
                deaths[number] += 1
                if deaths[number] == TRIES:
                    raise OmniprepError(
                        f"a worker died {TRIES} times under the same task, also with its rows tried one by one: "
                        f"{_first_line(error)}"
                    ) from None
                say(f"a worker died ({type(error).__name__}); its task is done again, its rows tried one by one")
                waiting[remote.remote(_isolated(tasks[number]), number, board)] = number
                continue
            yield number, result
    finally:
        for reference in waiting:
            ray.cancel(reference, force=False)
        if watch:
            watch.close()


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


def _single_threaded(function: Callable[[Task], Result]) -> Callable[[Task, int, Any], Result]:
    here = Path.cwd()

    def run(task: Task, number: int, board: Any) -> Result:
        if here.is_dir():  # relative paths mean the same on a cluster whose nodes have the driver's folder
            os.chdir(here)
        with single_threaded(), heard_by(ray_listener(board, number)):
            return function(task)

    return run
