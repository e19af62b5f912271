"""What a run says about itself: loss by kind of row, token accuracy, tokens/s, time lost waiting for data, MFU.

MFU is this rank's counted operations (flops.py) over the time of the span, waiting included, and the device's peak.

Sums stay on the device between two log lines; a log line costs one reduction over the ranks and one wait for the
device.
"""

import time
from collections.abc import Sequence
from typing import Any

import torch

from omniprep.train.flops import StepWork

# Dense bf16 peak of the devices people train on, FLOP/s (data sheets).
PEAK = {
    "A100": 312e12,
    "H100": 989e12,
    "H200": 989e12,
    "H800": 989e12,
    "B200": 2250e12,
    "L40S": 362e12,
    "4090": 165e12,
    "A800": 312e12,
}


class Meter:
    """Sums between two log lines; `sources` are named where losses are wanted by source."""

    def __init__(self, kinds: Sequence[str], sources: Sequence[str], device: torch.device, work: StepWork) -> None:
        self.kinds, self.device = len(kinds), device
        self.names = (*kinds, *(f"source_{s}" for s in sources))
        self.work = work
        name = torch.cuda.get_device_name() if device.type == "cuda" else ""
        self.peak = next((flops for mark, flops in PEAK.items() if mark in name), None)
        self.waited = 0.0
        self.reset()

    def reset(self) -> None:
        """Begin a new span now."""
        self.began = time.perf_counter()
        self.sums = torch.zeros(len(self.names), dtype=torch.float64, device=self.device)
        self.counts = torch.zeros_like(self.sums)
        self.hits = torch.zeros(1, dtype=torch.float64, device=self.device)
        self.tokens, self.flops = 0, 0.0

    def add(self, losses: torch.Tensor, correct: torch.Tensor, batch: dict[str, Any]) -> None:
        """One forward pass: (K) losses and hits, and the batch that they are of."""
        losses = losses.detach().double()
        groups = [batch["kinds"]] + ([batch["sources"] + self.kinds] if batch["sources"] is not None else [])
        for group in groups:
            index = group.to(self.device)
            self.sums.index_add_(0, index, losses)
            self.counts.index_add_(0, index, torch.ones_like(losses))
        self.hits += correct.sum()
        self.tokens += batch["tokens"]
        self.flops += self.work.of(batch)

    def take(self, waited: float, steps: int, reduce: Any) -> dict[str, float]:
        """The log values of the span, and a new span; `waited` is for data, in seconds since the run began."""
        # Filled in on the device: a copy from the host would wait once more.
        tokens = torch.full((1,), self.tokens, dtype=torch.float64, device=self.device)
        totals: list[float] = reduce(torch.cat([self.sums, self.counts, self.hits, tokens])).tolist()
        groups = len(self.names)
        sums, counts, hits, all_tokens = totals[:groups], totals[groups : 2 * groups], totals[-2], totals[-1]
        seconds = max(time.perf_counter() - self.began, 1e-9)
        out = {
            "token_accuracy": hits / max(sum(counts[: self.kinds]), 1.0),
            "learned_tokens": sum(counts[: self.kinds]),
            "tokens_per_s": all_tokens / seconds,
            "data_wait_ms": (waited - self.waited) / max(steps, 1) * 1e3,
        }
        for part in (range(self.kinds), range(self.kinds, groups)):
            present = [group for group in part if counts[group]]
            if len(present) > 1:
                out |= {f"loss_{self.names[group]}": sums[group] / counts[group] for group in present}
        if self.peak is not None and self.work.is_whole:
            out["mfu"] = self.flops / seconds / self.peak
        self.waited = waited
        self.reset()
        return out
