"""A task of a stage: a plain record that says what to do, does it, and leaves a receipt that says it is done.

The same record works on Ray (which copies it), in this process, and as JSON in the child process that tries rows one
by one (compiler/isolate/crashing_rows.py). The tasks are `PlanTask` (compiler/plan/split_task.py), `EncodeTask`
(compiler/encode/shard_task.py) and `CopyTask` (compiler/repack.py).
"""

import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from omniprep import io
from omniprep.compiler.output.fence import Fence
from omniprep.compiler.output.paths import receipt_path, shard_name
from omniprep.shards.typed import parse_json

Receipt = dict[str, Any]
RowPosition = int | tuple[int, int]
"""A row by its number in rows.parquet, or by its split and its line there, from 0."""


class RejectedRow(NamedTuple):
    """A row that a task rejected."""

    position: RowPosition
    code: str
    message: str


@dataclass(frozen=True, kw_only=True)
class Task(ABC):
    """One task of a stage; what it writes is named by its number."""

    number: int
    """Of the split or shard."""
    out: str
    """The folder of the dataset."""
    generation: str = ""
    """Part of the names of what the run writes (compiler/output/folder.py)."""
    fence: Fence | None = None
    """The run's right to change the folder; None in a folder that nobody else knows of."""
    isolate: bool = False
    """Find the rows that crash the worker first, since one did (compiler/isolate/crashing_rows.py)."""

    @property
    @abstractmethod
    def receipt_path(self) -> str:
        """Where the receipt lies once the task is done."""

    @abstractmethod
    def is_done(self, receipt: Receipt) -> bool:
        """Whether a receipt is of this task, and its file is there with its size; may raise KeyError, TypeError."""

    @abstractmethod
    def run(self) -> Receipt:
        """Do the task, write its receipt and return it."""

    def rows(self) -> Iterator[tuple[int, Callable[[], object]]]:
        """Each row by its number in the task, and a call that decodes it and throws the result away."""
        raise NotImplementedError(f"{type(self).__name__} decodes no rows")

    @abstractmethod
    def tokens(self, receipt: Receipt) -> int:
        """Tokens of the rows that were kept."""

    @abstractmethod
    def row_count(self, receipt: Receipt) -> int:
        """Rows that were read, or kept in shards."""

    @abstractmethod
    def reject_counts(self, receipt: Receipt) -> Counter[str]:
        """Rejected rows of each code."""

    @abstractmethod
    def rejects(self, receipt: Receipt) -> Iterator[RejectedRow]:
        """The rejected rows, in order."""


def read_receipt(task: Task) -> Receipt | None:
    """The receipt of a finished task; None where there is none that holds, so that the task is done again: the
    receipt is absent, cut or of another kind, or its file is not there with its size.
    """
    if not io.exists(task.receipt_path):
        return None
    try:
        receipt = parse_json(io.read_bytes(task.receipt_path), task.receipt_path)
        return receipt if isinstance(receipt, dict) and task.is_done(receipt) else None
    except (ValueError, KeyError, TypeError, AttributeError, FileNotFoundError):
        return None


_BIN_FIELDS = {"bin": int, "tokens": int, "rows": int, "offset": int, "length": int, "checksum": int, "before": int}


@dataclass(frozen=True, kw_only=True)
class ShardTask(Task):
    """A task that writes a shard with `ShardFile` (compiler/encode/shard_file.py), which writes the receipt too."""

    @property
    def receipt_path(self) -> str:
        """As `Task.receipt_path`."""
        return receipt_path(self.out, self.number, self.generation)

    def is_done(self, receipt: Receipt) -> bool:
        """As `Task.is_done`."""
        name = shard_name(self.number, self.generation)
        return (
            receipt["path"] == f"shards/{name}"
            and re.fullmatch("[0-9a-f]{64}", receipt["sha256"]) is not None
            and isinstance(receipt["seconds"], float | int)
            and all(isinstance(entry[key], kind) for entry in receipt["bins"] for key, kind in _BIN_FIELDS.items())
            and all({"row", "code", "message"} <= reject.keys() for reject in receipt["rejects"])
            and io.size(io.join(self.out, "shards", name)) == receipt["bytes"]
        )

    def tokens(self, receipt: Receipt) -> int:
        """As `Task.tokens`."""
        return sum(entry["tokens"] for entry in receipt["bins"])

    def row_count(self, receipt: Receipt) -> int:
        """As `Task.row_count`."""
        return sum(entry["rows"] for entry in receipt["bins"])

    def reject_counts(self, receipt: Receipt) -> Counter[str]:
        """As `Task.reject_counts`."""
        return Counter(reject["code"] for reject in receipt["rejects"])

    def rejects(self, receipt: Receipt) -> Iterator[RejectedRow]:
        """As `Task.rejects`."""
        for reject in receipt["rejects"]:
            yield RejectedRow(reject["row"], reject["code"], reject["message"])
