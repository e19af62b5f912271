"""The rows of a build, as its tables and its manifest tell of them: lines of inputs, rejected where the plan or a shard
says so.
"""

import hashlib
import heapq
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from omniprep.compiler.output.manifest import tokenizer_hash, versions
from omniprep.compiler.output.paths import plan_path
from omniprep.compiler.pack import Rows
from omniprep.compiler.plan.file import read_rejects
from omniprep.compiler.plan.split_task import rejected_json
from omniprep.config import BuildConfig
from omniprep.families.context import FamilyContext
from omniprep.media.video import backend
from omniprep.rows.sources import Split, fingerprint, read_split
from omniprep.shards.schema import FORMAT

__all__ = ["BuiltRows", "describe_inputs", "lines_before"]


class BuiltRows:
    """Rows that were read from inputs.

    Args:
        config: Of the build; its plans lie in `out`.
        ctx: The family.
        splits: Parts of the inputs, in order.
        receipts: The receipt of each split.
        rows: Facts of all rows.
        inputs: Each input with what tells that it changed.
        encode_seconds: That the shards took, summed.
        unread: Columns that nobody reads, as `unread` gives them.
        generation: Part of the names of the plans.
    """

    def __init__(
        self, config: BuildConfig, ctx: FamilyContext, splits: list[Split], receipts: Sequence[dict[str, Any]],
        rows: Rows, inputs: list[dict[str, Any]], encode_seconds: float, unread: Mapping[str, list[Any]],
        generation: str = "",
    ) -> None:  # fmt: skip
        """Number the lines of the sources."""
        self._config, self._ctx, self._splits, self._rows = config, ctx, splits, rows
        self._inputs, self._unread, self._generation = inputs, unread, generation
        plan_seconds = sum(receipt["seconds"] for receipt in receipts)
        self._seconds = {"plan": round(plan_seconds, 1), "encode": round(encode_seconds, 1)}
        self._names = pa.array([split.source for split in splits], pa.string())
        self._numbers = lines_before(splits, [receipt["lines"] for receipt in receipts])[rows.split]
        self._numbers += rows.facts["line"]
        self._numbers += 1

    def facts(self) -> dict[str, Any]:
        """As `Origin.facts`."""
        ctx = self._ctx
        return {
            "format": FORMAT,
            "omniprep": version("omniprep"),
            "family": ctx.name,
            "family_version": ctx.record.version,
            "model": self._config.model,
            "tokenizer_sha256": tokenizer_hash(ctx),
            "preprocessor_sha256": hashlib.sha256(json.dumps(ctx.preprocessor, sort_keys=True).encode()).hexdigest(),
            "versions": {**versions(), **ctx.versions},
            "video_backend": backend(),
            "inputs": self._inputs,
            "seconds": self._seconds,
        }

    def unread(self) -> Mapping[str, list[Any]]:
        """As `Origin.unread`."""
        return self._unread

    def lines(self, at: slice) -> tuple[pa.Array, NDArray[np.int64]]:
        """As `Origin.lines`."""
        return self._names.take(pa.array(self._rows.split[at])), self._numbers[at]

    def rejected(self, numbers: NDArray[np.int64], late: dict[int, dict[str, Any]]) -> Iterator[bytes | memoryview]:
        """As `Origin.rejected`; rows that failed while encoding are read again from their source."""
        sizes = np.bincount(self._rows.split, minlength=len(self._splits))
        first = np.concatenate([[0], np.cumsum(sizes)])
        by_split: dict[int, list[int]] = {}
        for number in late:
            by_split.setdefault(int(self._rows.split[number]), []).append(number)
        for s, split in enumerate(self._splits):
            early = (
                (int(first[s]) + row.number, row.code, row.message, row.raw)
                for row in read_rejects(plan_path(self._config.out, s, ".arrow", self._generation))
            )
            wanted = {int(self._rows.facts["line"][n]): late[n] for n in by_split.get(s, ())}
            # One row at a time: with inline media a row may be hundreds of MB.
            again = _read_again(split, wanted, self._config.max_line_bytes)
            for number, code, message, raw in heapq.merge(early, again, key=lambda row: row[0]):
                line = int(self._numbers[number])
                head = {"source": split.source, "line": line, "code": code, "message": message}
                yield json.dumps(head, ensure_ascii=False)[:-1].encode(errors="replace") + b', "row": '
                yield raw
                yield b"}\n"


def _read_again(
    split: Split, wanted: dict[int, dict[str, Any]], max_line_bytes: int
) -> Iterator[tuple[int, str, str, memoryview]]:
    """Rows of a split that failed while encoding, by line; one that is not there any more without its content."""
    left = dict(wanted)
    if wanted:
        for raw in read_split(split, max_line_bytes=max_line_bytes):
            if (reject := left.pop(raw.line, None)) is not None:
                content = rejected_json(raw)
                yield reject["row"], reject["code"], reject["message"], memoryview(content)
                del content
            del raw  # not held while the next is read
    for reject in left.values():
        yield reject["row"], reject["code"], reject["message"], memoryview(b"null")


def lines_before(splits: list[Split], lines: list[int]) -> NDArray[np.int64]:
    """How many lines of its source stand before each split; `lines` are the lines of each."""
    before, seen = np.zeros(len(splits), np.int64), Counter[str]()
    for number, split in enumerate(splits):
        before[number] = seen[split.source]
        seen[split.source] += lines[number]
    return before


def describe_inputs(splits: list[Split]) -> list[dict[str, Any]]:
    """Each input with what tells cheaply that it changed."""
    first = {split.source: split for split in reversed(splits)}
    return [{"source": source, **fingerprint(first[source])} for source in dict.fromkeys(s.source for s in splits)]
