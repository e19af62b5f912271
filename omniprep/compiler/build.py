"""The compiler's driver: read and plan, pack, encode, finish. State is files: what has a receipt is not done again.

    plan/build.json     options, inputs and versions of the build; a run with others stops and names what differs
    plan/split-N.arrow  the plan of a split, and .json its receipt
    plan/plan.json      the hash that freezes the packing
    shards/, receipts/  a shard and its receipt
    manifest.json       last

Killed at any moment, the same command goes on; the bytes are those of a run that nobody killed.
"""

import tempfile
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

from omniprep import io
from omniprep.compiler.costs import encode_seconds
from omniprep.compiler.driver import run_in_folder, stopped_by_signal
from omniprep.compiler.options import family_of, family_spec
from omniprep.compiler.output.built_rows import BuiltRows
from omniprep.compiler.output.folder import Listed, check_unchanged, describe, list_inputs, prepare, told
from omniprep.compiler.output.lease import Lease, LostLeaseError, hold
from omniprep.compiler.output.manifest import finish
from omniprep.compiler.output.ownfiles import sweep
from omniprep.compiler.pack import Assignment, Rows, assign_bins, freeze, gather
from omniprep.compiler.plan.probe import item_limits
from omniprep.compiler.run.error_budget import FirstErrors, check_error_rate
from omniprep.compiler.run.stages import encode_shard, merge_unread, plan_split
from omniprep.compiler.run.tasks import PlanTask, ShardTask, Task, of_generation, read_receipt
from omniprep.compiler.run.workers import ray_session, run_tasks
from omniprep.config import BuildConfig
from omniprep.errors import OmniprepError, UsageError
from omniprep.families.context import FamilyContext, FamilySpec
from omniprep.families.errors import FamilyError
from omniprep.families.registry import REGISTRY
from omniprep.media.track import sound_decoder
from omniprep.progress import Reporter
from omniprep.rows.sources import Split
from omniprep.shards.codecs import with_codec

T = TypeVar("T", bound=Task)


@dataclass(slots=True)
class Planned:
    """What planning leaves in the driver."""

    ctx: FamilyContext
    spec: FamilySpec
    splits: list[Split]
    inputs: list[dict[str, Any]]
    receipts: list[dict[str, Any]]
    rows: Rows
    assignment: Assignment
    plan_hash: str
    generation: str = ""
    """Part of the names of the plans (omniprep/compiler/output/folder.py)."""

    @property
    def unread(self) -> dict[str, list[Any]]:
        """Columns that nobody reads: rows of each, and the --columns that reads it ("" where none does)."""
        found: dict[str, list[Any]] = {}
        for receipt in self.receipts:
            merge_unread(found, receipt.get("unread", {}))
        return found


def build(config: BuildConfig, progress: Reporter) -> dict[str, Any]:
    """Build a dataset, or go on with one; returns the manifest.

    Raises:
        UsageError: Options that cannot be used.
        OmniprepError: An input that cannot be read, an --out that holds another build, too many rejects.
    """
    if config.bin_length < 1 or not config.out:
        raise UsageError("--bin-length and --out are needed")
    config = replace(config, audio_decoder=sound_decoder(config.audio_decoder))
    ctx = family_of(config)
    item_limits(ctx, config.limit_mm_per_row)
    with_codec(ctx.columns, config.pixel_codec)  # says at once where its library is absent
    with told(config.out):
        listed = list_inputs(config, progress.message)
        this = describe(config, ctx, listed)
    return run_in_folder(
        config,
        this,
        progress,
        lambda lease: _build(config, ctx, listed, lease, progress),
        lambda: _write_report(config.out, ctx, progress),
    )


def _build(config: BuildConfig, ctx: FamilyContext, listed: Listed, lease: Lease, progress: Reporter) -> dict[str, Any]:
    with ray_session(config.workers, config.ray_address), REGISTRY.frozen_while():
        planned = plan(config, progress, lease, listed)
        shards = _encode(config, planned, progress, lease)
    sweep(config.out)  # of workers that died
    seconds = sum(receipt["seconds"] for receipt in shards)
    origin = BuiltRows(
        config,
        ctx,
        planned.splits,
        planned.receipts,
        planned.rows,
        planned.inputs,
        seconds,
        planned.unread,
        planned.generation,
    )
    manifest = finish(config, origin, planned.rows, planned.assignment, shards, planned.plan_hash)
    _write_report(config.out, ctx, progress)
    return manifest


