"""A planned build: its rows as stages, tables and manifest need them; rejected where plan or shard says so."""

import hashlib
import heapq
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from omniprep import io
from omniprep.compiler.costs import QWEN_BYTES
from omniprep.compiler.duplicates import Duplicates, duplicate_message
from omniprep.compiler.encode.stored_items import codec_columns
from omniprep.compiler.output.manifest import versions
from omniprep.compiler.output.paths import plan_path
from omniprep.compiler.pack import Assignment, Rows
from omniprep.compiler.plan.file import read_rejects
from omniprep.compiler.plan.padding import pad_token
from omniprep.compiler.plan.split_task import merge_unread, rejected_json
from omniprep.compiler.preferences import OtherKinds
from omniprep.compiler.run.tasks import Receipt
from omniprep.config import BuildConfig
from omniprep.errors import RejectCode
from omniprep.families.checkpoint import model_types
from omniprep.families.context import FamilyContext, FamilySpec
from omniprep.media.video import backend
from omniprep.rows.sources import fingerprint, read_split
from omniprep.rows.split import Split, lines_before
from omniprep.shards.codecs import codec_names
from omniprep.shards.schema import FORMAT


@dataclass(slots=True)
class Planned:
    """Rows that were read from inputs: an `Origin` (compiler/output/manifest.py)."""

    config: BuildConfig
    """Of the build; its plans lie in `out`."""
    ctx: FamilyContext
    spec: FamilySpec
    splits: list[Split]
    """Parts of the inputs, in order."""
    inputs: list[dict[str, Any]]
    """Each input with what tells that it changed."""
    receipts: list[Receipt]
    """Of each split."""
    rows: Rows
    assignment: Assignment
    plan_hash: str
    generation: str = ""
    """Part of the names of the plans (compiler/output/folder.py)."""
    duplicates: Duplicates | None = None
    """Rows that --dedup exact rejects."""
    other_kinds: OtherKinds | None = None
    """Rows that --preference auto rejects."""
    checked: dict[str, Any] = field(default_factory=dict)
    """What came of the family's check against the checkpoint's processor (compiler/oracle/quick.py)."""

    def facts(self, shard_seconds: float) -> dict[str, Any]:
        """As `Origin.facts`."""
        ctx = self.ctx
        plan_seconds = sum(receipt["seconds"] for receipt in self.receipts)
        readers = Counter[str]()
        for receipt in self.receipts:
            readers.update(receipt["video_readers"])
        return {
            "format": FORMAT,
            "omniprep": versions()["omniprep"],
            "family": ctx.name,
            "family_version": ctx.record.version,
            "reference": ctx.reference or f"transformers {versions()['transformers']} AutoProcessor",
            "checked": self.checked,
            "model": self.config.model,
            "model_types": list(model_types(ctx.config)),
            "placeholders": {modality: ctx.placeholder_id(modality) for modality in ctx.modalities},
            "pad_token": pad_token(ctx),
            "tokenizer_sha256": ctx.tokenizer_sha256,
            "preprocessor_sha256": hashlib.sha256(json.dumps(ctx.preprocessor, sort_keys=True).encode()).hexdigest(),
            "versions": {**versions(), **ctx.versions},
            "video_backend": backend(),
            "video_readers": dict(
                sorted(sum((Counter(r["video_readers"]) for r in self.receipts), Counter[str]()).items())
            ),
            # A repack must cut its shards as a build does.
            **({} if self.rows.unit_bytes == QWEN_BYTES else {"unit_bytes": self.rows.unit_bytes}),
            "pixel_codecs": codec_names(codec_columns(ctx, self.config)),
            "inputs": self.inputs,
            "seconds": {"plan": round(plan_seconds, 1), "encode": round(shard_seconds, 1)},
        }

    @property
    def preferences(self) -> bool:
        """Whether the shards have the columns of preference rows."""
        return "verdict" in self.rows.facts

    @property
    def left_out(self) -> dict[str, int]:
        """As `Origin.left_out`."""
        return {name: sum(receipt[name] for receipt in self.receipts) for name in ("filtered", "other_part")}

    def unread(self) -> dict[str, list[Any]]:
        """As `Origin.unread`."""
        total: dict[str, list[Any]] = {}
        for receipt in self.receipts:
            merge_unread(total, receipt.get("unread", {}))
        return total

    def lines(self, part: slice) -> tuple[pa.Array, NDArray[np.int64]]:
        """As `Origin.lines`."""
        splits = self.rows.split[part]
        sources = pa.array([split.source for split in self.splits], pa.string())
        return sources.take(pa.array(splits)), self._lines_before()[splits] + self.rows.facts["line"][part] + 1

    def _lines_before(self) -> NDArray[np.int64]:
        return lines_before(self.splits, [receipt["lines"] for receipt in self.receipts])

    def rejected(self, numbers: NDArray[np.int64], late: dict[int, dict[str, Any]]) -> Iterator[bytes | memoryview]:
        """As `Origin.rejected`; rows that were rejected after the plan was made are read again from their source."""
        before, first_row = self._lines_before(), 0
        by_split: dict[int, list[int]] = {}
        for number in late:
            by_split.setdefault(int(self.rows.split[number]), []).append(number)
        for index, (split, receipt) in enumerate(zip(self.splits, self.receipts, strict=True)):
            early = (
                (first_row + row.number, row.code, row.message, row.raw)
                for row in read_rejects(plan_path(self.config.out, index, ".arrow", self.generation))
            )
            wanted = {int(self.rows.facts["line"][number]): late[number] for number in by_split.get(index, ())}
            for number, code, message in self._taken_out(slice(first_row, first_row + receipt["rows"]), before):
                line = int(self.rows.facts["line"][number])
                wanted[line] = {"row": number, "code": code, "message": message}
            # One row at a time: with inline media a row may be hundreds of MB.
            again = _read_again(split, wanted, self.config.max_line_bytes)
            for number, code, message, raw in heapq.merge(early, again, key=lambda row: row[0]):
                line = int(before[index] + self.rows.facts["line"][number] + 1)
                head = {"source": split.source, "line": line, "code": code, "message": message}
                yield json.dumps(head, ensure_ascii=False)[:-1].encode(errors="replace") + b', "row": '
                yield raw
                del raw
                yield b"}\n"
            first_row += receipt["rows"]

    def _taken_out(self, part: slice, before: NDArray[np.int64]) -> Iterator[tuple[int, str, str]]:
        """Number, code and message of the rows among some of the plan that were rejected after it was made."""
        yield from self.other_kinds.rejects(part) if self.other_kinds is not None else ()
        if self.duplicates is None:
            return
        kept, built = self.duplicates.kept[part], self.duplicates.built
        for index in np.flatnonzero(kept >= 0).tolist():
            number, first = part.start + index, int(kept[index])
            if first < len(built.lines):
                name = built.name(first)
            else:
                first -= len(built.lines)
                split = int(self.rows.split[first])
                name = f"{self.splits[split].source}:{int(before[split] + self.rows.facts['line'][first] + 1)}"
            yield number, str(RejectCode.DUPLICATE), duplicate_message(name)

    def taken_out(self) -> Iterator[tuple[str, str, str]]:
        """SOURCE:LINE, code and message of the rows that were rejected after the plan was made, in their order."""
        before, first_row = self._lines_before(), 0
        for index, (split, receipt) in enumerate(zip(self.splits, self.receipts, strict=True)):
            taken = sorted(self._taken_out(slice(first_row, first_row + receipt["rows"]), before))
            for number, code, message in taken:
                yield f"{split.source}:{before[index] + self.rows.facts['line'][number] + 1}", code, message
            first_row += receipt["rows"]

    def taken_out_by_code(self) -> dict[str, int]:
        """How many those are."""
        counts = Counter[str]() if self.other_kinds is None else self.other_kinds.by_code()
        if self.duplicates is not None:
            counts[str(RejectCode.DUPLICATE)] += len(self.duplicates)
        return dict(+counts)


