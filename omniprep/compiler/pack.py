"""The pack stage, in the driver: lengths and costs of all rows → bins → shards, frozen with a hash.

Only numbers are held: 50 bytes a row and 8 of its placement. The placement is written to plan/placement.arrow, so a
build that goes on later works on the same plan, and plan/plan.json holds its hash.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from omniprep import io
from omniprep.compiler.costs import stored_bytes
from omniprep.compiler.plan.file import FACTS, read_facts
from omniprep.compiler.run.tasks import of_generation, plan_path
from omniprep.config import BuildConfig, config_hash
from omniprep.errors import DamagedDataError
from omniprep.modalities import MODALITIES
from omniprep.packing import pack
from omniprep.packing.order import rows_by_bin


@dataclass(slots=True)
class Rows:
    """Facts of every input row, in input order; row number = index."""

    split: NDArray[np.int32]
    within: NDArray[np.int32]
    facts: dict[str, NDArray[Any]] = field(default_factory=dict)

    @property
    def packed(self) -> NDArray[np.bool_]:
        """Rows that the plan keeps."""
        result: NDArray[np.bool_] = self.facts["length"] > 0
        return result

    def __len__(self) -> int:
        """Input rows."""
        return len(self.split)


@dataclass(slots=True)
class Placement:
    """Bins and shards of the kept rows.

    `order[offsets[b]:offsets[b+1]]` are the row numbers of bin b; shard s holds bins shard_bins[s] to shard_bins[s+1].
    """

    order: NDArray[np.int64]
    offsets: NDArray[np.int64]
    shard_bins: NDArray[np.int64]

    @property
    def bins(self) -> int:
        """Number of bins."""
        return len(self.offsets) - 1


def gather(out: str, sizes: Sequence[int], generation: str = "") -> Rows:
    """Facts of all rows from the plans of all splits.

    Args:
        out: Folder of the build.
        sizes: Rows of each split, as its receipt says.
        generation: Part of the names of its plans.
    """
    begins = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
    rows = Rows(
        split=np.repeat(np.arange(len(sizes), dtype=np.int32), sizes),
        within=np.empty(begins[-1], np.int32),
        facts={name: np.empty(begins[-1], dtype) for name, dtype in FACTS.items()},
    )
    # Split by split into arrays that are there already: what a split gives is gone before the next.
    for number, size in enumerate(sizes):
        at = slice(begins[number], begins[number + 1])
        rows.within[at] = np.arange(size)
        uri = plan_path(out, number, ".arrow", generation)
        for name, values in read_facts(uri).items():
            if len(values) != size:
                raise DamagedDataError(
                    f"{uri}: {len(values)} rows, but its receipt says {size}; remove this "
                    "file, and the same command plans it again"
                )
            rows.facts[name][at] = values
    return rows


WINDOW_ROWS, WINDOW_BINS = 1 << 17, 2048
"""Rows, and bins, that a window has at least. Rows are packed window by window, so the rows of a shard come from nearby
parts of the plan: a worker reads each part once, not a part for each row, and packing takes no more memory for more
rows. Each window leaves one bin that is not full."""


def place(rows: Rows, config: BuildConfig) -> Placement:
    """Pack the kept rows: a pure function of their lengths and costs, the bin length, the limits and the seed."""
    kept = np.flatnonzero(rows.packed)
    order = np.empty_like(kept)
    offsets, before = [np.zeros(1, np.int64)], [np.zeros(1, np.int64)]
    edges = _windows(rows.facts["length"][kept], config.bin_length)
    for begin, end in pairwise(edges):
        window = kept[begin:end]
        inner, ends, sizes = _place_window(rows, window, config)
        order[begin:end] = window[inner]
        offsets.append(begin + ends)
        before.append(before[-1][-1] + np.cumsum(sizes))
    bins, sums = np.concatenate(offsets), np.concatenate(before)
    cuts = [0]
    while cuts[-1] < len(bins) - 1:
        end = int(np.searchsorted(sums, sums[cuts[-1]] + config.shard_size, side="right")) - 1
        cuts.append(max(end, cuts[-1] + 1))
    return Placement(order, bins, np.array(cuts, np.int64))


def _windows(lengths: NDArray[np.int32], bin_length: int) -> list[int]:
    """Where windows begin and end; what would be less than half of one belongs to the one before."""
    tokens = np.cumsum(lengths, dtype=np.int64)
    edges = [0]
    while edges[-1] < len(lengths):
        begin = edges[-1]
        enough = (tokens[begin - 1] if begin else 0) + WINDOW_BINS * bin_length
        end = max(begin + WINDOW_ROWS, int(np.searchsorted(tokens, enough)) + 1)
        edges.append(len(lengths) if len(lengths) - end < (end - begin) // 2 else end)
    return edges


def _place_window(
    rows: Rows, window: NDArray[np.int64], config: BuildConfig
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Order of some rows, where each of their bins ends in it, and about how many bytes each bin takes."""
    lengths, patches, frames = (
        rows.facts[name][window].astype(np.int64) for name in ("length", "patches", "audio_frames")
    )
    limits = [
        (costs, limit)
        for costs, limit in ((patches, config.max_bin_patches), (frames, config.max_bin_audio_frames))
        if limit is not None
    ]
    costs = np.stack([c for c, _ in limits], axis=1) if limits else None
    bins = pack(
        lengths, config.bin_length, config.seed, costs, np.array([limit for _, limit in limits]) if limits else None
    )
    order, offsets = rows_by_bin(bins, config.seed)
    size = stored_bytes(lengths, patches, frames)
    return order, offsets[1:], np.add.reduceat(size[order], offsets[:-1])


