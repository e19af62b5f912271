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
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from omniprep import io
from omniprep.compiler.costs import encode_memory, encode_seconds, unit_bytes
from omniprep.compiler.driver import run_in_folder, stopped_by_signal
from omniprep.compiler.duplicates import HASH_COLUMNS, BuiltRows, find_duplicates
from omniprep.compiler.encode.shard_task import EncodeTask
from omniprep.compiler.encode.stored_items import codec_columns
from omniprep.compiler.options import check_places, family_of, family_spec
from omniprep.compiler.oracle.quick import check_family
from omniprep.compiler.output.built_rows import Planned
from omniprep.compiler.output.folder import (
    Listed,
    build_identity,
    check_unchanged,
    list_inputs,
    os_errors_as_one_line,
    prepare,
    with_template_date,
)
from omniprep.compiler.output.lease import Lease, LostLeaseError, hold
from omniprep.compiler.output.manifest import finish
from omniprep.compiler.output.ownfiles import RESULTS
from omniprep.compiler.output.progress_file import kept_progress
from omniprep.compiler.pack import Assignment, Rows, assign_bins, freeze, gather, placement
from omniprep.compiler.parts import parts_of
from omniprep.compiler.plan.file import PREFERENCE_FACTS
from omniprep.compiler.plan.probe import item_limits
from omniprep.compiler.plan.split_task import PlanTask
from omniprep.compiler.plan.work import plan_seconds
from omniprep.compiler.preferences import has_preferences, reject_other_kinds
from omniprep.compiler.run.cluster import ray_session
from omniprep.compiler.run.error_budget import FirstErrors, check_error_rate
from omniprep.compiler.run.stages import Stage
from omniprep.compiler.run.tasks import Receipt
from omniprep.config import BuildConfig
from omniprep.errors import OmniprepError, UsageError, did_you_mean
from omniprep.families.context import FamilyContext
from omniprep.families.registry import REGISTRY
from omniprep.media.track import sound_decoder
from omniprep.modalities import MODALITIES
from omniprep.printable import counted
from omniprep.progress import Reporter

if TYPE_CHECKING:
    from omniprep.shards.dataset import StoredDataset  # imports torch, which a plan does not need


def build(config: BuildConfig, progress: Reporter) -> dict[str, Any]:
    """Build a dataset, or go on with one; returns the manifest. With --split-by rows two, of which it is the first's.

    Raises:
        UsageError: Options that cannot be used.
        OmniprepError: An input that cannot be read, an --out that holds another build, too many rejects.
    """
    if config.bin_length < 1 or not config.out:
        raise UsageError("--bin-length and --out are needed")
    manifest: dict[str, Any] = {}
    template_date = config.template_date
    for part in parts_of(config):  # the same day for both, should midnight lie between them
        manifest, template_date = _build_part(replace(part, template_date=template_date), progress)
    return manifest


def _build_part(config: BuildConfig, progress: Reporter) -> tuple[dict[str, Any], str | None]:
    """Build one dataset; its manifest, and the day that its template writes."""
    check_places(config, progress.message)
    config = replace(config, audio_decoder=sound_decoder(config.audio_decoder))
    with os_errors_as_one_line(config.out):  # before the checkpoint is read, which may be downloaded first
        listed = list_inputs(config, progress.message)
    ctx = family_of(config)
    config = with_template_date(config, ctx)
    item_limits(ctx, config.limit_mm_per_row)
    codec_columns(ctx, config)  # says at once where its library is absent
    with os_errors_as_one_line(config.out):
        identity = build_identity(config, ctx, listed)
    checked = check_family(ctx, progress.message)  # before the folder holds anything: another family may be tried
    manifest = run_in_folder(
        config,
        identity,
        progress,
        lambda lease, shown: _build(config, listed, lease, shown, checked),
        lambda: write_dataset_report(config.out, ctx, progress),
    )
    return manifest, config.template_date


def _build(
    config: BuildConfig, listed: Listed, lease: Lease, progress: Reporter, checked: dict[str, Any]
) -> dict[str, Any]:
    with ray_session(config.workers, config.ray_address), REGISTRY.frozen_while():
        planned = replace(plan(config, progress, lease, listed), checked=checked)
        receipts = encode(config, planned, progress, lease)
    progress.start("commit", None, "files")
    manifest = finish(config, planned, receipts)
    progress.advance("commit", len(RESULTS) - 1)
    write_dataset_report(config.out, planned.ctx, progress)
    progress.advance("commit")
    progress.finish("commit")
    return manifest


