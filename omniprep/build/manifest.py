"""The end of a build: receipts → index.parquet, rows.parquet, rejected.jsonl, and manifest.json last.

What this writes is a pure function of the plan and the receipts, so it may be done again after a kill.
"""

import hashlib
import heapq
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from omniprep import io
from omniprep.build.budget import check_error_rate
from omniprep.build.packstage import Placement, Rows, item_counts
from omniprep.build.planfile import read_rejects
from omniprep.build.stages import as_json_bytes
from omniprep.build.tasks import plan_path
from omniprep.config import BuildConfig, config_hash, shaping
from omniprep.errors import DamagedDataError, Reject
from omniprep.families.context import FamilyContext
from omniprep.media.video import backend
from omniprep.packing import bin_cost
from omniprep.rows.columns import Note
from omniprep.rows.sources import Split, fingerprint, read_split
from omniprep.shards.index import IndexEntry, write_index, write_rows
from omniprep.shards.schema import FORMAT

# Packages whose version can change a byte of a shard.
PART_ROWS = 1 << 20
"""Lines of rows.parquet that are held as texts at once, and of its row groups."""
SHAPING_PACKAGES = (
    "omniprep", "pyarrow", "numpy", "torch", "torchvision", "transformers", "tokenizers", "pillow", "soundfile", "soxr",
    "av", "decord",
)  # fmt: skip


@lru_cache(maxsize=1)
def versions() -> Mapping[str, str]:
    """Installed versions of what shapes the bytes."""
    found = {}
    for name in SHAPING_PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return MappingProxyType(found)


def tokenizer_hash(ctx: FamilyContext) -> str:
    """Hash of what the tokenizer does (template/identity.py)."""
    return ctx.tokenizer_sha256


def lines_before(splits: list[Split], lines: list[int]) -> NDArray[np.int64]:
    """How many lines of its source stand before each split; `lines` are the lines of each."""
    before, seen = np.zeros(len(splits), np.int64), Counter[str]()
    for number, split in enumerate(splits):
        before[number] = seen[split.source]
        seen[split.source] += lines[number]
    return before


