"""How long encoding takes here: some rows of each kind are encoded and written to a folder that is thrown away.

This is the only part of `plan` that decodes. Rows are spread over the whole input; each kind gets `ROWS` of them or
`SECONDS`, whichever ends first, so it takes at most half a minute.
"""

import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from omniprep.compiler.encode.rows import EncodedRow, MediaCache, encode_planned, make_bin
from omniprep.compiler.plan.file import PlanReader
from omniprep.compiler.run.workers import single_threaded
from omniprep.config import BuildConfig
from omniprep.errors import OmniprepError, Reject
from omniprep.shards.codecs import with_codec
from omniprep.shards.schema import arrow_schema
from omniprep.shards.writer import ShardWriter
from omniprep.template.loss import parse_strategy

if TYPE_CHECKING:
    from omniprep.compiler.build import Planned

__all__ = ["measure"]

ROWS, SECONDS = 12, 6.0


def measure(planned: "Planned", config: BuildConfig) -> tuple[float, int]:
    """Time the encoding of some rows on one thread.

    Args:
        planned: The plan, which lies in `config.out`.
        config: Of the build.

    Returns:
        CPU seconds that encoding all rows would take on one core, and how many rows were timed.

    Raises:
        OmniprepError: No row could be encoded.
    """
    facts = planned.rows.facts
    kinds = (facts["images"] > 0) + 2 * (facts["audios"] > 0) + 4 * (facts["videos"] > 0)
    total, timed = 0.0, 0
    for kind in np.unique(kinds[planned.rows.packed]):
        rows = np.flatnonzero((kinds == kind) & planned.rows.packed)
        seconds, count = _time(planned, config, rows)
        if count == 0:
            raise OmniprepError("--measure: of one kind no row could be encoded; `omniprep build` says why")
        total += seconds / count * len(rows)
        timed += count
    return total, timed


def _time(planned: "Planned", config: BuildConfig, rows: NDArray[np.int64]) -> tuple[float, int]:
    """CPU seconds of some of the rows, the first apart (it compiles and fills caches), and how many they were."""
    chosen = rows[np.unique(np.linspace(0, len(rows) - 1, min(len(rows), ROWS + 1)).round().astype(int))]
    columns = with_codec(planned.ctx.columns, config.pixel_codec)
    weighted = parse_strategy(config.loss_scale).weighted
    schema = arrow_schema(columns, family=planned.ctx.name, modalities=planned.ctx.modalities, weighted=weighted)
    reader = PlanReader(config.out, planned.generation)

    def encode(at: int) -> EncodedRow | None:
        try:
            row = reader.read(int(planned.rows.split[at]), int(planned.rows.within[at]))
            return encode_planned(row, planned.ctx, config, MediaCache(0))
        except Reject:
            return None  # the build tells of it

    with tempfile.TemporaryDirectory(prefix="omniprep-measure-") as folder, single_threaded():
        encode(int(chosen[0]))
        count, began, limit = 0, time.process_time(), time.monotonic() + SECONDS
        with ShardWriter(str(Path(folder) / "rows.arrow"), schema) as writer:
            for at in chosen[1:] if len(chosen) > 1 else chosen:
                row = encode(int(at))
                if row is not None:
                    writer.write(make_bin([row], [0], planned.ctx.columns, weighted=weighted))
                    count += 1
                if time.monotonic() > limit:
                    break
        return time.process_time() - began, count
