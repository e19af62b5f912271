"""How far a build, append, repack or removal is, from the files of its folder alone: whoever can read them can ask,
also when the driver is dead, and from another machine.

The lease says who works there, plan/progress.json what was done when it was last written, and the receipts what is done
now. The files may be a stranger's: what they say is checked, and only shown.
"""

import os
import shlex
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from omniprep import io
from omniprep.compiler.output.holder import LEASE, read_holder
from omniprep.compiler.output.lease import liveness
from omniprep.compiler.output.ownfiles import APPEND_STATE, OWN, STATE
from omniprep.compiler.output.paths import of_generation
from omniprep.compiler.output.progress_file import PROGRESS
from omniprep.errors import DamagedDataError, OmniprepError
from omniprep.shards.manifest import read_manifest
from omniprep.shards.typed import parse_json, typed_record

MOST_BYTES = 4 << 20
"""Of progress.json, which has about 10 KB: twenty rejects, and a line for each worker."""
State = Literal["finished", "running", "failed", "interrupted", "killed", "stopped"]


@dataclass(frozen=True, kw_only=True, slots=True)
class StageStatus:
    """A stage; of rates and seconds those of the run that wrote them."""

    stage: str
    done: int
    total: int | None = None
    unit: str = ""
    state: Literal["running", "done"] = "running"
    done_before: int = 0
    rows: int = 0
    tokens: int = 0
    bytes: int = 0
    rejects: int = 0
    seconds: float = 0.0
    rate: float = 0.0
    rows_per_second: float = 0.0
    tokens_per_second: float = 0.0
    eta_seconds: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class RejectedLine:
    """A rejected row."""

    source: str
    line: int
    code: str
    message: str


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerTask:
    """How far a worker is with its task."""

    worker: str
    task: str
    done: int
    unit: str
    total: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class RunError:
    """What ended a run that failed, or the signal that did."""

    code: str = ""
    message: str = ""
    signal: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class ProgressRecord:
    """plan/progress.json."""

    command: str
    state: Literal["running", "failed", "interrupted"]
    time: float
    began: float
    stages: tuple[StageStatus, ...]
    token: str = ""
    generation: str = ""
    arguments: tuple[str, ...] = ()
    folder: str = ""
    error: RunError | None = None
    rejects_by_code: Mapping[str, int] = field(default_factory=dict)
    last_rejects: tuple[RejectedLine, ...] = ()
    tasks: tuple[WorkerTask, ...] = ()
    queue: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Worker:
    """The lease of a folder: which process has it, and whether that lives."""

    host: str
    pid: int
    seconds_since_sign: float
    liveness: Literal["alive", "dead", "fresh", "stale"]

    @property
    def works(self) -> bool:
        """Whether the process is taken to live."""
        return self.liveness in ("alive", "fresh")


@dataclass(frozen=True, kw_only=True, slots=True)
class Status:
    """What the files of a folder say."""

    dataset: str
    state: State
    command: str
    lease: Worker | None
    finished: dict[str, Any] | None
    """Counts and generations, where there is a dataset that can be read."""
    progress: ProgressRecord | None
    progress_seconds: float | None
    """Age of what `progress` says."""
    stages: tuple[StageStatus, ...]
    """Those of `progress`, with what the receipts say is done since."""
    advice: str
    """How to go on; empty where nothing is to be done."""

    def as_json(self) -> dict[str, Any]:
        """As JSON types."""
        return asdict(self)


def read_status(out: str) -> Status:
    """What works, or worked, in a folder, and how far it is.

    Raises:
        OmniprepError: Nothing of omniprep is there, or the files cannot be read.
    """
    try:
        names = io.list_folder(out)
        holder = read_holder(io.join(out, LEASE)) if LEASE in names else None
        progress = _read_progress(out)
        has_build = io.exists(io.join(out, *STATE))
        has_append = io.exists(io.join(out, *APPEND_STATE))
        finished = _finished(out) if "manifest.json" in names else None
        stages = _stages(out, progress)
    except NotADirectoryError as error:
        raise OmniprepError(f"{out}: is a file; give the folder of a build (its --out)") from error
    except OSError as error:
        raise OmniprepError(f"{out}: {error.strerror or error}") from error
    if finished is None and not has_build and progress is None and holder is None:
        what = "holds no dataset, and no build that was begun"
        if io.is_local(out) and not os.path.isdir(io.local_path(out)):
            what = f"no such folder{io.did_you_mean_file(out)}"
        raise OmniprepError(f"{out}: {what}")
    lease = None
    if holder is not None:
        age = max(time.time() - holder.time, 0.0)
        lease = Worker(host=holder.host, pid=holder.pid, seconds_since_sign=round(age, 1), liveness=liveness(holder))
    works = lease is not None and lease.works
    command = progress.command if progress is not None else "append" if has_append else _command(out)
    state: State
    if works:
        state = "running"
    elif finished is not None and command in ("build", "repack"):
        state = "finished"  # they write the manifest last: what lies beside is of a run that was killed after that
    elif progress is not None:
        state = "killed" if progress.state == "running" else progress.state
    elif has_append or finished is None:
        state = "killed" if lease is not None else "stopped"
    else:
        state = "finished"
    return Status(
        dataset=out,
        state=state,
        command=command,
        lease=lease,
        finished=finished,
        progress=progress,
        progress_seconds=None if progress is None else round(max(time.time() - progress.time, 0.0), 1),
        stages=() if state == "finished" else stages,
        advice=_advice(state, command, progress, lease),
    )