def finish(
    config: BuildConfig, ctx: FamilyContext, splits: list[Split], lines: list[int], rows: Rows, placement: Placement,
    receipts: list[dict[str, Any]], plan_hash: str, inputs: list[dict[str, Any]],
    plan_seconds: float = 0.0, unread: Mapping[str, list[Any]] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Write the tables and the manifest; returns the manifest."""
    late = {reject["row"]: reject for receipt in receipts for reject in receipt["rejects"]}
    codes = rows.facts["code"].astype(object)
    for number, reject in late.items():
        codes[number] = reject["code"]
    packed = rows.packed.copy()
    packed[list(late)] = False
    entries = index_entries(rows, placement, packed, receipts)
    write_index(io.join(config.out, "index.parquet"), entries)
    where = places(rows, placement, packed)
    numbers = lines_before(splits, lines)[rows.split]
    numbers += rows.facts["line"]
    numbers += 1
    _write_row_table(config, splits, rows, packed, codes, where, numbers)
    _write_rejects(config, splits, rows, numbers, late)
    check_error_rate(config, int((~packed).sum()), len(rows), f"see {io.join(config.out, 'rejected.jsonl')}")
    counts = count(config.out, rows, packed, codes, entries)
    if unread:
        counts["unread_columns"] = {name: {"rows": n, "option": option} for name, (n, option) in unread.items()}
    manifest = {
        "format": FORMAT,
        "omniprep": version("omniprep"),
        "family": ctx.name,
        "family_version": ctx.record.version,
        "model": config.model,
        "tokenizer_sha256": tokenizer_hash(ctx),
        "preprocessor_sha256": hashlib.sha256(json.dumps(ctx.preprocessor, sort_keys=True).encode()).hexdigest(),
        "config": shaping(config),
        "config_sha256": config_hash(config),
        "plan_sha256": plan_hash,
        "versions": {**versions(), **ctx.versions},
        "video_backend": backend(),
        "inputs": inputs,
        "bin_length": config.bin_length,
        "counts": counts,
        "fill": fill(counts, config.bin_length),
        "seconds": {
            "plan": round(plan_seconds, 1),
            "encode": round(sum(r["seconds"] for r in receipts), 1),
        },
        "shards": [
            {"path": r["path"], "bins": len(r["bins"]), "bytes": r["bytes"], "sha256": r["sha256"]} for r in receipts
        ],
    }
    io.write_atomic(io.join(config.out, "manifest.json"), json.dumps(manifest, indent=1, ensure_ascii=False).encode())
    return manifest


def _write_row_table(
    config: BuildConfig, splits: list[Split], rows: Rows, packed: NDArray[np.bool_], codes: NDArray[Any],
    where: dict[str, NDArray[np.int64]], numbers: NDArray[np.int64],
) -> None:  # fmt: skip
    """rows.parquet, part by part: its texts are many times the numbers that they are made of."""
    names = pa.array([s.source for s in splits], pa.string())

    def part(at: slice) -> pa.Table:
        status = pa.DictionaryArray.from_arrays((~packed[at]).astype(np.int8), ["packed", "rejected"])
        lengths = rows.facts["length"][at].astype(np.int64)
        return pa.table(
            {
                "source": names.take(pa.array(rows.split[at])),
                "line": numbers[at],
                "status": status.cast(pa.string()),
                "code": pa.array(codes[at], pa.string()),
                **{
                    name: pa.array(values, mask=~packed[at])
                    for name, values in (("bin", where["bin"][at]), ("start", where["start"][at]), ("length", lengths))
                },
                **{f"{m}s": counts[at] for m, counts in item_counts(rows).items()},
                "trained": rows.facts["trained"][at],
                **{name: rows.facts[name][at].astype(np.int64) for name in ("patches", "audio_frames")},
                "control": rows.facts["control"][at],
                **{name: notes[at] for name, notes in note_columns(rows).items()},
            }
        )

    begins = range(0, max(len(rows), 1), PART_ROWS)
    write_rows(io.join(config.out, "rows.parquet"), (part(slice(a, a + PART_ROWS)) for a in begins))


def note_columns(rows: Rows) -> dict[str, NDArray[np.bool_]]:
    """The columns of rows.parquet that say what the build notes of a row, such as surplus_tags."""
    return {str(note.name).lower(): (rows.facts["notes"] & note.value) > 0 for note in Note}


def count(
    out: str, rows: Rows, packed: NDArray[np.bool_], codes: NDArray[Any], entries: list[IndexEntry]
) -> dict[str, Any]:
    """The counts of a manifest.

    Raises:
        DamagedDataError: Rows packed and rejected are not the rows read.
    """
    counts: dict[str, Any] = {
        "rows": {"read": len(rows), "packed": int(packed.sum()), "rejected": int((~packed).sum())},
        "tokens": sum(entry.tokens for entry in entries),
        "labeled_tokens": int(rows.facts["trained"][packed].sum()),
        "bins": len(entries),
        "rejected_by_code": dict(sorted(Counter(c for c in codes if c).items())),
        "rows_with_control_tokens": int(rows.facts["control"][packed].sum()),
        **{f"rows_with_{name}": int(notes[packed].sum()) for name, notes in note_columns(rows).items()},
        "rows_without_labels": int((rows.facts["trained"][packed] == 0).sum()),
        "items": {m: int(counts[packed].sum()) for m, counts in item_counts(rows).items()},
    }
    stored = sum(entry.rows for entry in entries)
    if counts["rows"]["read"] != stored + counts["rows"]["rejected"]:
        raise DamagedDataError(
            f"{out}: rows were lost ({counts['rows']}, {stored} in the shards); this is a defect of omniprep"
        )
    return counts


def fill(counts: dict[str, Any], bin_length: int) -> float:
    """Share of the bins' room that tokens take, to six digits."""
    return round(counts["tokens"] / (counts["bins"] * bin_length), 6) if counts["bins"] else 0.0


def places(rows: Rows, placement: Placement, packed: NDArray[np.bool_]) -> dict[str, NDArray[np.int64]]:
    """Bin and first token of each packed row, with rows that failed while encoding taken out."""
    bin_of, start = np.zeros(len(rows), np.int64), np.zeros(len(rows), np.int64)
    kept = packed[placement.order]
    lengths = np.where(kept, rows.facts["length"][placement.order], 0).astype(np.int64)
    before = np.cumsum(lengths) - lengths
    counts = np.diff(placement.offsets)
    final = np.cumsum(_nonempty(placement, kept)) - 1
    bin_of[placement.order] = np.repeat(final, counts)
    start[placement.order] = before - np.repeat(before[placement.offsets[:-1]] if len(before) else before, counts)
    return {"bin": bin_of, "start": start}


def _nonempty(placement: Placement, kept: NDArray[np.bool_]) -> NDArray[np.bool_]:
    total = np.concatenate([[0], np.cumsum(kept)])
    return total[placement.offsets[1:]] > total[placement.offsets[:-1]]


def index_entries(
    rows: Rows, placement: Placement, packed: NDArray[np.bool_], receipts: list[dict[str, Any]]
) -> list[IndexEntry]:
    """The lines of index.parquet, from where the receipts say that the bins are."""
    order, which = placement.order, np.repeat(np.arange(placement.bins), np.diff(placement.offsets))
    if not packed.all():
        kept = packed[order]
        order, which = order[kept], which[kept]
    facts = {name: rows.facts[name][order] for name in ("length", "patches", "audio_frames")}
    sums = {
        name: np.bincount(which, facts[name], placement.bins).astype(np.int64) for name in ("patches", "audio_frames")
    }
    cost = bin_cost(facts["length"], which, facts["patches"], facts["audio_frames"]) if len(order) else np.zeros(0)
    del order, which, facts
    entries = []
    for shard, receipt in enumerate(receipts):
        first = int(placement.shard_bins[shard])
        for entry in receipt["bins"]:
            b = first + entry["bin"]
            entries.append(
                IndexEntry(
                    shard=shard,
                    offset=entry["offset"],
                    length=entry["length"],
                    tokens=entry["tokens"],
                    rows=entry["rows"],
                    patches=int(sums["patches"][b]),
                    audio_frames=int(sums["audio_frames"][b]),
                    cost=float(cost[b]),
                    checksum=entry["checksum"],
                )
            )
    return entries


def _write_rejects(
    config: BuildConfig, splits: list[Split], rows: Rows, numbers: NDArray[np.int64], late: dict[int, dict[str, Any]]
) -> None:
    """rejected.jsonl in input order; rows that failed while encoding are read again from their source."""
    sizes = np.bincount(rows.split, minlength=len(splits))
    first = np.concatenate([[0], np.cumsum(sizes)])
    by_split: dict[int, list[int]] = {}
    for number in late:
        by_split.setdefault(int(rows.split[number]), []).append(number)
    with io.atomic_writer(io.join(config.out, "rejected.jsonl")) as file:
        for s, split in enumerate(splits):
            early = (
                (int(first[s]) + row.at, row.code, row.message, row.raw)
                for row in read_rejects(plan_path(config.out, s, ".arrow"))
            )
            wanted = {int(rows.facts["line"][n]): late[n] for n in by_split.get(s, ())}
            # One row at a time: with inline media a row may be hundreds of MB.
            for number, code, message, raw in heapq.merge(
                early, _read_again(split, wanted, config.max_line_bytes), key=lambda row: row[0]
            ):
                head = {"source": split.source, "line": int(numbers[number]), "code": code, "message": message}
                file.write(json.dumps(head, ensure_ascii=False)[:-1].encode(errors="replace") + b', "row": ')
                file.write(raw)
                file.write(b"}\n")


def _read_again(
    split: Split, wanted: dict[int, dict[str, Any]], max_line_bytes: int
) -> Iterator[tuple[int, str, str, memoryview]]:
    """Rows of a split that failed while encoding, by line; one that is not there any more without its content."""
    left = dict(wanted)
    if wanted:
        for raw in read_split(split, max_line_bytes=max_line_bytes):
            if (reject := left.pop(raw.line, None)) is not None:
                content = b"null" if isinstance(raw.content, Reject) else as_json_bytes(raw.content)
                yield reject["row"], reject["code"], reject["message"], memoryview(content)
                del content
            del raw  # not held while the next is read
    for reject in left.values():
        yield reject["row"], reject["code"], reject["message"], memoryview(b"null")


def describe_inputs(splits: list[Split]) -> list[dict[str, Any]]:
    """Each input with what tells cheaply that it changed."""
    first = {split.source: split for split in reversed(splits)}
    return [{"source": source, **fingerprint(first[source])} for source in dict.fromkeys(s.source for s in splits)]


__all__ = [
    "count",
    "describe_inputs",
    "fill",
    "finish",
    "index_entries",
    "lines_before",
    "note_columns",
    "places",
    "tokenizer_hash",
    "versions",
]
