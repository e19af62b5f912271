"""What a worker is told: plan this split, encode that shard. Plain records of plain values, the same on Ray (which
copies them), in this process, and as JSON for the child that tries rows apart (compiler/isolate/crashing_rows.py).
"""

import dataclasses
import json
import re
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from omniprep import io
from omniprep.compiler.output.fence import Fence
from omniprep.config import BuildConfig
from omniprep.families.context import FamilySpec
from omniprep.rows.sources import Split
from omniprep.shards.typed import parse_json

__all__ = [
    "PlanTask",
    "ShardTask",
    "Task",
    "of_generation",
    "plan_path",
    "read_receipt",
    "receipt_path",
    "shard_is_whole",
    "shard_name",
    "task_as_json",
    "task_from_json",
]


class Task(Protocol):
    """One task of a stage; what it writes is named by its number, and its receipt says that it is done."""

    @property
    def number(self) -> int:
        """Of the split or shard."""

    @property
    def out(self) -> str:
        """The folder of the dataset."""

    @property
    def receipt(self) -> str:
        """Where its receipt lies once it is done."""

    def is_whole(self, receipt: dict[str, Any]) -> bool:
        """Whether a receipt is one of this task and the file that it speaks of is there, of the size it had.

        Raises:
            KeyError, TypeError: It is no receipt of such a task.
            FileNotFoundError: The file is gone.
        """


def read_receipt(task: Task) -> dict[str, Any] | None:
    """The receipt of a finished task; None where there is none that holds, so that the task is done again: the
    receipt is absent, cut or of another kind, or its file is not there with its size.
    """
    if not io.exists(task.receipt):
        return None
    try:
        receipt = parse_json(io.read_bytes(task.receipt), task.receipt)
        return receipt if isinstance(receipt, dict) and task.is_whole(receipt) else None
    except (ValueError, KeyError, TypeError, AttributeError, FileNotFoundError):
        return None


_NUMBERS = {"bin": int, "tokens": int, "rows": int, "offset": int, "length": int, "checksum": int}


def shard_is_whole(out: str, number: int, generation: str, receipt: dict[str, Any]) -> bool:
    """`Task.is_whole` of a task that writes a shard."""
    name = f"shards/{shard_name(number, generation)}"
    known = receipt["path"] == name and re.fullmatch("[0-9a-f]{64}", receipt["sha256"]) is not None
    known = known and isinstance(receipt["seconds"], float | int)
    known = known and all(isinstance(entry[key], kind) for entry in receipt["bins"] for key, kind in _NUMBERS.items())
    known = known and all({"row", "code", "message"} <= reject.keys() for reject in receipt["rejects"])
    return known and io.size(io.join(out, "shards", shard_name(number, generation))) == receipt["bytes"]


@dataclass(frozen=True, slots=True)
class PlanTask:
    """Plan one split: where its plan and receipt go."""

    split: Split
    number: int
    spec: FamilySpec
    config: BuildConfig
    out: str
    isolate: bool = False
    """Find the rows that end the process first, since one did (omniprep/compiler/isolate/crashing_rows.py)."""
    generation: str = ""
    """Part of the names of what the run writes (omniprep/compiler/output/folder.py)."""
    fence: Fence | None = None
    """The run's right to change the folder; None in a folder that nobody else knows of."""

    @property
    def plan(self) -> str:
        """Where the plan of the split lies once it is done."""
        return plan_path(self.out, self.number, ".arrow", self.generation)

    @property
    def receipt(self) -> str:
        """As `Task.receipt`."""
        return plan_path(self.out, self.number, ".json", self.generation)

    def is_whole(self, receipt: dict[str, Any]) -> bool:
        """As `Task.is_whole`."""
        codes = receipt["codes"]
        numbers = [receipt[name] for name in ("rows", "rejected", "tokens", "lines", "bytes")]
        numbers += [*receipt["chunks"], *codes.values(), *receipt["columns"]]
        known = all(isinstance(number, int) for number in numbers)
        known = known and all(isinstance(n, int) and isinstance(text, str) for n, text in receipt["unread"].values())
        known = known and sum(codes.values()) == receipt["rejected"]
        known = known and isinstance(receipt["seconds"], float | int) and sum(receipt["chunks"]) == receipt["rows"]
        return known and io.size(self.plan) == receipt["bytes"]


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
    generation: str = ""
    """As in PlanTask."""
    fence: Fence | None = None
    """As in PlanTask."""

    @property
    def receipt(self) -> str:
        """As `Task.receipt`."""
        return receipt_path(self.out, self.number, self.generation)

    def is_whole(self, receipt: dict[str, Any]) -> bool:
        """As `Task.is_whole`."""
        return shard_is_whole(self.out, self.number, self.generation, receipt)


def of_generation(stem: str, generation: str, suffix: str) -> str:
    """Name of a file of a generation (compiler/output/folder.py); that of the first, and of local folders, is ""."""
    return f"{stem}-{generation}{suffix}" if generation else f"{stem}{suffix}"


def plan_path(out: str, number: int, suffix: str, generation: str = "") -> str:
    """Where the plan (".arrow") or the receipt (".json") of a split lies."""
    return io.join(out, "plan", of_generation(f"split-{number:06d}", generation, suffix))


def shard_name(number: int, generation: str = "") -> str:
    """Name of a shard's file."""
    return of_generation(f"{number:05d}", generation, ".arrow")


def receipt_path(out: str, number: int, generation: str = "") -> str:
    """Where the receipt of a shard lies."""
    return io.join(out, "receipts", of_generation(f"{number:05d}", generation, ".json"))


def task_as_json(task: PlanTask | ShardTask) -> str:
    """A task as JSON, without its fence: whoever reads it writes nothing."""
    return json.dumps(dataclasses.asdict(dataclasses.replace(task, fence=None)), default=lambda array: array.tolist())


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
