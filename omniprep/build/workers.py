"""Run a stage's tasks: in this process, or on Ray workers that stay warm; results come as they finish.

A task is a plain picklable record, a stage a plain function of it. At most two tasks a worker are under way, so memory is
bounded by the workers and not by the corpus. Numbers that a shard's bytes depend on are computed on one thread everywhere.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from omniprep.errors import OmniprepError

Task = TypeVar("Task")
Result = TypeVar("Result")
THREADS = {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")}
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
        try:
            if address is None:
                # A fixed bound of the object store: tasks and receipts are small, bins never travel.
                ray.init(num_cpus=workers, object_store_memory=256 << 20, **options)
            else:
                ray.init(address=address, **options)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise OmniprepError(f"Ray cannot be started or reached ({address or 'local'}): {error}") from error
    try:
        yield
    finally:
        if ours:
            ray.shutdown()


def run_tasks(
    function: Callable[[Task], Result], tasks: Sequence[Task], workers: int
) -> Iterator[tuple[int, Result]]:
    """Yield (number of the task, its result), in order of completion.

    Args:
        function: A module-level function; with Ray it runs in worker processes.
        tasks: Its arguments.
        workers: Ray workers; 0 runs the tasks here, in order.
    """
    if workers == 0:
        with single_threaded():
            for number, task in enumerate(tasks):
                yield number, function(task)
        return
    import ray

    remote = ray.remote(num_cpus=1, max_retries=3)(_isolated(function))
    waiting: dict[Any, int] = {}
    queue = iter(enumerate(tasks))
    try:
        while True:
            while len(waiting) < 2 * workers and (entry := next(queue, None)) is not None:
                waiting[remote.remote(entry[1])] = entry[0]
            if not waiting:
                return
            (done,), _ = ray.wait(list(waiting), num_returns=1)
            number = waiting.pop(done)
            try:
                yield number, ray.get(done)
            except ray.exceptions.RayTaskError as error:
                cause = error.cause
                raise (cause if isinstance(cause, OmniprepError) else error) from None
    finally:
        for reference in waiting:
            ray.cancel(reference, force=False)


def _isolated(function: Callable[[Task], Result]) -> Callable[[Task], Result]:
    def run(task: Task) -> Result:
        with single_threaded():
            return function(task)

    return run
