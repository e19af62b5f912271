"""Memory of a training step: measured, predicted before the optimizer exists, and what to change if it is short."""

import gc
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from omniprep.errors import OmniprepError
from omniprep.train.batches import Bins
from omniprep.train.config import TrainConfig

GIB = 1 << 30
SAFE_SHARE = 0.90
"""Share of the device's memory that a prediction may reach: the caching allocator loses some to fragments (2 to 4 % on
bins of uneven rows; 6.7 % of an H100's 79 GiB in steps of DPO, which ran out of memory at 73.2 GiB of tensors), and
CUDA's context with the kernels of libraries takes 0.5 to 1 GiB more."""

OPTIMIZER_STATES = {"adamw": 2, "adam": 2, "sgd": 0, "lion": 1, "rmsprop": 1, "adagrad": 1}
"""Values that an optimizer keeps for each weight, by the first part of its transformers name. They have the type of the
weight: AdamW keeps 4 bytes for each bfloat16 weight and 8 for each float32 one."""


def heaviest_batches(bins: Bins, batch_size: int) -> list[list[int]]:
    """The batches that may need most memory, as numbers of bins: those of most tokens (what the language model keeps),
    of most patches and of most audio frames (what towers keep), and of the highest cost.

    Mostly they are the same bins; each batch comes once.
    """
    columns = ("tokens", "patches", "audio_frames", "cost")
    sizes = {
        name: np.concatenate([d.index[name][b] for d, b in zip(bins.datasets, bins.bins, strict=True)])
        for name in columns
    }
    batches = [np.argsort(-size, kind="stable")[:batch_size].tolist() for size in sizes.values() if size.any()]
    return [batch for number, batch in enumerate(batches) if batch not in batches[:number]]


def reset_peak(device: torch.device) -> None:
    """Begin a new measurement of `peak_bytes` (on a GPU; the peak of a process cannot be taken back)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_bytes(device: torch.device) -> int:
    """Most bytes held at once: on a GPU by tensors since `reset_peak`, else by the process since its start."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def free_memory() -> None:
    """Collect garbage (an exception's traceback keeps the tensors of its frames alive) and free cached GPU memory."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def state_bytes(model: torch.nn.Module, optimizer: str) -> int:
    """Bytes that an optimizer will keep for the weights that train; of one that is not known, what AdamW keeps."""
    states = OPTIMIZER_STATES.get(optimizer.split("_")[0], 2)
    return states * sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)


def passes_peak(model: torch.nn.Module, loss: Callable[[], torch.Tensor], device: torch.device, passes: int) -> int:
    """Peak of forward and backward passes without an optimizer, in bytes; no gradient and no random number is left.

    Of 2 passes where a step has several (gradients of the first are there during the second), else of 1.
    """
    reset_peak(device)
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            for _ in range(passes):
                loss().backward()  # type: ignore[no-untyped-call]
        return peak_bytes(device)
    finally:
        for parameter in model.parameters():
            parameter.grad = None


def fits_without_checkpointing(
    model: Any, loss: Callable[[], torch.Tensor], config: TrainConfig, device: torch.device, world_size: int = 1
) -> tuple[bool, int | None]:
    """Whether a step fits with all activations kept, and the predicted peak in bytes (None: not even the passes fit).

    Nothing of the model is changed. The optimizer's states are counted, not made. Several ranks hold a second copy of
    the gradients, in the buckets of DistributedDataParallel.
    """
    try:
        peak = passes_peak(model, loss, device, 2 if config.grad_accumulation > 1 else 1)
    except torch.OutOfMemoryError:
        peak = None
    if peak is None:  # outside the handler, whose exception holds the activations
        free_memory()
        return False, None
    peak += state_bytes(model, config.optimizer)
    if world_size > 1:
        peak += sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    free_memory()
    return peak <= SAFE_SHARE * device_bytes(device), peak


def weight_bytes(model: torch.nn.Module) -> int:
    """Bytes of all weights, and of the gradients of those that train."""
    return sum((2 if p.requires_grad else 1) * p.numel() * p.element_size() for p in model.parameters())


def longest_bin(peak: int, fixed: int, tokens: int, capacity: int) -> int:
    """Tokens of a bin that fits as the measured one did, a multiple of 256; 0 where not even the weights fit.

    What comes on top of the `fixed` bytes (weights, gradients, optimizer states) grows with the tokens.
    """
    room = SAFE_SHARE * capacity - fixed
    return max(int(tokens * room / max(peak - fixed, 1)) // 256 * 256, 0)


def advise(config: TrainConfig, model: torch.nn.Module, peak: int, tokens: int, capacity: int) -> list[str]:
    """What a measured step says about bin length and LoRA: one line each."""
    fixed = weight_bytes(model) + state_bytes(model, config.optimizer)
    longest = longest_bin(peak, fixed, tokens, capacity)
    share = peak / capacity
    verdict = "fits" if share <= SAFE_SHARE else "leaves too little for fragments: training may run out of memory"
    lines = [
        f"memory: {peak / GIB:.1f} of {capacity / GIB:.1f} GiB ({share:.0%}) {verdict}; bins like these fit up to "
        f"about {longest:,} tokens (omniprep repack --bin-length)"
    ]
    if not config.lora:
        saved = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
        saved += state_bytes(model, config.optimizer)
        lines.append(
            f"--lora would take about {(peak - saved) / GIB:.1f} GiB: no gradients and states of whole weights"
        )
    return lines


def device_bytes(device: torch.device) -> int:
    """Bytes that this process may hold on a GPU: what is free there, and what it holds already."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device)


@contextmanager
def memory_errors_as_one_line(config: TrainConfig) -> Iterator[None]:
    """Raise what the device's allocator raises as an error for the user."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise OmniprepError(explain_memory(config, error)) from error


def explain_memory(config: TrainConfig, error: BaseException) -> str:
    """One line: what happened, and the settings that help with this run's options."""
    first = " ".join(str(error).split())[:160]
    tried = "" if config.dry_run else ". --dry-run tries the costliest bins first"
    return f"the device is out of memory ({first}); try {', '.join(what_helps(config))}{tried}"


def what_helps(config: TrainConfig) -> list[str]:
    """Options that take less memory than this run's, most effective and least costly first."""
    advice = []
    if config.batch_size > 1:
        advice.append(f"--batch-size 1 with --grad-accumulation {config.batch_size * config.grad_accumulation}")
    if config.gradient_checkpointing == "off":
        advice.append("--gradient-checkpointing")
    if not config.lora:
        advice.append("--lora")
    if not (config.fsdp or config.deepspeed):
        advice.append("--fsdp on several GPUs")
    if config.dtype == "float32":
        advice.append("--dtype bfloat16")
    advice.append("shorter bins (omniprep repack --bin-length, or --max-bin-patches at build)")
    return advice
