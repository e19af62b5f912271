"""What a run says about itself: loss by kind of row, token accuracy, tokens/s, time lost waiting for data, MFU.

Sums stay on the device between two log lines; a log line costs one reduction over the ranks and one wait for the
device.
"""

import time
from collections.abc import Sequence
from typing import Any

import torch

__all__ = ["Meter"]

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
    """Sums between two log lines.

    Args:
        kinds: Names of the kinds of rows.
        device: Where losses are.
        weights: Number of weights a token passes through, for MFU.
        trains_all: Whether most weights have gradients (6 FLOP a weight and token instead of 4).
    """

    def __init__(self, kinds: Sequence[str], device: torch.device, weights: int, trains_all: bool) -> None:
        self.kinds, self.device = tuple(kinds), device
        self.flops_a_token = (6 if trains_all else 4) * weights
        name = torch.cuda.get_device_name() if device.type == "cuda" else ""
        self.peak = next((flops for mark, flops in PEAK.items() if mark in name), None)
        self.began, self.waited = time.perf_counter(), 0.0
        self.reset()

    def reset(self) -> None:
        """Begin a new span."""
        n = len(self.kinds)
        self.sums = torch.zeros(2 * n + 1, dtype=torch.float64, device=self.device)
        self.tokens = self.steps = 0

    def add(self, losses: torch.Tensor, correct: torch.Tensor, kinds: torch.Tensor, tokens: int) -> None:
        """One forward pass: (K) losses, hits and kinds of rows of its targets, and its number of tokens."""
        n = len(self.kinds)
        self.sums[:n].index_add_(0, kinds, losses.detach().double())
        self.sums[n : 2 * n].index_add_(0, kinds, torch.ones_like(losses, dtype=torch.float64))
        self.sums[2 * n] += correct.sum()
        self.tokens += tokens

    def take(self, waited: float, steps: int, reduce: Any) -> dict[str, float]:
        """The log values of the span, and a new span.

        Args:
            waited: Seconds the loop has waited for data since the run began.
            steps: Optimizer steps of the span.
            reduce: Sums a tensor over the ranks.
        """
        n = len(self.kinds)
        counts = torch.tensor([self.tokens], dtype=torch.float64, device=self.device)
        sums = reduce(torch.cat([self.sums, counts])).tolist()
        now = time.perf_counter()
        seconds = max(now - self.began, 1e-9)
        labelled = max(sum(sums[n : 2 * n]), 1.0)
        out = {
            "token_accuracy": sums[2 * n] / labelled,
            "tokens_per_s": sums[-1] / seconds,
            "data_wait_ms": (waited - self.waited) / max(steps, 1) * 1e3,
        }
        present = [k for k in range(n) if sums[n + k]]
        if len(present) > 1:
            out |= {f"loss_{self.kinds[k]}": sums[k] / sums[n + k] for k in present}
        if self.peak is not None:
            out["mfu"] = self.flops_a_token * self.tokens / seconds / self.peak
        self.began, self.waited = now, waited
        self.reset()
        return out