def write_dataset_report(out: str, ctx: FamilyContext | None, progress: Reporter) -> None:
    """Write report.html; a dataset is whole without it, so what goes wrong is only told."""
    from omniprep.inspect.vocabulary import Vocabulary
    from omniprep.report.page import write_report

    try:
        write_report(out, vocabulary=Vocabulary(ctx.encoder.backend) if ctx else None)
    except LostLeaseError:
        raise
    except Exception as error:  # the dataset is whole without its picture
        progress.message(f"{out}: report.html was not written ({type(error).__name__}: {error})")


def plan(
    config: BuildConfig, progress: Reporter, lease: Lease | None = None, listed: Listed | None = None, *,
    existing: "StoredDataset | None" = None,
) -> Planned:  # fmt: skip
    """Read, plan and pack; needs `config.out` (the plan is written there) and a Ray session unless workers is 0.

    `existing`: the dataset that the rows are appended to, so that there may be none.
    """
    ctx = family_of(config)
    spec = family_spec(config, ship_plugins=True)
    limits = item_limits(ctx, config.limit_mm_per_row)
    listed = listed or list_inputs(config, progress.message)
    splits = listed.splits
    worker_config = replace(config, inputs=())
    generation, fence = (lease.generation, lease.fence) if lease else ("", None)
    tasks = [
        PlanTask(
            number=number,
            out=config.out,
            generation=generation,
            fence=fence,
            split=split,
            spec=spec,
            config=worker_config,
        )
        for number, split in enumerate(splits)
    ]
    errors = FirstErrors(progress, config, splits)
    stage = Stage(name="plan", out=config.out, workers=config.workers, progress=progress, lease=lease, errors=errors)
    receipts = stage.run(tasks, plan_seconds(splits, listed.inputs) if config.workers else ())
    check_unchanged(config.out, listed)
    filtered, elsewhere = (sum(receipt[name] for receipt in receipts) for name in ("filtered", "other_part"))
    if existing is None:  # another day's rows need not have all columns, and need not be chosen
        check_where(config, receipts)
    if not sum(r["rows"] for r in receipts) and not (filtered + elsewhere and existing is not None):
        why = f"--where leaves out all {filtered:,}" if filtered else "the files are empty"
        if elsewhere:
            share = f"--eval-fraction {config.eval_fraction} of {elsewhere:,} rows"
            why = f"{share} {'gives none' if config.part == 'eval' else 'takes them all'}"
        raise OmniprepError(f"{', '.join(config.inputs)}: no rows ({why})")
    used = {number for receipt in receipts for number in receipt.get("columns", ())}
    for number, text in enumerate(config.columns):
        if number not in used:
            progress.message(f"--columns {text}: no row has a column of that name")
    rejected, read = sum(r["rejected"] for r in receipts), sum(r["rows"] for r in receipts)
    check_error_rate(config, rejected, read, "omniprep plan with the same options shows examples of each code")
    exact = config.dedup == "exact"
    preferences = has_preferences(receipts, existing)
    more = {**dict.fromkeys(HASH_COLUMNS if exact else (), np.uint64), **(PREFERENCE_FACTS if preferences else {})}
    rows = gather(config.out, [receipt["rows"] for receipt in receipts], generation, more)
    other_kinds = reject_other_kinds(config, rows, splits, receipts, existing)
    if other_kinds is not None:
        if config.on_error == "fail":
            raise OmniprepError(other_kinds.text)
        progress.message(other_kinds.text)
        check_error_rate(config, rejected + len(other_kinds), read, "most rows decide which kind is kept")
    if other := sum(receipt["other_prompts"] for receipt in receipts):
        which = counted(other, "pair has answers", "pairs have answers")
        progress.message(f"{which} to prompts that differ, as the reference reads them: see docs/inputs.md")
    rows.unit_bytes = unit_bytes(ctx)
    occurring = [name for name in ctx.modalities if rows.facts[MODALITIES[name].column].any()]
    if config.bin_length and (large := ctx.capacity_warnings(config.bin_length, limits, occurring)):
        progress.message(
            f"a bin holds {config.bin_length} tokens, but {', '.join(large)}: rows that do not fit are rejected"
        )
    duplicates = None
    if exact:
        duplicates = find_duplicates(rows, BuiltRows.none() if existing is None else BuiltRows.of(existing))
        progress.message(f"--dedup exact: {counted(len(duplicates), 'row repeats', 'rows repeat')} one before it")
    progress.start("pack", int(rows.packed.sum()), "rows")
    assignment = assign_bins(rows, config)
    plan_hash = freeze(config.out, rows, assignment, config, generation)
    planned = Planned(
        config, ctx, spec, splits, listed.inputs, receipts, rows, assignment, plan_hash, generation,
        duplicates=duplicates, other_kinds=other_kinds,
    )  # fmt: skip
    rejects = planned.taken_out_by_code()
    if rejects:
        progress.event("rows_rejected", {"stage": "pack", "rejects_by_code": rejects})
        for where, code, message in planned.taken_out() if progress.wants_rejects() else ():
            source, _, line = where.rpartition(":")
            progress.event("reject", {"source": source, "line": int(line), "code": code, "message": message})
    progress.advance("pack", int(rows.packed.sum()), rejects=sum(rejects.values()))
    progress.finish("pack")
    return planned


