"""The two stages that workers run: plan a split, encode a shard. Files in, files and a small receipt out."""

import base64
import json
import math
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

import pyarrow as pa

from omniprep import io
from omniprep.compiler.encode.rows import EncodedRow, MediaCache, encode_planned, make_bin
from omniprep.compiler.encode.shard_file import ShardFile, UnwritableBinError
from omniprep.compiler.isolate.crashing_rows import find_killers
from omniprep.compiler.isolate.deadline import row_limit, watching
from omniprep.compiler.plan.file import PlanReader, to_batch, write_plan
from omniprep.compiler.plan.rows import PlannedRow, plan_rows, unexpected
from omniprep.compiler.run.tasks import PlanTask, ShardTask
from omniprep.compiler.run.worker_status import tell
from omniprep.config import BuildConfig
from omniprep.errors import OmniprepError, Reject
from omniprep.families.context import FamilyContext, resolve
from omniprep.families.errors import FamilyError
from omniprep.media.fetch import MediaRoots
from omniprep.rows.columns import columns_of_row, parse_columns
from omniprep.rows.sources import RawRow, read_split
from omniprep.shards.codecs import with_codec
from omniprep.shards.schema import Column, arrow_schema, read_layout
from omniprep.shards.writer import serialize_bin
from omniprep.template.loss import parse_strategy

CHUNK_ROWS, CHUNK_BYTES = 256, 8 << 20


def _chunks(rows: Iterator[RawRow]) -> Iterator[list[RawRow]]:
    chunk: list[RawRow] = []
    size = 0
    for row in rows:
        chunk.append(row)
        size += row.size
        if len(chunk) >= CHUNK_ROWS or size >= CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def as_json_bytes(raw: Any) -> bytes:
    """A raw row as JSON, for rejected.jsonl; bytes become base64."""

    def convert(value: Any) -> Any:
        return base64.b64encode(value).decode() if isinstance(value, bytes) else str(value)

    try:
        # Piece by piece: a text with inline media and one rare letter would take four bytes for each of its letters.
        pieces = json.JSONEncoder(ensure_ascii=False, default=convert).iterencode(raw)
        return b"".join([piece.encode(errors="replace") for piece in pieces])
    except (ValueError, RecursionError):
        return json.dumps(str(raw)[:10_000]).encode()


def plan_split(task: PlanTask) -> dict[str, Any]:
    """Plan a split: write plan/split-N.arrow, then its receipt.

    Returns:
        The receipt: rows, rejected, codes (rejects of each), tokens, lines (of the split, to number those after it),
        chunks (rows of each record batch), unread (columns that nobody reads: rows, and the option that reads them),
        columns (numbers of the --columns that some row has), bytes (of the plan), seconds.
    """
    with io.changes_through(task.out, task.fence):
        return _plan_split(task)


def _plan_split(task: PlanTask) -> dict[str, Any]:
    ctx = resolve(task.spec)
    media_roots = MediaRoots(task.split.base, task.config.media_root, task.config.allow_http)
    receipt: dict[str, Any] = {"rows": 0, "rejected": 0, "tokens": 0, "lines": 0, "chunks": []}
    codes = Counter[str]()
    unread: dict[str, list[Any]] = {}
    columns, used = parse_columns(task.config.columns), set[int]()
    killers = _killers(task)
    began = time.perf_counter()

    def planned(chunk: list[RawRow]) -> pa.RecordBatch:
        bad = {at: killers[receipt["rows"] + at] for at in range(len(chunk)) if receipt["rows"] + at in killers}
        for raw in chunk if len(used) < len(columns) else ():
            used.update(columns_of_row(raw.content, columns))
        contents = [bad.get(number, raw.content) for number, raw in enumerate(chunk)]
        try:
            rows = plan_rows(contents, ctx, task.config, media_roots)
        except FamilyError as error:
            if isinstance(error.place, int):
                error.place = task.number, chunk[error.place].line
            raise
        lines = [raw.line for raw in chunk]
        rejected = [
            _rejected_json(raw) if isinstance(row, Reject) else None for raw, row in zip(chunk, rows, strict=True)
        ]
        # Rows with inline media are not held while their bytes are copied, and the next are read.
        chunk.clear()
        contents.clear()
        for row in rows:
            if isinstance(row, Reject):
                codes[str(row.code)] += 1
                continue
            receipt["tokens"] += row.length
            for name, option in row.unread.items():
                merge_unread(unread, {name: [1, option]})
        receipt["rows"] += len(rows)
        receipt["chunks"].append(len(rows))
        tell(f"split {task.number}", receipt["rows"], None, "rows")
        return to_batch(lines, rows, rejected)

    def batches() -> Iterator[pa.RecordBatch]:
        rows = read_split(task.split, lambda lines: receipt.update(lines=lines), task.config.max_line_bytes)
        for chunk in _chunks(rows):
            yield planned(chunk)

    with watching(task.config.decode_timeout):
        write_plan(task.plan, batches())
    receipt |= {"rejected": codes.total(), "codes": codes, "unread": unread, "columns": sorted(used)}
    receipt["seconds"] = round(time.perf_counter() - began, 3)
    receipt["bytes"] = io.size(task.plan)
    io.write_atomic(task.receipt, json.dumps(receipt).encode())
    return receipt


