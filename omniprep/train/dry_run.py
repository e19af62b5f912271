"""Real steps on the bins that need most memory, before hours are spent: do they fit, and what would fit better?

The run is made as always (run.py) and takes its own steps: optimizer states, clipping, prefetched batches and sharding
are there as in training, so the peak is the one that training reaches. Nothing is saved and `--out` is not touched.
"""

import dataclasses
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback
from transformers.trainer_callback import PrinterCallback

from omniprep.errors import OmniprepError
from omniprep.progress import Reporter
from omniprep.shards.cut import cut_rows
from omniprep.shards.pairs import sequences_of_unit
from omniprep.train import memory
from omniprep.train.batches import BatchLoader
from omniprep.train.config import TrainConfig
from omniprep.train.data import RunData
from omniprep.train.stream import BinStream

SHORTEST = 1024
"""Tokens; no batch shorter than this is tried where the whole ones do not fit."""


class RepeatedBatches(BinStream):
    """The same batches of bins again and again, on every rank, instead of the order of `stream`."""

    def __init__(self, batches: list[list[int]], steps: int, stream: BinStream) -> None:
        super().__init__(
            stream.mixture,
            total=1 << 40,
            start=0,
            steps=steps,
            world_size=stream.world_size,
            batch_size=stream.batch_size,
            accumulation=stream.accumulation,
        )
        self.batches = batches

    def __iter__(self) -> Iterator[list[int]]:
        """The batches, over and over, until every step has its own."""
        return itertools.islice(itertools.cycle(self.batches), len(self))