def _write_report(out: str, ctx: FamilyContext, progress: Reporter) -> None:
    from omniprep.inspect.describe import Vocabulary
    from omniprep.report.page import write_report

    try:
        write_report(out, vocabulary=Vocabulary(ctx.tokenizer.backend_tokenizer))
    except LostLeaseError:
        raise
    except Exception as error:  # the dataset is whole without its picture
        progress.message(f"{out}: report.html was not written ({type(error).__name__}: {error})")


def plan(config: BuildConfig, progress: Reporter, lease: Lease | None = None, listed: Listed | None = None) -> Planned:
    """Read, plan and pack; needs `config.out` (the plan is written there) and a Ray session unless workers is 0.

    Raises:
        OmniprepError: No rows, too many rejects, or inputs that were changed meanwhile.
    """
    ctx = family_of(config)
    spec = family_spec(config, ship_plugins=True)
    limits = item_limits(ctx, config.limit_mm_per_row)
    if config.bin_length and (large := ctx.capacity_warnings(config.bin_length, limits)):
        progress.message(
            f"a bin holds {config.bin_length} tokens, but {', '.join(large)}: rows that do not fit are rejected"
        )
    listed = listed or list_inputs(config, progress.message)
    splits = listed.splits
    if not splits:
        raise OmniprepError(f"{', '.join(config.inputs)}: no rows (the files are empty)")
    worker_config = replace(config, inputs=())
    generation, fence = (lease.generation, lease.fence) if lease else ("", None)
    tasks = [
        PlanTask(split, number, spec, worker_config, config.out, generation=generation, fence=fence)
        for number, split in enumerate(splits)
    ]
    first = FirstErrors(progress.message, config, splits)
    receipts = run_stage("plan", plan_split, tasks, config, progress, lease, first)
    check_unchanged(config.out, listed)
    if not sum(r["rows"] for r in receipts):
        raise OmniprepError(f"{', '.join(config.inputs)}: no rows (the files are empty)")
    used = {number for receipt in receipts for number in receipt.get("columns", ())}
    for number, text in enumerate(config.columns):
        if number not in used:
            progress.message(f"--columns {text}: no row has a column of that name")
    rejected, read = sum(r["rejected"] for r in receipts), sum(r["rows"] for r in receipts)
    check_error_rate(config, rejected, read, "omniprep plan with the same options shows examples of each code")
    rows = gather(config.out, [receipt["rows"] for receipt in receipts], generation)
    progress.start("pack", int(rows.packed.sum()), "rows")
    assignment = assign_bins(rows, config)
    plan_hash = freeze(config.out, rows, assignment, config, generation)
    progress.advance("pack", int(rows.packed.sum()))
    progress.finish("pack")
    return Planned(ctx, spec, splits, listed.inputs, receipts, rows, assignment, plan_hash, generation)


def plan_only(config: BuildConfig, progress: Reporter) -> Planned:
    """Plan in --out, or in a folder that is thrown away where none is given."""
    config = replace(config, audio_decoder=sound_decoder(config.audio_decoder))
    if config.out:
        with told(config.out), stopped_by_signal():
            listed = list_inputs(config, progress.message)
            this = describe(config, family_of(config), listed)
            with hold(config.out, progress.message) as lease:
                lease.generation = prepare(config, this, lease.fence.token)
                with ray_session(config.workers, config.ray_address), REGISTRY.frozen_while():
                    return plan(config, progress, lease, listed)
    with tempfile.TemporaryDirectory(prefix="omniprep-plan-") as folder:
        config = replace(config, out=folder)
        io.make_folder(io.join(folder, "plan"))
        with ray_session(config.workers, config.ray_address), REGISTRY.frozen_while():
            return plan(config, progress)