def _read_again(
    split: Split, wanted: dict[int, dict[str, Any]], max_line_bytes: int
) -> Iterator[tuple[int, str, str, memoryview]]:
    """Rows of a split that failed while encoding, by line; one that is not there any more without its content."""
    missing = dict(wanted)
    if wanted:
        for raw in read_split(split, max_line_bytes=max_line_bytes):
            if (reject := missing.pop(raw.line, None)) is not None:
                content = rejected_json(raw)
                yield reject["row"], reject["code"], reject["message"], memoryview(content)
                del content
            del raw  # not held while the next is read
            if not missing:
                break  # the rest of the split is not read, beside a row that is still held
    for reject in missing.values():
        yield reject["row"], reject["code"], reject["message"], memoryview(b"null")


def describe_inputs(splits: list[Split]) -> list[dict[str, Any]]:
    """Each input with what tells cheaply that it changed."""
    first = {split.source: split for split in reversed(splits)}
    drawn: dict[str, list[Any]] = {}
    for split in splits:
        if split.chosen is not None:
            drawn.setdefault(split.source, []).append((split.start, split.chosen))
    with io.listed(split.uri for split in first.values()):
        return [
            {"source": source, **fingerprint(first[source]), **_draw_as_json(drawn.get(source))}
            for source in dict.fromkeys(s.source for s in splits)
        ]


def _draw_as_json(drawn: list[Any] | None) -> dict[str, Any]:
    """Which rows of an input INPUT#N drew: their number, and a hash of which."""
    if drawn is None:
        return {}
    digest = hashlib.sha256(json.dumps(drawn).encode()).hexdigest()
    return {"drawn_rows": sum(len(chosen) for _, chosen in drawn), "drawn_sha256": digest}