class StepClock(TrainerCallback):  # type: ignore[misc]
    """Seconds of each step, the device's work included."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.seconds, self.began = device, list[float](), 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Peaks of what came before (loading, the isolation check) do not count."""
        memory.reset_peak(self.device)

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Take the time at which the step starts."""
        self.began = self.now()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Keep the seconds of the step."""
        self.seconds.append(self.now() - self.began)

    def now(self) -> float:
        """The time, once the device has nothing left to do."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """What the steps took.

    Attributes:
        peak: Most bytes at once, on the rank that had most.
        tokens: Of the longest batch.
        seconds: Of the slowest step after the first (the first compiles kernels and makes the optimizer's states).
        loss: Of the first step.
    """

    peak: int
    tokens: int
    seconds: float
    loss: float


def dry_run(config: TrainConfig, reporter: Reporter, prepare: Callable[..., Any]) -> Path:
    """Take a few steps on the heaviest batches, and report; an error in one line says what would fit."""
    with tempfile.TemporaryDirectory(prefix="omniprep-dry-run-") as scratch:
        passes = min(config.grad_accumulation, 2)  # the second finds the gradients of the first, as all others do
        short = dataclasses.replace(
            config, out=scratch, resume=None, overwrite=False, eval_steps=0, report_to=("none",), max_steps=1,
            grad_accumulation=passes, logging_steps=1 << 30,
        )  # fmt: skip
        with memory.memory_errors_as_one_line(config):
            run = prepare(short, reporter, heavy_data)
        trainer, device, batches = run.trainer, run.args.device, run.data.stream.batches
        try:
            measured = measure_run(run)
            problem = None
        except torch.OutOfMemoryError as error:
            problem = memory.explain_memory(trainer.config, error)
        trainer.optimizer = trainer.lr_scheduler = None
        trainer.accelerator.free_memory()
        if problem is not None:
            raise OmniprepError(f"dry run: {problem}{shorter_bins(trainer, run.data, batches[0], config, device)}")
    weights = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    fixed = memory.weight_bytes(trainer.model) + memory.state_bytes(trainer.model, config.optimizer)
    reporter.message(
        f"dry run: {run.data.stream.steps} steps of the {len(batches)} heaviest of {len(run.data.bins):,} bins, up to "
        f"{measured.tokens:,} tokens: {measured.peak / memory.GIB:.2f} GiB at most; {measured.seconds:.2f} s a step of "
        f"{passes} pass{'es' if passes > 1 else ''}; loss {measured.loss:.3f}; {weights:,} weights train, "
        f"{fixed / memory.GIB:.2f} GiB with frozen ones, gradients and the optimizer's states"
    )
    if device.type == "cuda" and run.args.world_size == 1:
        for line in advice(trainer, run.data, measured, config, device):
            reporter.message(line)
    return Path(config.out)


def heavy_data(data: RunData) -> RunData:
    """The heaviest batches, after a first step, in which the optimizer makes its states; nothing to evaluate on."""
    batches = memory.heaviest_batches(data.bins, data.stream.batch_size)
    steps = 1 + -(-len(batches) // data.stream.accumulation)
    return dataclasses.replace(data, stream=RepeatedBatches(batches, steps, data.stream), evaluation=None)


def measure_run(run: Any) -> Measured:
    """Take all steps of a run; torch.OutOfMemoryError where they do not fit."""
    trainer, device = run.trainer, run.args.device
    clock = StepClock(device)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(clock)
    trainer.train()
    peak = torch.tensor([memory.peak_bytes(device)], device=device)
    tokens = max(sum(int(run.data.bins[i]["cu_seqlens"][-1]) for i in batch) for batch in run.data.stream.batches)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return Measured(
        peak=int(trainer.accelerator.gather(peak).max()), tokens=tokens, seconds=max(clock.seconds[1:]), loss=losses[0]
    )


def batch_loss(trainer: Any, data: RunData, bins: list[Any], device: torch.device) -> Callable[[], torch.Tensor]:
    """The forward pass of a batch, up to the loss, as the trainer's step has it."""
    loader: Any = [data.batcher(bins)]
    batch = next(iter(BatchLoader(loader, 1, device)))
    trainer.model.train()

    def loss() -> torch.Tensor:
        with trainer.compute_loss_context_manager():  # autocast, with --amp
            items = trainer.local_items([batch])
            result: torch.Tensor = trainer.compute_loss(
                trainer.model, batch, num_items_in_batch=items, everywhere=False
            )
        return result

    return loss


def advice(trainer: Any, data: RunData, measured: Measured, config: TrainConfig, device: torch.device) -> Iterator[str]:
    """What the measurement says about bin length, LoRA and checkpointing: one line each."""
    yield from memory.advise(config, trainer.model, measured.peak, measured.tokens, memory.device_bytes(device))
    if trainer.config.gradient_checkpointing == "off":
        return
    trainer.model.gradient_checkpointing_disable()
    memory.free_memory()
    stream: Any = data.stream
    loss = batch_loss(trainer, data, [data.bins[i] for i in stream.batches[0]], device)
    fits, peak = memory.fits_without_checkpointing(trainer.model, loss, config, device)
    if peak is None:
        yield "without --gradient-checkpointing: out of memory"
        return
    verdict = "fits, and saves a second forward pass" if fits else "too close to the device's memory"
    yield f"without --gradient-checkpointing: {peak / memory.GIB:.1f} GiB: {verdict}"


def whole_rows(item: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The rows of a bin, each as a bin of its own; both answers of a pair together."""
    first = 0
    while first < len(item["row_ids"]):
        end = first + sequences_of_unit(item, first)
        yield cut_rows(item, first, end)
        first = end


def shorter_bins(trainer: Any, data: RunData, batch: list[int], config: TrainConfig, device: torch.device) -> str:
    """What fits where the whole batch did not: its first rows, half as many tokens at each try; "" if nothing does."""
    rows = [row for i in batch for row in whole_rows(data.bins[i])]
    lengths = [len(row["input_ids"]) for row in rows]
    tokens = sum(lengths)
    while tokens > SHORTEST:
        tokens //= 2
        taken = [row for n, row in enumerate(rows) if sum(lengths[: n + 1]) <= tokens] or rows[:1]
        memory.free_memory()
        try:
            peak = memory.passes_peak(trainer.model, batch_loss(trainer, data, taken, device), device, 1)
        except torch.OutOfMemoryError:
            peak = 0
        if peak:
            states = memory.state_bytes(trainer.model, config.optimizer)
            used = sum(len(row["input_ids"]) for row in taken)
            fixed = memory.weight_bytes(trainer.model) + states
            longest = memory.longest_bin(peak + states, fixed, used, memory.device_bytes(device))
            return f"; bins of about {longest:,} tokens would fit as it is" if longest >= SHORTEST else ""
    return ""
