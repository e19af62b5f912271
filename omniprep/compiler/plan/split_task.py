"""Plan one split: its rows, chunk by chunk, into plan/split-N.arrow and a receipt."""

import base64
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from omniprep import io
from omniprep.compiler.isolate.crashing_rows import find_crashing_rows
from omniprep.compiler.isolate.deadline import row_deadlines
from omniprep.compiler.output.paths import plan_path
from omniprep.compiler.plan.content_hash import ContentHashes
from omniprep.compiler.plan.file import read_rejects, to_batch, write_plan
from omniprep.compiler.plan.rows import plan_rows
from omniprep.compiler.run.tasks import Receipt, RejectedRow, Task
from omniprep.compiler.run.worker_status import report_progress
from omniprep.config import BuildConfig
from omniprep.errors import Reject
from omniprep.families.context import FamilySpec, resolve
from omniprep.families.errors import FamilyError
from omniprep.media.fetch import MediaRoots
from omniprep.rows.columns import columns_of_row, parse_columns
from omniprep.rows.parts import is_for_eval
from omniprep.rows.sources import RawRow, Tally, read_split
from omniprep.rows.split import Split
from omniprep.rows.where import column_name

CHUNK_ROWS, CHUNK_BYTES = 256, 8 << 20


@dataclass(frozen=True, kw_only=True)
class PlanTask(Task):
    """Plan one split: where its plan and receipt go."""

    split: Split
    spec: FamilySpec
    config: BuildConfig

    @property
    def plan_path(self) -> str:
        """Where the plan of the split lies once it is done."""
        return plan_path(self.out, self.number, ".arrow", self.generation)

    @property
    def receipt_path(self) -> str:
        """As `Task.receipt_path`."""
        return plan_path(self.out, self.number, ".json", self.generation)

    def is_done(self, receipt: Receipt) -> bool:
        """As `Task.is_done`."""
        codes, chunks = receipt["codes"], receipt["chunks"]
        numbers = [receipt[name] for name in ("rows", "rejected", "tokens", "lines", "filtered", "other_part", "bytes")]
        numbers += [*chunks, *codes.values(), *receipt["columns"], *receipt["video_readers"].values()]
        numbers += [receipt["other_prompts"], *receipt["verdicts"].values()]
        return (
            all(isinstance(number, int) for number in numbers)
            and all(isinstance(name, str) for name in (*receipt["missing_columns"], *receipt["seen_columns"]))
            and all(isinstance(rows, int) and isinstance(option, str) for rows, option in receipt["unread"].values())
            and sum(codes.values()) == receipt["rejected"]
            and isinstance(receipt["seconds"], float | int)
            and sum(chunks) == receipt["rows"]
            and io.size(self.plan_path) == receipt["bytes"]
        )

    def run(self) -> Receipt:
        """As `Task.run`.

        Returns:
            The receipt: rows, rejected, codes (rejects of each), tokens, lines (of the split, to number those after
            it), filtered (rows that --where leaves out), other_part (rows that --split-by
            puts into the other dataset), missing_columns (of --where, that no row has) and seen_columns
            (some that there are instead), chunks (rows of each record batch), unread (columns that nobody reads: rows,
            and the option that reads them), columns (numbers of the --columns that some row has), video_readers (videos
            that each one decodes), verdicts (planned rows of each `Verdict`), other_prompts (pairs whose answers
            have not the same prompt), bytes (of the plan), seconds.
        """
        return _Planning(self).run()

    def rows(self) -> Iterator[tuple[int, Callable[[], object]]]:
        """As `Task.rows`."""
        family, media_roots = resolve(self.spec), self.media_roots()
        for number, raw in enumerate(self.raw_rows(Tally())):
            yield number, lambda raw=raw: plan_rows([raw.content], family, self.config, media_roots)  # type: ignore[misc]

    def raw_rows(self, tally: Tally) -> Iterator[RawRow]:
        """The rows of the split that are of the part that is built."""
        config, columns = self.config, parse_columns(self.config.columns)
        for raw in read_split(self.split, tally, config.max_line_bytes):
            if config.part == "all" or (config.part == "eval") == is_for_eval(
                raw.content, columns, config.eval_fraction, config.seed, config.preference
            ):
                yield raw
            else:
                tally.other_part += 1
            del raw  # not held while the next is read

    def media_roots(self) -> MediaRoots:
        """Where the media of the split's rows may come from."""
        return MediaRoots(self.split.base, self.config.media_root, self.config.allow_http)

    def tokens(self, receipt: Receipt) -> int:
        """As `Task.tokens`."""
        tokens: int = receipt["tokens"]
        return tokens

    def row_count(self, receipt: Receipt) -> int:
        """As `Task.row_count`."""
        rows: int = receipt["rows"]
        return rows

    def reject_counts(self, receipt: Receipt) -> Counter[str]:
        """As `Task.reject_counts`."""
        return Counter(receipt["codes"])

    def rejects(self, receipt: Receipt) -> Iterator[RejectedRow]:
        """As `Task.rejects`."""
        for reject in read_rejects(self.plan_path):
            yield RejectedRow((self.number, reject.line), reject.code, reject.message)


