"""Where the time of a step goes: device clock, share of it that kernels run, copies beside them, waits of the host."""

import bisect
import collections
import itertools
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import TrainerCallback

WATCHED = ("omniprep", "gpu_trace", "transformers", "accelerate", "torch/optim", "torch/utils", "peft", "liger_kernel")
"""Parts of paths of the code that is named for a wait of the host."""
AHEAD = ("omniprep-prefetch", "Thread-")
"""Names of the threads that work ahead of the training loop: ours, and those by which a DataLoader pins memory."""
Span = tuple[int, int]


def milliseconds(call: Callable[[], Any], device: torch.device, repeats: int = 10, warmup: int = 3) -> float:
    """Mean time of a call: on a GPU by its own clock, the calls one behind the other, so that launching them overlaps
    with what they compute as in a step.
    """
    for _ in range(warmup):
        call()
    synchronize(device)
    if device.type != "cuda":
        began = time.perf_counter()
        for _ in range(repeats):
            call()
        return (time.perf_counter() - began) * 1e3 / repeats
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    for _ in range(repeats):
        call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / repeats


class StepWatch(TrainerCallback):  # type: ignore[misc]
    """Times the steps of a run, profiles some of them and counts the host's waits in one.

    Args:
        trainer: The trainer, before its first step.
        warm: Steps that are not timed: they compile kernels and make the optimizer's states.
        timed: Steps that are.
        profiled: Steps after these that are profiled (0: none, and no waits are counted).
    """

    def __init__(self, trainer: Any, warm: int, timed: int, profiled: int = 0) -> None:
        self.trainer, self.device = trainer, trainer.args.device
        self.warm, self.timed, self.profiled = warm, timed, profiled
        self.marks: list[tuple[Any, float, float]] = []
        self.profiler: Any = None
        self.waits: collections.Counter[str] | None = None
        self.peak = 0
        self.tower_gradients: set[str] = set()
        self._stack: Any = None

    @staticmethod
    def steps(warm: int, timed: int, profiled: int) -> int:
        """Steps that a run must have: between profile and waits one passes unwatched."""
        return warm + timed + (profiled + 3 if profiled else 0)

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Watch the towers, and begin a new peak of memory."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        for name, module in tower_modules(self.trainer):
            module.register_forward_hook(self._tower_hook(name), always_call=False)
        self._mark()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The end of a step is the beginning of the next, so that waiting for data counts."""
        step = state.global_step
        first_profiled = self.warm + self.timed + 1
        self._mark()
        if step == self.warm + self.timed and self.device.type == "cuda":
            self.peak = torch.cuda.max_memory_allocated()
        if not self.profiled:
            return
        if step == first_profiled:
            synchronize(self.device)
            kind = torch.profiler.ProfilerActivity
            self.profiler = torch.profiler.profile(activities=[kind.CUDA if self.device.type == "cuda" else kind.CPU])
            self.profiler.start()
        elif step == first_profiled + self.profiled:
            synchronize(self.device)
            self.profiler.stop()
            self._stack = host_waits()
            self.waits = self._stack.__enter__()
        elif self._stack is not None:
            self._stack.__exit__(None, None, None)
            self._stack = None

    def _mark(self) -> None:
        event = None
        if self.device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
        self.marks.append((event, time.perf_counter(), self.trainer.loader.waited))

    def _tower_hook(self, name: str) -> Callable[[Any, Any, Any], None]:
        def look(module: Any, args: Any, output: Any) -> None:
            if any(tensor.requires_grad for tensor in tensors(output)):
                self.tower_gradients.add(name)

        return look

    def stalls(self) -> int:
        """Waits of the host that the training loop stands still for: those of the thread that copies ahead do not
        count.
        """
        return sum(n for where, n in (self.waits or {}).items() if not where.startswith(AHEAD))

    def step_ms(self) -> list[float]:
        """Milliseconds of each timed step, from the end of the last one."""
        synchronize(self.device)
        pairs = list(itertools.pairwise(self.marks))[self.warm : self.warm + self.timed]
        return [a[0].elapsed_time(b[0]) if a[0] is not None else (b[1] - a[1]) * 1e3 for a, b in pairs]

    def wait_ms(self) -> float:
        """Milliseconds that a timed step waited for data, on average."""
        marks = self.marks[self.warm : self.warm + self.timed + 1]
        return (marks[-1][2] - marks[0][2]) * 1e3 / max(len(marks) - 1, 1)


def tower_modules(trainer: Any) -> Iterator[tuple[str, torch.nn.Module]]:
    """The towers of the model, by the prefixes that training freezes them by."""
    model = trainer.model.get_base_model() if trainer.config.lora else trainer.model
    for prefix in trainer.parts.towers:
        yield prefix, model.get_submodule(prefix)


def tensors(value: Any) -> Iterator[torch.Tensor]:
    """All tensors of an output of a module."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from tensors(part)
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from tensors(part)


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has nothing left to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def host_waits() -> Iterator[collections.Counter[str]]:
    """Count where the host waits for a GPU (torch's sync debug mode), by thread and the innermost named code."""
    counts: collections.Counter[str] = collections.Counter()
    show = warnings.showwarning

    def count(message: Any, category: Any, filename: str, lineno: int, file: Any = None, line: Any = None) -> None:
        if "synchroniz" not in str(message):
            return
        frames = [f for f in traceback.extract_stack()[:-1] if any(part in f.filename for part in WATCHED)]
        if frames and frames[-1].filename == __file__:  # of this watch, not of the step
            return
        names = [f"{'/'.join(f.filename.split('/')[-2:])}:{f.lineno} {f.name}" for f in frames[-3:]]
        counts[f"{threading.current_thread().name}: {' < '.join(reversed(names)) or filename}"] += 1

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = count
        if torch.cuda.is_available():
            torch.cuda.set_sync_debug_mode("warn")
        try:
            yield counts
        finally:
            if torch.cuda.is_available():
                torch.cuda.set_sync_debug_mode("default")
            warnings.showwarning = show


