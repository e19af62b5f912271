"""The end of a build: receipts → index.parquet, rows.parquet, rejected.jsonl, and manifest.json last.

What this writes is a pure function of the plan and the receipts, so it may be done again after a kill.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from omniprep import io
from omniprep.compiler.costs import bin_cost
from omniprep.compiler.duplicates import HASH_COLUMNS
from omniprep.compiler.pack import Assignment, Rows
from omniprep.compiler.plan.file import PREFERENCE_FACTS
from omniprep.compiler.run.error_budget import check_error_rate
from omniprep.compiler.run.tasks import Receipt
from omniprep.config import BuildConfig, config_hash, shaping
from omniprep.errors import DamagedDataError, RejectCode
from omniprep.modalities import MEDIA_COLUMNS, MODALITIES
from omniprep.rows.columns import Note
from omniprep.rows.preference import Verdict
from omniprep.shards.index import ROWS_SCHEMA, IndexEntry, write_index, write_rows

PART_ROWS = 1 << 20
"""Lines of rows.parquet that are held as texts at once, and of its row groups."""
# Packages whose version can change a byte of a shard.
SHAPING_PACKAGES = (
    "omniprep", "pyarrow", "numpy", "torch", "torchvision", "transformers", "tokenizers", "pillow", "soundfile", "soxr",
    "av", "decord", "pillow-heif",
)  # fmt: skip


@lru_cache(maxsize=1)
def versions() -> Mapping[str, str]:
    """Installed versions of what shapes the bytes."""
    installed = {}
    for name in SHAPING_PACKAGES:
        try:
            installed[name] = version(name)
        except PackageNotFoundError:
            continue
    return MappingProxyType(installed)


class Origin(Protocol):
    """The rows of a new dataset, and what its tables and manifest say of them: planned from inputs
    (compiler/output/built_rows.py), or copied from datasets (compiler/output/copied_rows.py).
    """

    rows: Rows
    assignment: Assignment
    plan_hash: str

    @property
    def left_out(self) -> dict[str, int]:
        """Rows of the inputs that are no rows of the dataset, by `filtered` (--where) and `other_part` (--split-by)."""

    def facts(self, shard_seconds: float) -> dict[str, Any]:
        """What the manifest says of the rows' model, inputs, versions, and the seconds that they took."""

    def unread(self) -> dict[str, list[Any]]:
        """Columns of the inputs that nobody reads: rows of each, and the option that reads it ("" where none does)."""

    def lines(self, part: slice) -> tuple[pa.Array, NDArray[np.int64]]:
        """Source and line of some rows, by their number."""

    def rejected(self, numbers: NDArray[np.int64], late: dict[int, dict[str, Any]]) -> Iterator[bytes | memoryview]:
        """The content of rejected.jsonl, in pieces, of rows that are not packed; `late`: those shards reject."""


@dataclass(frozen=True, slots=True)
class Settled:
    """What became of the rows of an origin, now that all shards are there."""

    origin: Origin
    packed: NDArray[np.bool_]
    codes: NDArray[Any]
    """Reject codes, None for packed rows."""
    late: dict[int, dict[str, Any]]
    """The rejects of rows that failed while their shards were made, by row."""
    entries: list[IndexEntry]
    counts: dict[str, Any]
    shards: list[dict[str, Any]]
    """The entries of the manifest."""

    def tables(self, first_bin: int = 0) -> Iterator[pa.Table]:
        """rows.parquet, part by part: its texts are many times the numbers that they are made of."""
        rows = self.origin.rows
        offsets = row_offsets(rows, self.origin.assignment, self.packed)
        offsets["bin"] += first_bin
        for start in range(0, max(len(rows), 1), PART_ROWS):
            part = slice(start, start + PART_ROWS)
            rejected = ~self.packed[part]
            status = pa.DictionaryArray.from_arrays(rejected.astype(np.int8), ["packed", "rejected"])
            sources, lines = self.origin.lines(part)
            facts = {name: values[part] for name, values in rows.facts.items()}
            positions = {**{name: values[part] for name, values in offsets.items()}, "length": facts["length"]}
            yield pa.table(
                {
                    "source": sources,
                    "line": lines,
                    "status": status.cast(pa.string()),
                    "code": pa.array(self.codes[part], pa.string()),
                    **{name: pa.array(values.astype(np.int64), mask=rejected) for name, values in positions.items()},
                    **{column: facts[column] for column in MEDIA_COLUMNS},
                    "trained": facts["trained"],
                    **{name: facts[name].astype(np.int64) for name in ("patches", "audio_frames", "file_bytes")},
                    "pixel_share": facts["pixel_share"],
                    "control": facts["control"],
                    **{name: np.where(rejected, np.uint64(0), facts[name]) for name in HASH_COLUMNS if name in facts},
                    **_preference_columns(facts, rejected),
                    **{name: noted[part] for name, noted in note_columns(rows).items()},
                }
            )

    def rejected(self) -> Iterator[bytes | memoryview]:
        """The content of rejected.jsonl, in pieces."""
        return self.origin.rejected(np.flatnonzero(~self.packed), self.late)


