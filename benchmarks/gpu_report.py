"""What the sections of benchmarks/gpu.py share: the report they write to, and what they measure on."""

import dataclasses
import gc
import json
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from gpu_inputs import write_config


class Report:
    """Rows of measurements and results of checks, printed as they come and written to a file after each.

    Args:
        path: JSON to write.
        seconds: Time that the whole may take.
        facts: What stands at the head of the file.
    """

    def __init__(self, path: Path, seconds: float, facts: dict[str, Any]) -> None:
        self.path, self.seconds, self.facts = path, seconds, facts
        self.began = time.monotonic()
        self.rows: list[dict[str, Any]] = []
        self.checks: list[dict[str, Any]] = []
        self.failures: list[dict[str, str]] = []

    @property
    def left(self) -> float:
        """Seconds left."""
        return self.seconds - (time.monotonic() - self.began)

    def row(self, part: str, what: str, **values: Any) -> None:
        """Keep and print one measurement."""
        self.rows.append({"part": part, "what": what, **values})
        self._print(f"{part:9s} {what}: " + ", ".join(f"{k} {_short(v)}" for k, v in values.items()))

    def check(self, what: str, value: float, limit: float, *, at_least: bool = False) -> None:
        """Keep and print whether a goal is reached."""
        reached = value >= limit if at_least else value <= limit
        self.checks.append({"goal": what, "value": value, "limit": limit, "reached": reached})
        sign = "≥" if at_least else "≤"
        self._print(f"{'goal':9s} {what}: {_short(value)} {sign} {_short(limit)}: {'yes' if reached else 'NO'}")

    def guard(self, part: str, what: str, call: Callable[[], Any], needs: float = 0.0) -> Any:
        """Call, unless too little time is left; report what it raises and go on."""
        if self.left < needs:
            self.row(part, what, left_out=f"needs {needs:.0f} s, {self.left:.0f} s left")
            return None
        try:
            return call()
        except Exception as error:
            text = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            self.failures.append({"part": part, "what": what, "traceback": traceback.format_exc()[-6000:]})
        self.row(part, what, failed=text)  # outside the handler, whose exception holds the tensors of its frames
        release()
        return None

    def _print(self, text: str) -> None:
        print(f"[{time.monotonic() - self.began:6.1f} s] {text}", flush=True)
        self.write()

    def write(self) -> None:
        """Write all so far."""
        seconds = round(time.monotonic() - self.began, 1)
        whole = {
            **self.facts,
            "seconds": seconds,
            "checks": self.checks,
            "rows": self.rows,
            "failures": self.failures,
        }
        beside = self.path.with_suffix(".partial")
        beside.write_text(json.dumps(whole, indent=1) + "\n")
        beside.replace(self.path)


def _short(value: Any) -> str:
    return f"{value:,.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def release() -> None:
    """Give back the memory of what nobody refers to any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bench:
    """What all sections need.

    Attributes:
        report: Where measurements go.
        device: What is measured.
        model: Folder that `init-model` wrote.
        folder: For everything made here.
        small: Sizes for a CPU, which test this script and measure nothing.
        quick: A few of each section.
        bins: Datasets by codec, "sound" among them; ready when called.
        types: Small models of other families with a dataset each (gpu_loops.py).
    """

    report: Report
    device: torch.device
    model: Path
    folder: Path
    small: bool
    quick: bool
    bins: Callable[[], dict[str, Path]]
    types: Path | None = None

    def shape(self, name: str) -> Path:
        """A checkpoint folder of a shape (with --small, of the small model)."""
        return write_config(self.model, self.folder / f"model-{name}", "small" if self.small else name)
