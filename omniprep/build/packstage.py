"""The pack stage, in the driver: lengths and costs of all rows → bins → shards, frozen with a hash.

Only numbers are held: about 60 bytes a row. The placement is written to plan/placement.arrow, so a build that goes on
later works on the same plan, and plan/plan.json holds its hash.
"""

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from omniprep import io
from omniprep.build.planfile import read_facts
from omniprep.build.tasks import plan_path
from omniprep.config import BuildConfig, config_hash
from omniprep.errors import DamagedDataError
from omniprep.packing import layout, pack
from omniprep.rows.normalize import MODALITIES

# Bytes that a token, a patch and an audio frame take in a shard, to cut shards before anything is encoded.
TOKEN_BYTES, PATCH_BYTES, FRAME_BYTES = 20, 900, 256


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


def gather(out: str, splits: int) -> Rows:
    """Facts of all rows from the plans of all splits."""
    parts = [read_facts(plan_path(out, number, ".arrow")) for number in range(splits)]
    sizes = [len(part["length"]) for part in parts]
    names = parts[0].keys() if parts else ()
    return Rows(
        split=np.repeat(np.arange(splits, dtype=np.int32), sizes),
        within=np.concatenate([np.arange(n, dtype=np.int32) for n in sizes]) if sizes else np.empty(0, np.int32),
        facts={name: np.concatenate([part[name] for part in parts]) for name in names},
    )


def place(rows: Rows, config: BuildConfig) -> Placement:
    """Pack the kept rows: a pure function of their lengths and costs, the bin length, the limits and the seed."""
    kept = np.flatnonzero(rows.packed)
    lengths = rows.facts["length"][kept].astype(np.int64)
    patches, frames = rows.facts["patches"][kept], rows.facts["audio_frames"][kept]
    limits = [
        (costs, limit)
        for costs, limit in ((patches, config.max_bin_patches), (frames, config.max_bin_audio_frames))
        if limit is not None
    ]
    costs = np.stack([c for c, _ in limits], axis=1) if limits else None
    bins = pack(
        lengths, config.bin_length, config.seed, costs, np.array([limit for _, limit in limits]) if limits else None
    )
    plan = layout(lengths, bins, config.seed)
    size = lengths * TOKEN_BYTES + patches * PATCH_BYTES + frames * FRAME_BYTES
    before = np.concatenate([[0], np.cumsum(size[plan.order])])[plan.offsets]
    cuts = [0]
    while cuts[-1] < len(plan.offsets) - 1:
        end = int(np.searchsorted(before, before[cuts[-1]] + config.shard_size, side="right")) - 1
        cuts.append(max(end, cuts[-1] + 1))
    return Placement(kept[plan.order], plan.offsets, np.array(cuts, np.int64))


def freeze(out: str, rows: Rows, placement: Placement, config: BuildConfig) -> str:
    """Write the placement and plan.json; return the plan's hash.

    The hash covers the options, every row's length and code, and where each row goes.
    """
    table = pa.table({"order": placement.order})
    bins = pa.table({"offsets": placement.offsets})
    digest = hashlib.sha256(config_hash(config).encode())
    for array in (rows.facts["length"], placement.order, placement.offsets, placement.shard_bins):
        digest.update(np.ascontiguousarray(array).tobytes())
    _check_frozen(out, digest.hexdigest())
    for name, part in (("placement", table), ("bins", bins)):
        path = io.join(out, "plan", f"{name}.arrow")
        with io.atomic_writer(path) as file, pa.ipc.new_file(pa.PythonFile(file, mode="w"), part.schema) as writer:
            writer.write_table(part)
    plan = {
        "hash": digest.hexdigest(),
        "rows": len(rows),
        "bins": placement.bins,
        "shards": len(placement.shard_bins) - 1,
    }
    io.write_atomic(io.join(out, "plan", "plan.json"), json.dumps(plan, indent=1).encode())
    return digest.hexdigest()


def _check_frozen(out: str, now: str) -> None:
    """The plan of an earlier run, where shards may have been made of it, must be this one."""
    uri = io.join(out, "plan", "plan.json")
    if not io.exists(uri) or not io.list_folder(io.join(out, "receipts")):
        return
    before = json.loads(io.read_bytes(uri))["hash"]
    if before != now:
        raise DamagedDataError(
            f"{out}: the plan differs from the one that its shards were made of (a split was planned again and gave "
            "other rows); --overwrite begins anew"
        )


def item_counts(rows: Rows) -> dict[str, NDArray[np.int32]]:
    """Media items of each row, by modality."""
    return {m: rows.facts[f"{m}s"] for m in MODALITIES}
