"""What a run says about itself: loss by kind of row, token accuracy, tokens/s, time lost waiting for data, MFU.

MFU is this rank's counted operations (flops.py) over the time of the span, waiting included, and the device's peak.

Sums stay on the device between two log lines; a log line costs one reduction over the ranks and one wait for the
device.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from omniprep.data.objective import Objective
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
    """Sums between two log lines; `sources` are named where losses are wanted by source.

    Of preferences (`objective`) it takes the metrics of the objective, and cross entropy (nll_…) and accuracy of the
    preferred answers alone: those of rejected answers are to rise.
    """

    def __init__(
        self,
        kinds: Sequence[str],
        sources: Sequence[str],
        device: torch.device,
        work: StepWork,
        objective: Objective | None = None,
    ) -> None:
        self.kinds, self.device = len(kinds), device
        self.metrics = () if objective is None else objective.metrics
        self.loss_name = "loss" if objective is None else "nll"
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
        self.measured = torch.zeros(2, len(self.metrics), dtype=torch.float64, device=self.device)
        """Sums of the metrics, and numbers of the values in them."""
        self.tokens, self.learned, self.flops = 0, 0, 0.0

    def add(self, losses: torch.Tensor, correct: torch.Tensor, batch: dict[str, Any]) -> None:
        """One forward pass: (K) losses and hits, and the batch that they are of."""
        losses = losses.detach().double()
        counted = torch.ones_like(losses) if batch["sides"] is None else batch["sides"].preferred.to(losses)
        groups = [batch["kinds"]] + ([batch["sources"] + self.kinds] if batch["sources"] is not None else [])
        for group in groups:
            index = group.to(self.device)
            self.sums.index_add_(0, index, losses * counted)
            self.counts.index_add_(0, index, counted)
        self.hits += (correct * counted).sum()
        self.tokens += batch["tokens"]
        self.learned += len(batch["targets"])
        self.flops += self.work.of(batch)

    def add_metrics(self, values: Mapping[str, torch.Tensor]) -> None:
        """The values of one forward pass of preferences, of each pair or answer."""
        for place, name in enumerate(self.metrics):
            self.measured[0, place] += values[name].double().sum()
            self.measured[1, place] += len(values[name])

    def take(self, waited: float, steps: int, reduce: Any) -> dict[str, float]:
        """The log values of the span, and a new span; `waited` is for data, in seconds since the run began."""
        # Filled in on the device: a copy from the host would wait once more.
        sizes = [torch.full((1,), n, dtype=torch.float64, device=self.device) for n in (self.learned, self.tokens)]
        parts = (self.sums, self.counts, self.measured.flatten(), self.hits, *sizes)
        totals: list[float] = reduce(torch.cat(parts)).tolist()
        groups = len(self.names)
        sums, counts, measured = totals[:groups], totals[groups : 2 * groups], totals[2 * groups : -3]
        hits, learned, all_tokens = totals[-3:]
        seconds = max(time.perf_counter() - self.began, 1e-9)
        out = {
            "token_accuracy": hits / max(sum(counts[: self.kinds]), 1.0),
            "learned_tokens": learned,
            "tokens_per_s": all_tokens / seconds,
            "data_wait_ms": (waited - self.waited) / max(steps, 1) * 1e3,
        }
        out |= metric_means(self.metrics, measured)
        for part in (range(self.kinds), range(self.kinds, groups)):
            present = [group for group in part if counts[group]]
            if len(present) > 1:
                out |= {f"{self.loss_name}_{self.names[group]}": sums[group] / counts[group] for group in present}
        if self.peak is not None and self.work.is_whole:
            out["mfu"] = self.flops / seconds / self.peak
        self.waited = waited
        self.reset()
        return out


def metric_means(names: Sequence[str], measured: Sequence[float]) -> dict[str, float]:
    """Means of metrics by name, of those that have a value, from their sums and then their numbers of values.

    Margins of single verdicts (KTO) are those between the means of both sides, as in TRL.
    """
    means = {
        name: total / count
        for name, total, count in zip(names, measured[: len(names)], measured[len(names) :], strict=True)
        if count
    }
    sides = ("rewards/chosen", "rewards/rejected")
    if "rewards/margins" not in names and all(side in means for side in sides):
        means["rewards/margins"] = means[sides[0]] - means[sides[1]]
    return means
