"""What a worker is told: plan this split, encode that shard. Plain records of plain values, the same on Ray (which
copies them), in this process, and as JSON for the child that tries rows apart (omniprep/build/isolate.py).
"""

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omniprep import io
from omniprep.config import BuildConfig
from omniprep.families.context import FamilySpec
from omniprep.rows.sources import Split

__all__ = ["PlanTask", "ShardTask", "plan_path", "receipt_path", "shard_name", "task_as_json", "task_from_json"]


@dataclass(frozen=True, slots=True)
class PlanTask:
    """Plan one split: where its plan and receipt go."""

    split: Split
    number: int
    spec: FamilySpec
    config: BuildConfig
    out: str
    isolate: bool = False
    """Find the rows that end the process first, since one did (omniprep/build/isolate.py)."""


@dataclass(frozen=True, slots=True)
class ShardTask:
    """Encode one shard: for each bin, its rows as (split, row within the split), and their numbers in rows.parquet."""

    number: int
    splits: NDArray[np.int32]
    rows: NDArray[np.int32]
    row_ids: NDArray[np.int64]
    offsets: NDArray[np.int64]
    """Bin b holds rows offsets[b] to offsets[b+1]."""
    run: str
    """Of the driver; a warm worker keeps plans open within one run."""
    spec: FamilySpec
    config: BuildConfig
    out: str
    isolate: bool = False
    """As in PlanTask."""


def plan_path(out: str, number: int, suffix: str) -> str:
    """Where the plan (".arrow") or the receipt (".json") of a split lies."""
    return io.join(out, "plan", f"split-{number:06d}{suffix}")


def shard_name(number: int) -> str:
    """Name of a shard's file."""
    return f"{number:05d}.arrow"


def receipt_path(out: str, number: int) -> str:
    """Where the receipt of a shard lies."""
    return io.join(out, "receipts", f"{number:05d}.json")


def task_as_json(task: PlanTask | ShardTask) -> str:
    """A task as JSON."""
    return json.dumps(dataclasses.asdict(task), default=lambda array: array.tolist())


def task_from_json(text: str | bytes) -> PlanTask | ShardTask:
    """The task that `task_as_json` wrote."""
    given: dict[str, Any] = _with_tuples(json.loads(text))
    given["spec"], given["config"] = FamilySpec(**given["spec"]), BuildConfig(**given["config"])
    if "split" in given:
        return PlanTask(**{**given, "split": Split(**given["split"])})
    arrays = {"splits": np.int32, "rows": np.int32, "row_ids": np.int64, "offsets": np.int64}
    return ShardTask(**{**given, **{name: np.array(given[name], dtype) for name, dtype in arrays.items()}})


def _with_tuples(value: Any) -> Any:
    """Lists become tuples again: the records hold no lists, since they are keys of caches."""
    if isinstance(value, list):
        return tuple(_with_tuples(entry) for entry in value)
    return {key: _with_tuples(entry) for key, entry in value.items()} if isinstance(value, dict) else value