def union(spans: Sequence[Span]) -> list[list[int]]:
    """Spans in which at least one of the given ones runs, in order."""
    merged: list[list[int]] = []
    for begin, end in sorted(spans):
        if merged and begin <= merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], end)
        else:
            merged.append([begin, end])
    return merged


def overlap(span: Span, merged: list[list[int]]) -> int:
    """How much of a span lies within merged ones."""
    number = max(0, bisect.bisect_right([m[0] for m in merged], span[0]) - 1)
    covered = 0
    while number < len(merged) and merged[number][0] < span[1]:
        covered += max(0, min(merged[number][1], span[1]) - max(merged[number][0], span[0]))
        number += 1
    return covered


def analyze(profiler: Any, steps: int, device: torch.device, longest: int = 12) -> dict[str, Any]:
    """What a profile says of its steps.

    Args:
        profiler: Stopped.
        steps: Steps in it.
        device: Whose events count: kernels of a GPU, else operators of the CPU.
        longest: Kernels that are named.

    Returns:
        busy: share of the time from the first kernel to the last in which one runs; kernels: a step; gaps_ms: a step,
        by length; copies: of each kind, ms and number a step and the share of the time under kernels; longest: names of
        kernels with ms and calls a step.
    """
    wanted = torch.autograd.DeviceType.CUDA if device.type == "cuda" else torch.autograd.DeviceType.CPU
    kernels: list[Span] = []
    copies: dict[str, list[Span]] = collections.defaultdict(list)
    times: collections.Counter[str] = collections.Counter()
    calls: collections.Counter[str] = collections.Counter()
    for event in profiler.profiler.kineto_results.events():
        if event.device_type() != wanted or not event.duration_ns():
            continue
        span = (event.start_ns(), event.start_ns() + event.duration_ns())
        if event.name().startswith("Memcpy"):
            copies[event.name()].append(span)
        elif not event.name().startswith("Memset"):
            kernels.append(span)
            times[event.name()] += event.duration_ns()
            calls[event.name()] += 1
    merged = union(kernels)
    running = sum(end - begin for begin, end in merged)
    gaps = [after[0] - before[1] for before, after in itertools.pairwise(merged)]
    bounds = {"over_1": (1e6, 1e15), "0.1_to_1": (1e5, 1e6), "under_0.1": (0, 1e5)}
    return {
        "busy": running / max(merged[-1][1] - merged[0][0], 1) if merged else 0.0,
        "kernels": len(kernels) / steps,
        "gaps_ms": {
            name: round(sum(g for g in gaps if low <= g < high) / 1e6 / steps, 2)
            for name, (low, high) in bounds.items()
        },
        "copies": {
            name: {
                "ms": round(sum(end - begin for begin, end in spans) / 1e6 / steps, 3),
                "number": len(spans) / steps,
                "under_kernels": round(
                    sum(overlap(s, merged) for s in spans) / max(sum(end - begin for begin, end in spans), 1), 3
                ),
            }
            for name, spans in copies.items()
        },
        "longest": [
            {"kernel": name[:100], "ms": round(ns / 1e6 / steps, 2), "calls": calls[name] / steps}
            for name, ns in times.most_common(longest)
        ],
    }