def _preference_columns(facts: Mapping[str, NDArray[Any]], rejected: NDArray[np.bool_]) -> dict[str, NDArray[Any]]:
    """The columns of a dataset with preference rows; a rejected row has no verdict."""
    values = {name: np.where(rejected, 0, facts[name]) for name in PREFERENCE_FACTS if name in facts}
    if values:
        values["verdict"] = np.where(rejected, Verdict.NONE, facts["verdict"])
    return {name: array.astype(PREFERENCE_FACTS[name]) for name, array in values.items()}


def row_columns(config: BuildConfig, *, preferences: bool = False) -> list[str]:
    """The columns of rows.parquet, as `Settled.tables` writes them for a build with these options."""
    notes = [str(note.name).lower() for note in Note]
    facts = ["trained", "patches", "audio_frames", "file_bytes", "pixel_share", "control", *notes]
    return [
        *ROWS_SCHEMA.names,
        *MEDIA_COLUMNS,
        *facts,
        *(HASH_COLUMNS if config.dedup == "exact" else ()),
        *(PREFERENCE_FACTS if preferences else ()),
    ]


def settle(config: BuildConfig, origin: Origin, receipts: list[Receipt]) -> Settled:
    """Put together what the plan and the receipts say; refuses more rejects than --max-error-rate allows."""
    rows = origin.rows
    late = {reject["row"]: reject for receipt in receipts for reject in receipt["rejects"]}
    codes = rows.facts["code"].astype(object)
    for number, reject in late.items():
        codes[number] = reject["code"]
    packed = rows.packed.copy()
    packed[list(late)] = False
    entries = index_entries(rows, origin.assignment, packed, receipts)
    counts = count(config.out, rows, packed, codes, entries)
    counts["rows"] |= {name: count for name, count in origin.left_out.items() if count}
    if unread := origin.unread():
        counts["unread_columns"] = {
            name: {"rows": with_it, "option": option} for name, (with_it, option) in unread.items()
        }
    shards = [{"path": r["path"], "bins": len(r["bins"]), "bytes": r["bytes"], "sha256": r["sha256"]} for r in receipts]
    return Settled(origin, packed, codes, late, entries, counts, shards)


def finish(config: BuildConfig, origin: Origin, receipts: list[Receipt]) -> dict[str, Any]:
    """Write the tables and the manifest; returns the manifest."""
    settled = settle(config, origin, receipts)
    write_index(io.join(config.out, "index.parquet"), settled.entries)
    write_rows(io.join(config.out, "rows.parquet"), settled.tables())
    rejected = io.join(config.out, "rejected.jsonl")
    with io.atomic_writer(rejected) as file:
        for piece in settled.rejected():
            file.write(piece)
    errors = int((~settled.packed & (settled.codes != str(RejectCode.DUPLICATE))).sum())
    check_error_rate(config, errors, len(settled.packed), f"see {rejected}")
    manifest = {
        **origin.facts(sum(receipt["seconds"] for receipt in receipts)),
        "config": shaping(config),
        "config_sha256": config_hash(config),
        "plan_sha256": origin.plan_hash,
        "bin_length": config.bin_length,
        "counts": settled.counts,
        "fill": fill(settled.counts, config.bin_length),
        "shards": settled.shards,
    }
    write_manifest(config.out, manifest)
    return manifest


def write_manifest(out: str, manifest: dict[str, Any]) -> None:
    """Write manifest.json, whole or not at all."""
    io.write_atomic(io.join(out, "manifest.json"), json.dumps(manifest, indent=1, ensure_ascii=False).encode())


def note_columns(rows: Rows) -> dict[str, NDArray[np.bool_]]:
    """The columns of rows.parquet that say what the build notes of a row, such as surplus_tags."""
    return {str(note.name).lower(): (rows.facts["notes"] & note.value) > 0 for note in Note}


