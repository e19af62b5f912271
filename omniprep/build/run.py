"""The compiler's driver: read and plan, pack, encode, finish. State is files: what has a receipt is not done again.

    plan/build.json     options, inputs and versions of the build; a run with others stops and names what differs
    plan/split-N.arrow  the plan of a split, and .json its receipt
    plan/plan.json      the hash that freezes the packing
    shards/, receipts/  a shard and its receipt
    manifest.json       last

Killed at any moment, the same command goes on; the bytes are those of a run that nobody killed.
"""

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from omniprep import io
from omniprep.build.manifest import describe_inputs, finish, tokenizer_hash, versions
from omniprep.build.options import family_of, family_spec
from omniprep.build.packstage import Placement, Rows, freeze, gather, place
from omniprep.build.rowplan import item_limits
from omniprep.build.stages import PlanTask, ShardTask, encode_shard, plan_path, plan_split, receipt_path
from omniprep.build.workers import ray_session, run_tasks
from omniprep.config import BuildConfig, shaping
from omniprep.errors import OmniprepError, UsageError
from omniprep.families.context import FamilyContext, FamilySpec
from omniprep.families.registry import REGISTRY
from omniprep.media.audio import sound_decoder
from omniprep.progress import Reporter
from omniprep.rows.sources import Split, count_lines, find_inputs, find_splits
from omniprep.template.loss import parse_strategy

Task = TypeVar("Task", PlanTask, ShardTask)


@dataclass(slots=True)
class Planned:
    """What planning leaves in the driver."""

    ctx: FamilyContext
    spec: FamilySpec
    splits: list[Split]
    inputs: list[dict[str, Any]]
    receipts: list[dict[str, Any]]
    rows: Rows
    placement: Placement
    plan_hash: str


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
    _prepare_out(config, ctx)
    done = io.join(config.out, "manifest.json")
    if io.exists(done):
        progress.message(f"{config.out}: already built with these options and inputs; nothing to do")
        return json.loads(io.read_bytes(done))  # type: ignore[no-any-return]
    with ray_session(config.workers, config.ray_address), REGISTRY.frozen_while():
        planned = plan(config, progress)
        shards = _encode(config, planned, progress)
    lines = _lines(planned)
    manifest = finish(
        config,
        ctx,
        planned.splits,
        lines,
        planned.rows,
        planned.placement,
        shards,
        planned.plan_hash,
        planned.inputs,
        plan_seconds=sum(receipt["seconds"] for receipt in planned.receipts),
    )
    _write_report(config.out, progress)
    rows = manifest["counts"]["rows"]
    _check_error_rate(config, rows["rejected"], rows["read"])
    return manifest


def _write_report(out: str, progress: Reporter) -> None:
    from omniprep.report.page import write_report

    try:
        write_report(out)
    except Exception as error:  # the dataset is whole without its picture
        progress.message(f"{out}: report.html was not written ({type(error).__name__}: {error})")


def plan(config: BuildConfig, progress: Reporter) -> Planned:
    """Read, plan and pack; needs `config.out` (the plan is written there) and a Ray session unless workers is 0."""
    ctx = family_of(config)
    spec = family_spec(config, ship_plugins=True)
    limits = item_limits(ctx, config.limit_mm_per_row)
    if config.bin_length and (large := ctx.capacity_warnings(config.bin_length, limits)):
        progress.message(
            f"a bin holds {config.bin_length} tokens, but {', '.join(large)}: rows that do not fit are rejected"
        )
    splits = find_splits(find_inputs(config.inputs))
    if not splits:
        raise OmniprepError(f"{', '.join(config.inputs)}: no rows (the files are empty)")
    worker_config = replace(config, inputs=())
    tasks = [PlanTask(split, number, spec, worker_config, config.out) for number, split in enumerate(splits)]
    receipts = _run_stage("plan", plan_split, tasks, lambda t: plan_path(t.out, t.number, ".json"), config, progress)
    if not sum(r["rows"] for r in receipts):
        raise OmniprepError(f"{', '.join(config.inputs)}: no rows (the files are empty)")
    rejected, read = sum(r["rejected"] for r in receipts), sum(r["rows"] for r in receipts)
    _check_error_rate(config, rejected, read)
    rows = gather(config.out, len(splits))
    progress.start("pack", int(rows.packed.sum()), "rows")
    placement = place(rows, config)
    plan_hash = freeze(config.out, rows, placement, config)
    progress.advance("pack", int(rows.packed.sum()))
    progress.finish("pack")
    return Planned(ctx, spec, splits, describe_inputs(splits), receipts, rows, placement, plan_hash)