def _advice(state: State, command: str, progress: ProgressRecord | None, lease: Worker | None) -> str:
    if state in ("finished", "running"):
        return ""
    again = "the same command again goes on from here"
    if progress is not None and progress.arguments:
        again += f": {shlex.join(['omniprep', *progress.arguments])}"
        if progress.folder:
            again += f" (in {progress.folder})"
    elif command != "build":
        again = f"the same `omniprep {command}` again goes on from here"
    if lease is not None and lease.liveness == "stale":
        again += "; it watches the lease for a minute first, since the process that has it may only be slow"
    return again


def _read_progress(out: str) -> ProgressRecord | None:
    uri = io.join(out, *PROGRESS)
    try:
        if (size := io.size(uri)) > MOST_BYTES:
            raise DamagedDataError(f"{uri}: {size:,} bytes are too many for this file")
        return typed_record(ProgressRecord, parse_json(io.read_bytes(uri), uri), uri)
    except FileNotFoundError:
        return None


def _finished(out: str) -> dict[str, Any]:
    record, manifest = read_manifest(out)
    counts = record.counted(out)
    generations = [
        {"command": entry["command"], "rows": entry["rows"], "tokens": entry["tokens"], "bins": entry["bins"]}
        for entry in manifest.get("generations", ())
    ]
    rows = {name: value for name, value in asdict(counts.rows).items() if name != "removed" or value}
    return {
        "rows": rows,
        "tokens": counts.tokens,
        "bins": counts.bins,
        "bin_length": record.bin_length,
        "shards": len(record.shards),
        "bytes": sum(shard.bytes for shard in record.shards),
        "rejected_by_code": dict(counts.rejected_by_code),
        "generations": generations,
    }


def _stages(out: str, progress: ProgressRecord | None) -> tuple[StageStatus, ...]:
    """The stages, with the receipts that are there: they are newer than progress.json, and outlive it."""
    generation = progress.generation if progress is not None else _generation(out)
    ending = of_generation("", generation, ".json")
    counted = {}
    for folder, stem in (("plan", "split-"), ("receipts", "")):
        names = [name for name in io.list_folder(io.join(out, folder)) if name.startswith(stem)]
        matches = [match for name in names if (match := OWN[folder].fullmatch(name))]
        tags = [(match["tag"] or "").removeprefix("-") for match in matches if match.group().endswith(ending)]
        counted[folder] = tags.count(generation)
    if progress is None:
        stages = [StageStatus(stage="plan", unit="splits", done=counted["plan"])]
        if (shards := _planned_shards(out, generation)) is not None:
            done = counted["receipts"]
            stages[0] = StageStatus(stage="plan", unit="splits", done=counted["plan"], state="done")
            stages.append(StageStatus(stage="encode", unit="shards", done=done, total=shards))
        return tuple(stages)
    known = {"plan": counted["plan"], "encode": counted["receipts"], "repack": counted["receipts"]}
    merged = []
    for stage in progress.stages:
        done = max(stage.done, min(known.get(stage.stage, 0), stage.total or 0))
        merged.append(StageStatus(**{**asdict(stage), "done": done}))
    return tuple(merged)


def _command(out: str) -> str:
    """The command that plan/build.json is of."""
    uri = io.join(out, *STATE)
    content = parse_json(io.read_bytes(uri), uri) if io.exists(uri) else None
    command = content.get("command") if isinstance(content, dict) else None
    return command if command in ("build", "repack") else "build"


def _generation(out: str) -> str:
    """The generation of the change, or of the build, that is under way."""
    for state in (APPEND_STATE, STATE):
        uri = io.join(out, *state)
        if io.exists(uri):
            content = parse_json(io.read_bytes(uri), uri)
            generation = content.get("generation", "") if isinstance(content, dict) else ""
            if not isinstance(generation, str) or generation.strip("0123456789abcdef"):
                raise DamagedDataError(f"{uri}: generation: expected hexadecimal digits")
            return generation
    return ""


def _planned_shards(out: str, generation: str) -> int | None:
    uri = io.join(out, "plan", of_generation("plan", generation, ".json"))
    if not io.exists(uri):
        return None
    plan = parse_json(io.read_bytes(uri), uri)
    shards = plan.get("shards") if isinstance(plan, dict) else None
    if not isinstance(shards, int):
        raise DamagedDataError(f"{uri}: shards: expected a number")
    return shards
