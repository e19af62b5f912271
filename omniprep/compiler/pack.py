"""The pack stage, in the driver: lengths and costs of all rows → bins → shards, frozen with a hash.

Only numbers are held: 62 bytes a row, and 8 for the bin that it goes to. The assignment is written to
plan/placement.arrow, which the tasks read, and plan/plan.json holds its hash: a build that goes on later must come to
the same.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omniprep import io
from omniprep.compiler.costs import QWEN_BYTES, UnitBytes, stored_bytes
from omniprep.compiler.output.paths import of_generation, plan_path
from omniprep.compiler.plan.file import FACTS, read_facts
from omniprep.compiler.plan.placement import Placement, write_placement
from omniprep.config import BuildConfig, config_hash
from omniprep.errors import DamagedDataError
from omniprep.modalities import MEDIA_COLUMNS
from omniprep.packing import pack, rows_by_bin

SHARDS_WANTED = 64
"""Shards of a dataset where --shard-size is not given: eight for each of eight workers, so that those which end last
idle for a tenth of the time at most. The number of workers is left out: another one must give the same bytes."""
LEAST_SHARD, MOST_SHARD = 4 << 20, 512 << 20
"""Bytes of a shard where --shard-size is not given. The task, receipt and hashes of a shard take 10 ms beside the 0.1 s
that 4 MiB take to encode; above 512 MiB a worker that is killed loses minutes."""


@dataclass(slots=True)
class Rows:
    """Facts of every input row, in input order; the index of a row is its number."""

    split: NDArray[np.int32]
    within: NDArray[np.int32]
    """Number of the row within its split."""
    facts: dict[str, NDArray[Any]] = field(default_factory=dict)
    """A column for each of `FACTS`; with --dedup also the halves of each row's hash, with preference rows also one for
    each of `PREFERENCE_FACTS`."""
    unit_bytes: UnitBytes = field(default_factory=lambda: QWEN_BYTES)
    """What a unit of their media's work takes in a shard."""

    @property
    def packed(self) -> NDArray[np.bool_]:
        """Rows that the plan keeps."""
        result: NDArray[np.bool_] = self.facts["length"] > 0
        return result

    def __len__(self) -> int:
        """Input rows."""
        return len(self.split)

    def columns(self, chosen: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """What chosen rows (numbers or a mask) cost, see omniprep/compiler/costs.py."""
        names = ["length", "patches", "audio_frames", "file_bytes", "pixel_share", *MEDIA_COLUMNS]
        names += [name for name in ("repeated_patches", "repeated_frames") if name in self.facts]
        return {name: self.facts[name][chosen] for name in names}


@dataclass(slots=True)
class Assignment:
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

    @property
    def shards(self) -> int:
        """Number of shards."""
        return len(self.shard_bins) - 1


def gather(
    out: str, sizes: Sequence[int], generation: str = "", more: Mapping[str, Any] = MappingProxyType({})
) -> Rows:
    """Facts of all rows from the plans of all splits, which have `sizes` rows by their receipts; `more` names further
    columns, with the type in which they are held.
    """
    starts = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
    rows = Rows(
        split=np.repeat(np.arange(len(sizes), dtype=np.int32), sizes),
        within=np.empty(starts[-1], np.int32),
        facts={name: np.empty(starts[-1], dtype) for name, dtype in {**FACTS, **more}.items()},
    )
    # Split by split into arrays that exist already, so that what a split gives is freed before the next is read.
    for number, size in enumerate(sizes):
        own = slice(starts[number], starts[number + 1])
        rows.within[own] = np.arange(size)
        uri = plan_path(out, number, ".arrow", generation)
        for name, values in read_facts(uri, tuple(more)).items():
            if len(values) != size:
                raise DamagedDataError(
                    f"{uri}: {len(values)} rows, but its receipt says {size}; remove this "
                    "file, and the same command plans it again"
                )
            rows.facts[name][own] = values
    return rows


def assign_bins(rows: Rows, config: BuildConfig, window_rows: int = 1 << 17, window_bins: int = 2048) -> Assignment:
    """Pack the kept rows: a pure function of their lengths and costs, the bin length, the limits and the seed.

    A window has at least `window_rows` rows, and tokens for `window_bins` bins; it leaves one bin that is not full.
    """
    # Window by window, so that the rows of a shard come from nearby parts of the plan: a worker reads each part once,
    # not a part for each row, and packing takes no more memory for more rows.
    kept = np.flatnonzero(rows.packed)
    order = np.empty_like(kept)
    offsets, byte_sums = [np.zeros(1, np.int64)], [np.zeros(1, np.int64)]
    for start, end in pairwise(_windows(rows.facts["length"][kept], window_rows, window_bins * config.bin_length)):
        window = kept[start:end]
        window_order, window_offsets, sizes = _pack_window(rows, window, config)
        order[start:end] = window[window_order]
        offsets.append(start + window_offsets[1:])
        byte_sums.append(byte_sums[-1][-1] + np.cumsum(sizes))
    all_offsets, bytes_before = np.concatenate(offsets), np.concatenate(byte_sums)
    shard_size = config.shard_size or default_shard_size(int(bytes_before[-1]))
    shard_bins = [0]
    while shard_bins[-1] < len(all_offsets) - 1:
        first = shard_bins[-1]
        end = int(np.searchsorted(bytes_before, bytes_before[first] + shard_size, side="right")) - 1
        shard_bins.append(max(end, first + 1))  # a bin larger than a shard is one of its own
    return Assignment(order, all_offsets, np.array(shard_bins, np.int64))


def default_shard_size(dataset_bytes: int) -> int:
    """Bytes of a shard of a dataset of about so many bytes; of the data alone, whatever builds it."""
    return min(max(dataset_bytes // SHARDS_WANTED, LEAST_SHARD), MOST_SHARD)


def _windows(lengths: NDArray[np.int32], least_rows: int, least_tokens: int) -> list[int]:
    """Borders of the windows; what would be less than half of one belongs to the one before."""
    tokens = np.cumsum(lengths, dtype=np.int64)
    borders = [0]
    while borders[-1] < len(lengths):
        start = borders[-1]
        enough = (tokens[start - 1] if start else 0) + least_tokens
        end = max(start + least_rows, int(np.searchsorted(tokens, enough)) + 1)
        borders.append(len(lengths) if len(lengths) - end < (end - start) // 2 else end)
    return borders


def _pack_window(
    rows: Rows, window: NDArray[np.int64], config: BuildConfig
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Order of a window's rows, the offset at which each bin begins in it, and about how many bytes each bin takes."""
    columns = rows.columns(window)
    limits = {"patches": config.max_bin_patches, "audio_frames": config.max_bin_audio_frames}
    limited = {name: limit for name, limit in limits.items() if limit is not None}
    costs = np.stack([columns[name] for name in limited], axis=1) if limited else None
    bins = pack(columns["length"], config.bin_length, config.seed, costs, np.array([*limited.values()]))
    order, offsets = rows_by_bin(bins, config.seed)
    sizes = stored_bytes(columns, config.pixel_codec, rows.unit_bytes)
    return order, offsets, np.add.reduceat(sizes[order], offsets[:-1])


def freeze(out: str, rows: Rows, assignment: Assignment, config: BuildConfig, generation: str = "") -> str:
    """Write the assignment and plan.json; return the plan's hash.

    The hash covers the options, every row's length, and where each row goes.
    """
    digest = hashlib.sha256(config_hash(config).encode())
    for array in (rows.facts["length"], assignment.order, assignment.offsets, assignment.shard_bins):
        digest.update(np.ascontiguousarray(array).tobytes())
    plan_hash = digest.hexdigest()
    _check_frozen(out, plan_hash, generation)
    write_placement(out, generation, (placement(rows, assignment, shard) for shard in range(assignment.shards)))
    plan = {"hash": plan_hash, "rows": len(rows), "bins": assignment.bins, "shards": assignment.shards}
    path = io.join(out, "plan", of_generation("plan", generation, ".json"))
    io.write_atomic(path, json.dumps(plan, indent=1).encode())
    return plan_hash


def placement(rows: Rows, assignment: Assignment, shard: int) -> Placement:
    """The rows of a shard."""
    first, last = assignment.shard_bins[shard : shard + 2]
    offsets = assignment.offsets[first : last + 1]
    order = assignment.order[offsets[0] : offsets[-1]]
    return Placement(order, rows.split[order], rows.within[order], offsets - offsets[0])


def _check_frozen(out: str, plan_hash: str, generation: str) -> None:
    """The plan of an earlier run, where shards may have been made of it, must be this one."""
    uri = io.join(out, "plan", of_generation("plan", generation, ".json"))
    ending = of_generation("", generation, ".json")
    if not io.exists(uri) or not any(name.endswith(ending) for name in io.list_folder(io.join(out, "receipts"))):
        return
    try:
        earlier = json.loads(io.read_bytes(uri))["hash"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DamagedDataError(f"{uri}: is damaged ({error}); --overwrite begins anew") from error
    if earlier != plan_hash:
        raise DamagedDataError(
            f"{out}: the plan differs from the one that its shards were made of (a split was planned again and gave "
            "other rows); --overwrite begins anew"
        )