def count(
    out: str, rows: Rows, packed: NDArray[np.bool_], codes: NDArray[Any], entries: list[IndexEntry]
) -> dict[str, Any]:
    """The counts of a manifest; DamagedDataError where rows packed and rejected are not the rows read."""
    counts: dict[str, Any] = {
        "rows": {"read": len(rows), "packed": int(packed.sum()), "rejected": int((~packed).sum())},
        "tokens": sum(entry.tokens for entry in entries),
        "labeled_tokens": int(rows.facts["trained"][packed].sum()),
        "bins": len(entries),
        "rejected_by_code": dict(sorted(Counter(code for code in codes if code).items())),
        "rows_with_control_tokens": int(rows.facts["control"][packed].sum()),
        **{f"rows_with_{name}": int(noted[packed].sum()) for name, noted in note_columns(rows).items()},
        "rows_without_labels": int((rows.facts["trained"][packed] == 0).sum()),
        "items": {name: int(rows.facts[entry.column][packed].sum()) for name, entry in MODALITIES.items()},
    }
    if "verdict" in rows.facts:
        counts["preference"] = count_verdicts(rows.facts["verdict"][packed])
    stored = sum(entry.rows for entry in entries)
    if counts["rows"]["read"] != stored + counts["rows"]["rejected"]:
        raise DamagedDataError(
            f"{out}: rows were lost ({counts['rows']}, {stored} in the shards); this is a defect of omniprep"
        )
    return counts


def count_verdicts(verdicts: NDArray[np.integer[Any]]) -> dict[str, int]:
    """Packed rows by what they are to a preference objective, as the manifest has them."""
    names = {"pairs": Verdict.PAIR, "desirable": Verdict.DESIRABLE, "undesirable": Verdict.UNDESIRABLE}
    return {name: int((verdicts == value).sum()) for name, value in {**names, "ordinary": Verdict.NONE}.items()}


def fill(counts: dict[str, Any], bin_length: int) -> float:
    """Share of the bins' room that tokens take, to six digits."""
    return round(counts["tokens"] / (counts["bins"] * bin_length), 6) if counts["bins"] else 0.0


def row_offsets(rows: Rows, assignment: Assignment, packed: NDArray[np.bool_]) -> dict[str, NDArray[np.int64]]:
    """Bin and first token of each packed row, with rows that failed while encoding taken out."""
    bins, starts = np.zeros(len(rows), np.int64), np.zeros(len(rows), np.int64)
    kept = packed[assignment.order]
    lengths = np.where(kept, rows.facts["length"][assignment.order], 0).astype(np.int64)
    before = np.cumsum(lengths) - lengths
    counts = np.diff(assignment.offsets)
    # A bin that lost all its rows is not written, so the bins after it move up.
    total = np.concatenate([[0], np.cumsum(kept)])
    written = np.cumsum(total[assignment.offsets[1:]] > total[assignment.offsets[:-1]]) - 1
    bins[assignment.order] = np.repeat(written, counts)
    starts[assignment.order] = before - np.repeat(before[assignment.offsets[:-1]] if len(before) else before, counts)
    return {"bin": bins, "start": starts}


def index_entries(
    rows: Rows, assignment: Assignment, packed: NDArray[np.bool_], receipts: list[Receipt]
) -> list[IndexEntry]:
    """The lines of index.parquet, from where the receipts say that the bins are."""
    order, bin_of_row = assignment.order, np.repeat(np.arange(assignment.bins), np.diff(assignment.offsets))
    if not packed.all():
        kept = packed[order]
        order, bin_of_row = order[kept], bin_of_row[kept]
    names = ("length", "patches", "audio_frames", "chosen_length")
    facts = {name: rows.facts[name][order] for name in names if name in rows.facts}
    sums = {
        name: np.bincount(bin_of_row, facts[name], assignment.bins).astype(np.int64)
        for name in ("patches", "audio_frames")
    }
    costs = bin_cost(facts, bin_of_row) if len(order) else np.zeros(0)
    del order, bin_of_row, facts  # 300 MB at 10,000,000 rows, before the entries take theirs
    entries = []
    for shard, receipt in enumerate(receipts):
        for entry in receipt["bins"]:
            number = int(assignment.shard_bins[shard]) + entry["bin"]
            entries.append(
                IndexEntry(
                    shard=shard,
                    **{name: entry[name] for name in ("offset", "length", "tokens", "rows", "checksum", "before")},
                    **{name: int(totals[number]) for name, totals in sums.items()},
                    cost=float(costs[number]),
                )
            )
    return entries