def check_where(config: BuildConfig, receipts: Sequence[Receipt]) -> None:
    """OmniprepError for a column of --where that no row has: it would leave out all rows, or none, silently."""
    missing = set.intersection(*(set(receipt["missing_columns"]) for receipt in receipts)) if receipts else set()
    if missing:
        names = {name for receipt in receipts for name in receipt["seen_columns"]}
        name = min(missing)
        there = did_you_mean(name, names) or (f"; there are: {', '.join(sorted(names)[:12])}" if names else "")
        raise OmniprepError(f"--where {config.where!r}: no row has a column {name}{there}")


def plan_only(config: BuildConfig, progress: Reporter) -> Planned:
    """Plan in --out, or in a folder that is thrown away where none is given."""
    check_places(config, progress.message)
    config = replace(config, audio_decoder=sound_decoder(config.audio_decoder))
    if config.out:
        with os_errors_as_one_line(config.out), stopped_by_signal():
            listed = list_inputs(config, progress.message)
            config = with_template_date(config, family_of(config))
            identity = build_identity(config, family_of(config), listed)
            with hold(config.out, progress.message) as lease:
                lease.generation = prepare(config, identity, lease.fence.token)
                with (
                    kept_progress(lease, "plan", config.workers, progress) as shown,
                    ray_session(config.workers, config.ray_address),
                    REGISTRY.frozen_while(),
                ):
                    return plan(config, shown, lease, listed)
    with tempfile.TemporaryDirectory(prefix="omniprep-plan-") as folder:
        config = replace(config, out=folder)
        io.make_folder(io.join(folder, "plan"))
        with ray_session(config.workers, config.ray_address), REGISTRY.frozen_while():
            return plan(config, progress)


def encode(
    config: BuildConfig, planned: Planned, progress: Reporter, lease: Lease | None = None, *, first_shard: int = 0,
    first_row: int = 0,
) -> list[dict[str, Any]]:  # fmt: skip
    """Encode the shards of a plan; their numbers, and those of rows in them, go on from `first_shard` and `first_row`.

    Returns the receipts, in order; the rows that they reject have their numbers in the plan.
    """
    assignment, rows = planned.assignment, planned.rows
    run_id = uuid.uuid4().hex
    worker_config = replace(config, inputs=())
    tasks = [
        EncodeTask(
            number=first_shard + shard,
            out=config.out,
            generation=planned.generation,
            fence=lease.fence if lease else None,
            shard=shard,
            first_row=first_row,
            run_id=run_id,
            spec=planned.spec,
            config=worker_config,
            preferences=planned.preferences,
        )
        for shard in range(assignment.shards)
    ]
    errors = FirstErrors(
        progress, config, planned.splits, lambda row: (int(rows.split[row]), int(rows.facts["line"][row]))
    )
    for number, receipt in enumerate(planned.receipts):
        errors.record_line_count(number, receipt["lines"])
    stage = Stage(name="encode", out=config.out, workers=config.workers, progress=progress, lease=lease, errors=errors)
    if not config.workers:
        return stage.run(tasks)
    return stage.run(tasks, *_efforts(rows, assignment))


def _efforts(rows: Rows, assignment: Assignment) -> tuple[list[float], list[int]]:
    """Seconds that each shard takes to encode, and the bytes that its worker holds at most, about."""
    seconds, memory = [], []
    for shard in range(assignment.shards):
        placed = placement(rows, assignment, shard)
        facts = rows.columns(placed.rows)
        seconds.append(float(encode_seconds(facts).sum()))
        memory.append(encode_memory(facts, placed.offsets, rows.unit_bytes))
    return seconds, memory