def merge_unread(into: dict[str, list[Any]], more: Mapping[str, list[Any]]) -> None:
    """Add columns that nobody reads, each with [rows, the option that reads it or ""]."""
    for name, (rows, option) in more.items():
        before = into.setdefault(name, [0, option])
        into[name] = [before[0] + rows, before[1] or option]


def _killers(task: PlanTask | ShardTask) -> dict[int, Reject]:
    return find_killers(task, task.config.decode_timeout or math.inf, task.config.decode_memory) if task.isolate else {}


def _rejected_json(raw: RawRow) -> bytes:
    return b"null" if isinstance(raw.content, Reject) else as_json_bytes(raw.content)


@lru_cache(maxsize=1)
def _reader(out: str, generation: str, run: str) -> PlanReader:
    return PlanReader(out, generation)


def encode_shard(task: ShardTask) -> dict[str, Any]:
    """Encode a shard: write shards/N.arrow, then its receipt.

    A bin that cannot be written costs only the rows to blame: the shard is begun again, and the rows of that bin are
    tried one by one.

    Returns:
        The receipt (compiler/encode/shard_file.py); its rejects have the row's number in rows.parquet, code, message.
    """
    suspects: set[int] = set()
    while True:
        try:
            with io.changes_through(task.out, task.fence):
                return _encode_shard(task, suspects)
        except UnwritableBinError as error:
            if error.number in suspects:
                raise
            suspects.add(error.number)


def _encode_shard(task: ShardTask, suspects: set[int]) -> dict[str, Any]:
    """Encode a shard.

    Args:
        task: What to encode.
        suspects: Bins whose rows are tried one by one.
    """
    ctx = resolve(task.spec)
    reader, cache = _reader(task.out, task.generation, task.run), MediaCache()
    weighted = parse_strategy(task.config.loss_scale).weighted
    columns = with_codec(ctx.columns, task.config.pixel_codec)
    schema = arrow_schema(columns, family=ctx.name, modalities=ctx.modalities, weighted=weighted, mrope=ctx.mrope)
    killers = _killers(task)
    rejects: list[dict[str, Any]] = []
    with watching(task.config.decode_timeout), ShardFile(task.out, task.number, schema, task.generation) as shard:
        for b in range(len(task.offsets) - 1):
            tell(f"shard {task.number}", b, len(task.offsets) - 1, "bins")
            rows, ids = _encode_bin(task, b, killers, ctx, reader, cache, rejects)
            if b in suspects:
                rows, ids, unwritable = without_unwritable(rows, ids, ctx.columns, schema)
                rejects += unwritable
            if not rows:
                continue
            try:
                item = make_bin(rows, ids, ctx.columns, weighted=weighted)
            except Exception as error:
                raise UnwritableBinError(b, error) from error
            shard.put(b, item)
    return shard.finish(rejects)


def without_unwritable(
    rows: list[EncodedRow], ids: list[int], columns: tuple[Column, ...], schema: pa.Schema
) -> tuple[list[EncodedRow], list[int], list[dict[str, Any]]]:
    """The rows that can be written, each tried in a bin of its own: (rows, their numbers, rejects of the others)."""
    kept, numbers, rejects = [], [], []
    weighted = read_layout(schema).weighted
    for row, number in zip(rows, ids, strict=True):
        try:
            serialize_bin(make_bin([row], [number], columns, weighted=weighted), schema)
        except Exception as error:
            reject = unexpected(error)
            rejects.append({"row": number, "code": str(reject.code), "message": reject.message})
        else:
            kept.append(row)
            numbers.append(number)
    return kept, numbers, rejects


def _encode_bin(
    task: ShardTask, b: int, killers: dict[int, Reject], ctx: FamilyContext, reader: PlanReader, cache: MediaCache,
    rejects: list[dict[str, Any]],
) -> tuple[list[EncodedRow], list[int]]:  # fmt: skip
    rows, ids = [], []
    for at in range(int(task.offsets[b]), int(task.offsets[b + 1])):
        planned = reader.read(int(task.splits[at]), int(task.rows[at]))
        try:
            if at in killers:
                raise killers[at]
            rows.append(_encode_row(planned, ctx, task.config, cache))
            ids.append(int(task.row_ids[at]))
        except FamilyError as error:
            error.place = int(task.row_ids[at])
            raise
        except Reject as reject:
            rejects.append({"row": int(task.row_ids[at]), "code": str(reject.code), "message": reject.message})
    return rows, ids


def _encode_row(planned: PlannedRow, ctx: FamilyContext, config: BuildConfig, cache: MediaCache) -> EncodedRow:
    """Encode a row; whatever a decoder or a family's callback raises costs this row, and is told."""
    sources = [source.label for items in planned.items.values() for item in items for source in item.sources]
    try:
        if not sources:
            return encode_planned(planned, ctx, config, cache)
        with row_limit(sources[0]):
            return encode_planned(planned, ctx, config, cache)
    except (Reject, OmniprepError):
        raise
    except Exception as error:
        raise unexpected(error) from error


__all__ = ["as_json_bytes", "encode_shard", "plan_split"]
