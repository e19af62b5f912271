"""Where each packed row goes: plan/placement.arrow, a record batch a shard, which tells its task what to encode.

The task itself holds no more than the number of its batch. A shard of short rows has some 50,000 of them; as arrays of
the tasks they would be a megabyte each in the object store of Ray's head, for every task that waits.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from omniprep import io
from omniprep.compiler.output.paths import of_generation
from omniprep.compiler.plan.file import damaged_plan, open_plan, read_batch

SCHEMA = pa.schema([("row", pa.int64()), ("split", pa.int32()), ("within", pa.int32()), ("bin", pa.int32())])


@dataclass(frozen=True, slots=True)
class Placement:
    """The rows of a shard, in the order of its bins."""

    rows: NDArray[np.int64]
    """Numbers of the rows in the plan."""
    splits: NDArray[np.int32]
    within: NDArray[np.int32]
    """Number of each row within its split."""
    offsets: NDArray[np.int64]
    """Bin b holds rows offsets[b] to offsets[b+1]."""


def placement_path(out: str, generation: str) -> str:
    """Where the placement lies."""
    return io.join(out, "plan", of_generation("placement", generation, ".arrow"))


def write_placement(out: str, generation: str, shards: Iterator[Placement]) -> None:
    """Write the placement of all shards, in order."""
    with (
        io.atomic_writer(placement_path(out, generation)) as file,
        pa.ipc.new_file(pa.PythonFile(file, mode="w"), SCHEMA) as writer,
    ):
        for shard in shards:
            bins = np.repeat(np.arange(len(shard.offsets) - 1, dtype=np.int32), np.diff(shard.offsets))
            columns = (shard.rows, shard.splits, shard.within, bins)
            writer.write_batch(pa.record_batch([pa.array(column) for column in columns], schema=SCHEMA))


def read_placement(out: str, generation: str, shard: int) -> Placement:
    """The placement of a shard of this plan, counted from 0."""
    uri = placement_path(out, generation)
    batch = read_batch(open_plan(uri, SCHEMA), shard, uri)
    rows, splits, within, bins = (column.to_numpy(zero_copy_only=False) for column in batch.columns)
    if not len(bins) or bins[0] or np.any(np.diff(bins) < 0) or np.any(np.diff(bins) > 1):
        raise damaged_plan(uri, ValueError(f"the bins of shard {shard} are not in order"))
    offsets = np.concatenate([[0], np.flatnonzero(np.diff(bins)) + 1, [len(bins)]])
    return Placement(rows, splits, within, offsets)