def freeze(out: str, rows: Rows, placement: Placement, config: BuildConfig, generation: str = "") -> str:
    """Write the placement and plan.json; return the plan's hash.

    The hash covers the options, every row's length and code, and where each row goes.
    """
    table = pa.table({"order": placement.order})
    bins = pa.table({"offsets": placement.offsets})
    digest = hashlib.sha256(config_hash(config).encode())
    for array in (rows.facts["length"], placement.order, placement.offsets, placement.shard_bins):
        digest.update(np.ascontiguousarray(array).tobytes())
    _check_frozen(out, digest.hexdigest(), generation)
    for name, part in (("placement", table), ("bins", bins)):
        path = io.join(out, "plan", of_generation(name, generation, ".arrow"))
        with io.atomic_writer(path) as file, pa.ipc.new_file(pa.PythonFile(file, mode="w"), part.schema) as writer:
            writer.write_table(part)
    plan = {
        "hash": digest.hexdigest(),
        "rows": len(rows),
        "bins": placement.bins,
        "shards": len(placement.shard_bins) - 1,
    }
    io.write_atomic(
        io.join(out, "plan", of_generation("plan", generation, ".json")), json.dumps(plan, indent=1).encode()
    )
    return digest.hexdigest()


def _check_frozen(out: str, now: str, generation: str) -> None:
    """The plan of an earlier run, where shards may have been made of it, must be this one."""
    uri = io.join(out, "plan", of_generation("plan", generation, ".json"))
    ending = of_generation("", generation, ".json")
    if not io.exists(uri) or not any(name.endswith(ending) for name in io.list_folder(io.join(out, "receipts"))):
        return
    try:
        before = json.loads(io.read_bytes(uri))["hash"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DamagedDataError(f"{uri}: is damaged ({error}); --overwrite begins anew") from error
    if before != now:
        raise DamagedDataError(
            f"{out}: the plan differs from the one that its shards were made of (a split was planned again and gave "
            "other rows); --overwrite begins anew"
        )


def item_counts(rows: Rows) -> dict[str, NDArray[np.int32]]:
    """Media items of each row, by modality."""
    return {name: rows.facts[modality.column] for name, modality in MODALITIES.items()}