class _Planning:
    """A split while it is planned: what its receipt counts."""

    def __init__(self, task: PlanTask) -> None:
        self.task, self.family, self.media_roots = task, resolve(task.spec), task.media_roots()
        self.rows = self.tokens = 0
        self.tally = Tally()
        self.chunks: list[int] = []
        self.codes = Counter[str]()
        self.unread: dict[str, list[Any]] = {}
        self.video_readers = Counter[str]()
        self.verdicts, self.other_prompts = Counter[str](), 0
        self.columns, self.used_columns = parse_columns(task.config.columns), set[int]()
        self.hashes = ContentHashes() if task.config.dedup == "exact" else None
        self.crashing = find_crashing_rows(task, task.config) if task.isolate else {}

    def run(self) -> Receipt:
        task, began = self.task, time.perf_counter()
        with row_deadlines(task.config.decode_timeout):
            write_plan(task.plan_path, self.batches())
        receipt = {
            "rows": self.rows,
            "rejected": self.codes.total(),
            "tokens": self.tokens,
            "lines": self.tally.lines,
            "filtered": self.tally.filtered,
            "other_part": self.tally.other_part,
            "missing_columns": [column_name(path) for path in self.tally.missing],
            "seen_columns": self.tally.names,
            "chunks": self.chunks,
            "codes": self.codes,
            "unread": self.unread,
            "columns": sorted(self.used_columns),
            "video_readers": self.video_readers,
            "verdicts": self.verdicts,
            "other_prompts": self.other_prompts,
            "seconds": round(time.perf_counter() - began, 3),
            "bytes": io.size(task.plan_path),
        }
        io.write_atomic(task.receipt_path, json.dumps(receipt).encode())
        return receipt

    def batches(self) -> Iterator[pa.RecordBatch]:
        task = self.task
        for chunk in row_chunks(task.raw_rows(self.tally)):
            yield self.plan_chunk(chunk)
            report_progress(f"split {task.number}", self.rows, None, "rows")

    def plan_chunk(self, chunk: list[RawRow]) -> pa.RecordBatch:
        if len(self.used_columns) < len(self.columns):
            for raw in chunk:
                self.used_columns.update(columns_of_row(raw.content, self.columns))
        contents = [self.crashing.get(number, raw.content) for number, raw in enumerate(chunk, self.rows)]
        try:
            rows = plan_rows(contents, self.family, self.task.config, self.media_roots)
        except FamilyError as error:
            if isinstance(error.row, int):
                error.row = self.task.number, chunk[error.row].line
            raise
        hashes = None
        if self.hashes is not None:
            found = [row if isinstance(row, Reject) else self.hashes.of_row(row) for row in rows]
            rows = [one if isinstance(one, Reject) else row for one, row in zip(found, rows, strict=True)]
            hashes = [b"" if isinstance(one, Reject) else one for one in found]
        lines = [raw.line for raw in chunk]
        rejected = [
            rejected_json(raw) if isinstance(row, Reject) else None for raw, row in zip(chunk, rows, strict=True)
        ]
        # Rows with inline media are not held while their bytes are copied, and the next are read.
        chunk.clear()
        contents.clear()
        for row in rows:
            if isinstance(row, Reject):
                self.codes[str(row.code)] += 1
                continue
            self.tokens += row.total("length")
            self.verdicts[str(row.verdict.name).lower()] += 1
            self.other_prompts += row.other_prompt
            merge_unread(self.unread, {name: (1, option) for name, option in row.unread.items()})
            items = [item for _, modality, item in row.stored_items() if modality == "video"]
            self.video_readers.update(item.meta.reader for item in items if item.meta.reader)
        self.rows += len(rows)
        self.chunks.append(len(rows))
        return to_batch(lines, rows, rejected, hashes)


def row_chunks(rows: Iterator[RawRow]) -> Iterator[list[RawRow]]:
    """Rows in chunks of at most `CHUNK_ROWS`, or of a row more than `CHUNK_BYTES`."""
    chunk: list[RawRow] = []
    size = 0
    for row in rows:
        chunk.append(row)
        size += row.size
        del row  # not held while the next is read: with inline media each may have hundreds of MB
        if len(chunk) >= CHUNK_ROWS or size >= CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def merge_unread(total: dict[str, list[Any]], more: Mapping[str, Any]) -> None:
    """Add columns that nobody reads, each with (rows, the option that reads it or "")."""
    for name, (rows, option) in more.items():
        before = total.setdefault(name, [0, option])
        total[name] = [before[0] + rows, before[1] or option]


def rejected_json(raw: RawRow) -> bytes:
    """A rejected row as JSON, for rejected.jsonl: bytes become base64; null where it could not even be read."""
    if isinstance(raw.content, Reject):
        return b"null"

    def convert(value: Any) -> Any:
        return base64.b64encode(value).decode() if isinstance(value, bytes) else str(value)

    try:
        # Piece by piece: a text with inline media and one rare letter would take four bytes for each of its letters.
        pieces = json.JSONEncoder(ensure_ascii=False, default=convert).iterencode(raw.content)
        return b"".join([piece.encode(errors="replace") for piece in pieces])
    except (ValueError, RecursionError):
        return json.dumps(str(raw.content)[:10_000]).encode()