def plan_only(config: BuildConfig, progress: Reporter) -> Planned:
    """Plan in --out, or in a folder that is thrown away where none is given."""
    config = replace(config, audio_decoder=sound_decoder(config.audio_decoder))
    if config.out:
        _prepare_out(config, family_of(config))
        with ray_session(config.workers, config.ray_address), REGISTRY.frozen_while():
            return plan(config, progress)
    with tempfile.TemporaryDirectory(prefix="omniprep-plan-") as folder:
        config = replace(config, out=folder)
        io.make_folder(io.join(folder, "plan"))
        with ray_session(config.workers, config.ray_address), REGISTRY.frozen_while():
            return plan(config, progress)


def _encode(config: BuildConfig, planned: Planned, progress: Reporter) -> list[dict[str, Any]]:
    placement, rows = planned.placement, planned.rows
    plans = tuple(plan_path(config.out, number, ".arrow") for number in range(len(planned.splits)))
    worker_config = replace(config, inputs=())
    tasks = []
    for shard in range(len(placement.shard_bins) - 1):
        first, last = placement.shard_bins[shard : shard + 2]
        order = placement.order[placement.offsets[first] : placement.offsets[last]]
        tasks.append(
            ShardTask(
                number=shard,
                splits=rows.split[order],
                rows=rows.within[order],
                row_ids=order,
                offsets=placement.offsets[first : last + 1] - placement.offsets[first],
                plans=plans,
                spec=planned.spec,
                config=worker_config,
                out=config.out,
            )
        )
    return _run_stage("encode", encode_shard, tasks, lambda t: receipt_path(t.out, t.number), config, progress)


def _run_stage(
    stage: str, function: Callable[[Task], dict[str, Any]], tasks: list[Task], receipt: Callable[[Task], str],
    config: BuildConfig, progress: Reporter,
) -> list[dict[str, Any]]:  # fmt: skip
    """Run the tasks that have no receipt; returns the receipts of all, in order."""
    results: dict[int, dict[str, Any]] = {}
    left = []
    for number, task in enumerate(tasks):
        path = receipt(task)
        if io.exists(path):
            results[number] = json.loads(io.read_bytes(path))
        else:
            left.append(number)
    unit = "splits" if stage == "plan" else "shards"
    progress.start(stage, len(tasks), unit)
    for result in results.values():
        _advance(progress, stage, result)
    if results:
        progress.message(f"{stage}: {len(results)} of {len(tasks)} {unit} were done before")
    marks = [io.join(config.out, "plan", f"{stage}-{number:06d}.begun") for number in left]
    for at, result in run_tasks(function, [tasks[number] for number in left], config.workers, marks, progress.message):
        results[left[at]] = result
        _advance(progress, stage, result)
        _check_first_error(config, tasks[left[at]], result)
    progress.finish(stage)
    return [results[number] for number in range(len(tasks))]


def _advance(progress: Reporter, stage: str, receipt: dict[str, Any]) -> None:
    tokens = receipt.get("tokens", sum(b["tokens"] for b in receipt.get("bins", ())))
    rejects = receipt["rejected"] if "rejected" in receipt else len(receipt["rejects"])
    progress.advance(stage, 1, tokens=tokens, rejects=rejects)


