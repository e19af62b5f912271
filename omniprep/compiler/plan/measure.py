"""How long encoding takes on this machine: some rows of each kind are encoded and written to a temporary folder.

The only part of `plan` that decodes. The rows are spread over the whole input; each kind gets `ROWS` of them or
`SECONDS`, whichever ends first, so it takes at most half a minute.
"""

import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from omniprep.compiler.encode.rows import MediaCache, encode_planned, make_bin, shard_schema
from omniprep.compiler.plan.reader import PlanReader
from omniprep.compiler.run.workers import single_threaded
from omniprep.config import BuildConfig
from omniprep.errors import OmniprepError, Reject
from omniprep.modalities import MEDIA_COLUMNS, row_kinds
from omniprep.shards.schema import Bin
from omniprep.shards.writer import ShardWriter

if TYPE_CHECKING:
    from omniprep.compiler.output.built_rows import Planned

ROWS, SECONDS = 12, 6.0


def measure(planned: "Planned", config: BuildConfig) -> tuple[float, int]:
    """CPU seconds that all rows would take on one core, from some that are encoded here, and how many these are."""
    facts, packed = planned.rows.facts, planned.rows.packed
    kinds = row_kinds([facts[column] for column in MEDIA_COLUMNS])
    total, timed = 0.0, 0
    for kind in np.unique(kinds[packed]):
        rows = np.flatnonzero((kinds == kind) & packed)
        seconds, count = _time(planned, config, rows)
        if count == 0:
            raise OmniprepError("--measure: of one kind no row could be encoded; `omniprep build` says why")
        total += seconds / count * len(rows)
        timed += count
    return total, timed


def _time(planned: "Planned", config: BuildConfig, rows: NDArray[np.int64]) -> tuple[float, int]:
    """CPU seconds that some of the rows took, and how many they were."""
    spread = np.linspace(0, len(rows) - 1, min(len(rows), ROWS + 1))
    first, *others = rows[np.unique(spread.round().astype(int))].tolist()
    reader = PlanReader(config.out, planned.generation)

    def encode(number: int) -> Bin | None:
        try:
            row = reader.read(int(planned.rows.split[number]), int(planned.rows.within[number]))
            return encode_planned(row, planned.ctx, config, MediaCache(0))
        except Reject:
            return None  # `omniprep build` reports it

    with tempfile.TemporaryDirectory(prefix="omniprep-measure-") as folder, single_threaded():
        encode(first)  # not timed: it compiles kernels and fills caches
        count, cpu_start, deadline = 0, time.process_time(), time.monotonic() + SECONDS
        schema = shard_schema(planned.ctx, config, preferences=planned.preferences)
        with ShardWriter(str(Path(folder) / "rows.arrow"), schema) as writer:
            for number in others or [first]:
                row = encode(number)
                if row is not None:
                    writer.write(make_bin([row], [0], preferences=planned.preferences))
                    count += 1
                if time.monotonic() > deadline:
                    break
        return time.process_time() - cpu_start, count
