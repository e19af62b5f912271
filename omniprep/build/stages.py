"""The two stages that workers run: plan a split, encode a shard. Files in, files and a small receipt out."""

import base64
import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from omniprep import io
from omniprep.build.isolate import find_killers
from omniprep.build.planfile import PlannedLine, PlanReader, read_facts, to_batch, write_plan
from omniprep.build.rowencode import EncodedRow, MediaCache, encode_planned, make_bin
from omniprep.build.rowplan import PlannedRow, plan_rows, unexpected
from omniprep.build.watch import row_limit, watching
from omniprep.config import BuildConfig
from omniprep.errors import OmniprepError, Reject
from omniprep.families.context import FamilyContext, FamilySpec, resolve
from omniprep.media.fetch import Places
from omniprep.rows.sources import RawRow, Split, read_split
from omniprep.shards.codec import with_codec
from omniprep.shards.schema import arrow_schema
from omniprep.shards.writer import ShardWriter
from omniprep.template.loss import parse_strategy

CHUNK_ROWS, CHUNK_BYTES = 256, 8 << 20


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
    plans: tuple[str, ...]
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


def as_text(raw: Any) -> str:
    """A raw row as JSON text, for rejected.jsonl; bytes become base64."""

    def convert(value: Any) -> Any:
        return base64.b64encode(value).decode() if isinstance(value, bytes) else str(value)

    try:
        return json.dumps(raw, ensure_ascii=False, default=convert)
    except (ValueError, RecursionError):
        return json.dumps(str(raw)[:10_000])


def plan_split(task: PlanTask) -> dict[str, Any]:
    """Plan a split: write plan/split-N.arrow, then its receipt.

    Returns:
        The receipt: rows, rejected, tokens, lines (read lines of the split, for numbering), seconds.
    """
    ctx = resolve(task.spec)
    places = Places(task.split.base, task.config.media_root, task.config.allow_http)
    receipt: dict[str, Any] = {"rows": 0, "rejected": 0, "tokens": 0}
    killers = _killers(task)
    began = time.perf_counter()

    def batches() -> Iterator[pa.RecordBatch]:
        for chunk in _chunks(read_split(task.split)):
            bad = {at: killers[receipt["rows"] + at] for at in range(len(chunk)) if receipt["rows"] + at in killers}
            lines = _plan_chunk(chunk, bad, ctx, task.config, places)
            receipt["rows"] += len(lines)
            receipt["rejected"] += sum(isinstance(entry.row, Reject) for entry in lines)
            receipt["tokens"] += sum(entry.row.length for entry in lines if isinstance(entry.row, PlannedRow))
            yield to_batch(lines)

    with watching(task.config.decode_timeout):
        write_plan(plan_path(task.out, task.number, ".arrow"), batches())
    receipt["seconds"] = round(time.perf_counter() - began, 3)
    io.write_atomic(plan_path(task.out, task.number, ".json"), json.dumps(receipt).encode())
    return receipt


def _killers(task: PlanTask | ShardTask) -> dict[int, Reject]:
    return find_killers(task, task.config.decode_timeout or math.inf, task.config.decode_memory) if task.isolate else {}


def _plan_chunk(
    chunk: list[RawRow], bad: dict[int, Reject], ctx: FamilyContext, config: BuildConfig, places: Places
) -> list[PlannedLine]:
    planned = plan_rows([bad.get(at, row.content) for at, row in enumerate(chunk)], ctx, config, places)
    result = []
    for raw, row in zip(chunk, planned, strict=True):
        text = None
        if isinstance(row, Reject):
            text = "null" if isinstance(raw.content, Reject) else as_text(raw.content)
        result.append(PlannedLine(raw.line, row, text))
    return result


@lru_cache(maxsize=1)
def _reader(plans: tuple[str, ...]) -> PlanReader:
    return PlanReader(list(plans))


def encode_shard(task: ShardTask) -> dict[str, Any]:
    """Encode a shard: write shards/N.arrow, then its receipt.

    Returns:
        The receipt: path, bytes, sha256, bins (offset, length, checksum, tokens, rows, patches, audio_frames a bin; the
        number of the bin in the plan), rejects (row number in rows.parquet, code, message), seconds.
    """
    ctx = resolve(task.spec)
    reader, cache = _reader(task.plans), MediaCache()
    weighted = parse_strategy(task.config.loss_scale).weighted
    columns = with_codec(ctx.columns, task.config.pixel_codec)
    schema = arrow_schema(columns, family=ctx.name, modalities=ctx.modalities, weighted=weighted)
    path = io.join(task.out, "shards", shard_name(task.number))
    killers = _killers(task)
    began = time.perf_counter()
    bins: list[dict[str, Any]] = []
    rejects: list[dict[str, Any]] = []
    with watching(task.config.decode_timeout), ShardWriter(path, schema) as writer:
        for b in range(len(task.offsets) - 1):
            rows, ids = _encode_bin(task, b, killers, ctx, reader, cache, rejects)
            if not rows:
                continue
            item = make_bin(rows, ids, ctx.columns, weighted=weighted)
            entry = writer.write(item)
            facts = {"offset": entry.offset, "length": entry.length, "checksum": entry.checksum}
            bins.append({"bin": b, **facts, "tokens": len(item.input_ids), "rows": len(rows)})
    info = writer.close()
    receipt = {
        "path": f"shards/{shard_name(task.number)}",
        "bytes": info.bytes,
        "sha256": info.sha256,
        "bins": bins,
        "rejects": rejects,
        "seconds": round(time.perf_counter() - began, 3),
    }
    io.write_atomic(receipt_path(task.out, task.number), json.dumps(receipt).encode())
    return receipt


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


__all__ = ["PlanTask", "ShardTask", "as_text", "encode_shard", "plan_path", "plan_split", "read_facts", "receipt_path"]