def _check_first_error(config: BuildConfig, task: PlanTask | ShardTask, receipt: dict[str, Any]) -> None:
    if config.on_error != "fail":
        return
    if isinstance(task, PlanTask) and receipt["rejected"]:
        from omniprep.build.planfile import read_rejects

        at, code, message, _ = read_rejects(plan_path(task.out, task.number, ".arrow"))[0]
        raise OmniprepError(
            f"{task.split.source}: row {at + 1} of split {task.number}: {code}: {message} (--on-error fail)"
        )
    if isinstance(task, ShardTask) and receipt["rejects"]:
        first = receipt["rejects"][0]
        raise OmniprepError(
            f"row {first['row'] + 1} of the inputs: {first['code']}: {first['message']} (--on-error fail)"
        )


def _check_error_rate(config: BuildConfig, rejected: int, read: int) -> None:
    if read and rejected / read > config.max_error_rate:
        raise OmniprepError(
            f"{rejected} of {read} rows are rejected, more than --max-error-rate {config.max_error_rate}; see rejected.jsonl, or omniprep plan"
        )


def _lines(planned: Planned) -> list[int]:
    """Lines of each split; counted only where another split of the same file follows."""
    splits = planned.splits
    follows = [n + 1 < len(splits) and splits[n + 1].source == s.source for n, s in enumerate(splits)]
    return [
        0 if not follow else count_lines(s) if s.kind == "jsonl" else r["rows"]
        for s, follow, r in zip(splits, follows, planned.receipts, strict=True)
    ]


def _prepare_out(config: BuildConfig, ctx: FamilyContext) -> None:
    """Make the folder, or check that what lies there is this very build."""
    parse_strategy(config.loss_scale)
    inputs = describe_inputs(find_splits(find_inputs(config.inputs)))
    this = {
        "config": shaping(config),
        "inputs": inputs,
        "versions": {**versions(), **ctx.versions},
        "tokenizer_sha256": tokenizer_hash(ctx),
    }
    state = io.join(config.out, "plan", "build.json")
    try:
        if config.overwrite:
            for name in (
                "plan",
                "shards",
                "receipts",
                "manifest.json",
                "index.parquet",
                "rows.parquet",
                "rejected.jsonl",
                "report.html",
            ):
                io.remove(io.join(config.out, name))
        if io.exists(state):
            _check_same(json.loads(io.read_bytes(state)), json.loads(json.dumps(this)), config.out)
            return
        if io.is_local(config.out) and io.list_folder(config.out):
            raise OmniprepError(
                f"{config.out}: the folder is not empty and holds no omniprep build; choose another --out"
            )
        for name in ("plan", "shards", "receipts"):
            io.make_folder(io.join(config.out, name))
        io.write_atomic(state, json.dumps(this, indent=1).encode())
    except PermissionError as error:
        raise OmniprepError(f"{config.out}: no permission to write ({error.strerror})") from error
    except (NotADirectoryError, FileExistsError) as error:
        raise OmniprepError(f"{config.out}: is a file, a folder is needed") from error


def _check_same(before: dict[str, Any], now: dict[str, Any], out: str) -> None:
    changes = []
    for key in ("config", "versions"):
        old, new = before[key], now[key]
        names = sorted({*old, *new})
        changes += [
            f"{'--' if key == 'config' else ''}{n.replace('_', '-')}: {old.get(n)} → {new.get(n)}"
            for n in names
            if old.get(n) != new.get(n)
        ]
    old_inputs = {entry["source"]: entry for entry in before["inputs"]}
    new_inputs = {entry["source"]: entry for entry in now["inputs"]}
    changes += [
        f"input {name} was changed"
        for name, entry in new_inputs.items()
        if name in old_inputs and old_inputs[name] != entry
    ]
    if before["tokenizer_sha256"] != now["tokenizer_sha256"]:
        changes.append("the tokenizer of --model was changed")
    if changes:
        raise OmniprepError(
            f"{out} holds a build with other options or inputs ({'; '.join(changes)}); give another --out, or --overwrite to begin anew"
        )


__all__ = ["Planned", "build", "plan", "plan_only"]
