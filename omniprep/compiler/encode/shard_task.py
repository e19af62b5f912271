"""Encode one shard: its bins, row by row, into shards/N.arrow and a receipt."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import pyarrow as pa

from omniprep.compiler.encode.rows import MediaCache, encode_planned, make_bin, shard_schema
from omniprep.compiler.encode.shard_file import ShardFile, UnwritableBinError
from omniprep.compiler.isolate.crashing_rows import find_crashing_rows
from omniprep.compiler.isolate.deadline import row_deadline, row_deadlines
from omniprep.compiler.plan.placement import Placement, read_placement
from omniprep.compiler.plan.planned import PlannedRow
from omniprep.compiler.plan.reader import PlanReader
from omniprep.compiler.run.tasks import Receipt, ShardTask
from omniprep.compiler.run.worker_status import report_progress
from omniprep.config import BuildConfig
from omniprep.errors import OmniprepError, Reject, unexpected
from omniprep.families.context import FamilyContext, FamilySpec, resolve
from omniprep.families.errors import FamilyError
from omniprep.garbage import collect_young
from omniprep.media.remote import Place, ahead
from omniprep.shards.schema import Bin
from omniprep.shards.writer import serialize_bin


@dataclass(frozen=True, kw_only=True)
class EncodeTask(ShardTask):
    """Encode one shard; which rows its bins hold, plan/placement.arrow says."""

    shard: int
    """Number of the shard in the plan: of an append, `number` also counts the shards that were there before."""
    first_row: int = 0
    """Number in rows.parquet of the plan's first row: of an append, the rows that were there before."""
    run_id: str
    """Id of the driver run; keys the worker's plan cache."""
    spec: FamilySpec
    config: BuildConfig
    preferences: bool = False
    """Whether the dataset has preference rows."""

    def run(self) -> Receipt:
        """As `Task.run`; the rejects of its receipt have the row's number in the plan.

        A bin that cannot be written costs only the rows to blame: the shard is begun again, and the rows of that bin
        are tried one by one.
        """
        suspects: set[int] = set()
        while True:
            try:
                return _Encoding(self, suspects).run()
            except UnwritableBinError as error:
                if error.number in suspects:
                    raise
                suspects.add(error.number)

    def rows(self) -> Iterator[tuple[int, Callable[[], object]]]:
        """As `Task.rows`."""
        family, plans, cache = resolve(self.spec), PlanReader(self.out, self.generation), MediaCache(0)
        placed = self.placement()
        for number, (split, row) in enumerate(zip(placed.splits.tolist(), placed.within.tolist(), strict=True)):
            planned = plans.read(split, row)
            yield number, lambda planned=planned: encode_planned(planned, family, self.config, cache)  # type: ignore[misc]

    def placement(self) -> Placement:
        """The rows of the shard, by its bins."""
        return read_placement(self.out, self.generation, self.shard)


@lru_cache(maxsize=1)
def _plan_reader(out: str, generation: str, run_id: str) -> PlanReader:
    return PlanReader(out, generation)


class _Encoding:
    """A shard while it is encoded."""

    def __init__(self, task: EncodeTask, suspects: set[int]) -> None:
        self.task, self.suspects, self.family = task, suspects, resolve(task.spec)
        self.plans = _plan_reader(task.out, task.generation, task.run_id)
        self.placed = task.placement()
        self.cache = MediaCache(0)
        self.crashing = find_crashing_rows(task, task.config) if task.isolate else {}
        self.rejects: list[dict[str, Any]] = []
        self.rows = ahead(self.read_rows(), _places, whole=True)

    def read_rows(self) -> Iterator[PlannedRow]:
        """The rows of the shard, in order."""
        for split, number in zip(self.placed.splits.tolist(), self.placed.within.tolist(), strict=True):
            yield self.plans.read(split, number)

    def run(self) -> Receipt:
        task = self.task
        schema = shard_schema(self.family, task.config, preferences=task.preferences)
        bins = len(self.placed.offsets) - 1
        with (
            row_deadlines(task.config.decode_timeout),
            ShardFile(task.out, task.number, schema, task.generation) as shard,
        ):
            self.cache = MediaCache(compress=shard.compress)
            for number in range(bins):
                report_progress(f"shard {task.number}", number, bins, "bins")
                rows, ids = self.encode_bin(number, shard)
                if number in self.suspects:
                    rows, ids = self.without_unwritable(rows, ids, schema)
                if not rows:
                    continue
                try:
                    packed = self.packed(rows, [task.first_row + row_id for row_id in ids])
                except Exception as error:
                    raise UnwritableBinError(number, error) from error
                shard.put(number, packed)
        return shard.finish(self.rejects)

    def encode_bin(self, number: int, shard: ShardFile) -> tuple[list[Bin], list[int]]:
        """The rows of a bin that can be encoded, and their numbers in the plan."""
        task, placed, rows, ids = self.task, self.placed, [], []
        for index in range(int(placed.offsets[number]), int(placed.offsets[number + 1])):
            planned = next(self.rows)
            row_id = int(placed.rows[index])
            shard.bound_memory()
            try:
                if index in self.crashing:
                    raise self.crashing[index]
                rows.append(_encode_row(planned, self.family, task.config, self.cache))
                ids.append(row_id)
            except FamilyError as error:
                error.row = row_id
                raise
            except Reject as reject:
                self.reject(row_id, reject)
                collect_young()
        return rows, ids

    def without_unwritable(self, rows: list[Bin], ids: list[int], schema: pa.Schema) -> tuple[list[Bin], list[int]]:
        """The rows that can be written, each tried in a bin of its own; the others are rejected."""
        kept, kept_ids = [], []
        for row, row_id in zip(rows, ids, strict=True):
            try:
                serialize_bin(self.packed([row], [row_id]), schema)
            except Exception as error:
                self.reject(row_id, unexpected(error))
            else:
                kept.append(row)
                kept_ids.append(row_id)
        return kept, kept_ids

    def packed(self, rows: list[Bin], row_ids: list[int]) -> Bin:
        return make_bin(rows, row_ids, preferences=self.task.preferences)

    def reject(self, row_id: int, reject: Reject) -> None:
        self.rejects.append({"row": row_id, "code": str(reject.code), "message": reject.message})


def _places(row: PlannedRow) -> list[Place]:
    """The media of a row that lie in a store."""
    sources = (source for _, _, item in row.stored_items() for source in item.sources)
    return [source.place for source in sources if source.uri is not None]


def _encode_row(planned: PlannedRow, family: FamilyContext, config: BuildConfig, cache: MediaCache) -> Bin:
    """Encode a row; whatever a decoder or a family's callback raises costs this row, and is reported."""
    sources = [source.label for _, _, item in planned.stored_items() for source in item.sources]
    try:
        if not sources:
            return encode_planned(planned, family, config, cache)
        with row_deadline(sources[0]):
            return encode_planned(planned, family, config, cache)
    except (Reject, OmniprepError):
        raise
    except Exception as error:
        raise unexpected(error) from error