def _encode(
    config: BuildConfig, planned: Planned, progress: Reporter, lease: Lease | None = None
) -> list[dict[str, Any]]:
    assignment, rows = planned.assignment, planned.rows
    run = uuid.uuid4().hex
    worker_config = replace(config, inputs=())
    tasks = []
    for shard in range(assignment.shards):
        first, last = assignment.shard_bins[shard : shard + 2]
        order = assignment.order[assignment.offsets[first] : assignment.offsets[last]]
        tasks.append(
            ShardTask(
                number=shard,
                splits=rows.split[order],
                rows=rows.within[order],
                row_ids=order,
                offsets=assignment.offsets[first : last + 1] - assignment.offsets[first],
                run=run,
                spec=planned.spec,
                config=worker_config,
                out=config.out,
                generation=planned.generation,
                fence=lease.fence if lease else None,
            )
        )
    first = FirstErrors(
        progress.message, config, planned.splits, lambda row: (int(rows.split[row]), int(rows.facts["line"][row]))
    )
    for number, receipt in enumerate(planned.receipts):
        first.know(number, receipt)
    efforts = _efforts(rows, tasks) if config.workers else ()
    return run_stage("encode", encode_shard, tasks, config, progress, lease, first, efforts)


def _efforts(rows: Rows, tasks: Sequence[ShardTask]) -> list[float]:
    """What the shards take to encode: with the dearest first, no worker is left with one when the others are done."""
    return [float(encode_seconds(rows.columns(task.row_ids)).sum()) for task in tasks]


def run_stage(
    stage: str, function: Callable[[T], dict[str, Any]], tasks: Sequence[T], config: BuildConfig, progress: Reporter,
    lease: Lease | None = None, first: FirstErrors | None = None, effort: Sequence[float] = (),
) -> list[dict[str, Any]]:  # fmt: skip
    """Run the tasks that have no receipt, those of most effort first; returns the receipts of all, in order.

    Args:
        stage: plan, encode or repack.
        function: Does a task and returns its receipt.
        tasks: Numbered from 0.
        config: Its workers; none of them for a function that is not a module's.
        progress: Told of each task.
        lease: Looked at after each task.
        first: Told of each task's rejects; None where the tasks decode nothing, and so reject nothing and kill nothing.
        effort: About how long each task takes.
    """
    results: dict[int, dict[str, Any]] = {}
    left = []
    for number, task in enumerate(tasks):
        done = read_receipt(task)
        if done is None:
            left.append(number)
        else:
            results[number] = done
    if lease is not None:
        lease.check()  # the receipts are this run's to trust: who takes the folder over changes its lease first
    left.sort(key=lambda number: -effort[number] if effort else 0.0)
    unit = "splits" if stage == "plan" else "shards"
    progress.start(stage, len(tasks), unit)

    def count(number: int, receipt: dict[str, Any]) -> None:
        results[number] = receipt
        _advance(progress, stage, receipt)
        if first is not None:
            first.show(tasks[number], receipt)

    for number, result in [*results.items()]:
        count(number, result)
    if results:
        progress.message(f"{stage}: {len(results)} of {len(tasks)} {unit} were done before")
    folder = io.join(config.out, "plan")
    found = [name for name in io.list_folder(folder) if name.startswith(f"{stage}-") and name.endswith(".begun")]
    generation = lease.generation if lease else ""
    marks = [
        io.join(folder, of_generation(f"{stage}-{number:06d}", generation, ".begun"))
        for number in (left if first is not None else ())
    ]
    # Reporters of other programs may know nothing of workers.
    show = partial(progress.workers, stage) if getattr(progress, "nested", False) else None
    chosen = [tasks[number] for number in left]
    try:
        for at, result in run_tasks(function, chosen, config.workers, marks, progress.message, show):
            if lease is not None:
                lease.check()
            count(left[at], result)
    except FamilyError as error:
        raise (first.placed(error) if first is not None else error) from error
    for name in found:  # of tasks that ended before their mark was removed, or that Ray did
        io.remove(io.join(folder, name))
    progress.finish(stage)
    return [results[number] for number in range(len(tasks))]


def _advance(progress: Reporter, stage: str, receipt: dict[str, Any]) -> None:
    tokens = receipt.get("tokens", sum(b["tokens"] for b in receipt.get("bins", ())))
    rejects = receipt["rejected"] if "rejected" in receipt else len(receipt["rejects"])
    progress.advance(stage, 1, tokens=tokens, rejects=rejects)


__all__ = ["Planned", "build", "plan", "plan_only", "run_stage"]
