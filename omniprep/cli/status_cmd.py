"""`omniprep status`."""

from typing import TYPE_CHECKING

import click

from omniprep.cli.command import Command
from omniprep.printable import counted, printable_json, say
from omniprep.progress import duration, short, size

if TYPE_CHECKING:
    from omniprep.compiler.output.status import StageStatus, Status, Worker


@click.command(
    name="status",
    cls=Command,
    examples=("omniprep status packed/", "omniprep status s3://lake/packed --json"),
)
@click.argument("dataset", metavar="DIR")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead.")
def status(dataset: str, as_json: bool) -> None:
    """Say how far a build, append, repack or removal in DIR is, who works on it, and how to go on.

    Reads the files of DIR alone, local or in a store: works after the driver died, and from another machine. Of a
    finished dataset it says what is in it.
    """
    from omniprep.compiler.output.status import read_status

    found = read_status(dataset)
    if as_json:
        print(printable_json(found.as_json(), indent=1))
        return
    for line in status_lines(found):
        say(line)


def status_lines(found: "Status") -> list[str]:
    """What `omniprep status` says of a folder, line by line."""
    lines = []
    if found.state == "finished":
        lines.append(f"{found.dataset}: finished")
    else:
        lines.append(f"{found.dataset}: {found.command} {found.state}")
    if found.finished is not None:
        if found.state != "finished":
            lines.append("the dataset that is there can be read:")
        rows = found.finished["rows"]
        parts = ", ".join(f"{rows[name]:,} {name}" for name in ("packed", "rejected", "removed") if name in rows)
        lines.append(f"  {counted(rows['read'], 'row')} read: {parts}")
        lines.append(
            f"  {found.finished['tokens']:,} tokens, {counted(found.finished['bins'], 'bin')} of "
            f"{found.finished['bin_length']:,}, {counted(found.finished['shards'], 'shard')}, "
            f"{size(found.finished['bytes'])}"
        )
        for number, generation in enumerate(found.finished["generations"]):
            lines.append(
                f"  generation {number}: {generation['command']}, {counted(generation['rows']['read'], 'row')}"
            )
    lines += [stage_line(stage, running=found.state == "running") for stage in found.stages]
    if found.lease is not None:
        lines.append(lease_line(found.lease))
    if found.progress is not None and found.state == "running" and found.progress_seconds is not None:
        lines.append(f"as of {duration(found.progress_seconds)} ago, running for {duration(_ran(found))}")
        for task in found.progress.tasks:
            total = "" if task.total is None else f"/{task.total:,}"
            lines.append(f"  {task.worker or 'the driver'}: {task.task}, {task.done:,}{total} {task.unit}")
    if found.progress is not None:
        codes = ", ".join(f"{code} {count:,}" for code, count in found.progress.rejects_by_code.items())
        if codes:
            lines.append(f"rejected: {codes}")
        for row in found.progress.last_rejects[-5:]:
            lines.append(f"  {row.source}:{row.line}: {row.code}: {row.message}")
        error = found.progress.error
        if error is not None and found.state in ("failed", "interrupted"):
            lines.append(
                f"it was ended by {error.signal}" if error.signal else f"error ({error.code}): {error.message}"
            )
    if found.advice:
        lines.append(found.advice)
    return lines


def _ran(found: "Status") -> float:
    assert found.progress is not None
    return max(found.progress.time - found.progress.began, 0.0)


def stage_line(stage: "StageStatus", *, running: bool) -> str:
    """A stage, such as "encode: 12/40 shards, 0.8 shards/s, 310k tokens/s, 35 s left"."""
    total = "" if stage.total is None else f"/{stage.total:,}"
    parts = [f"{stage.stage}: {stage.done:,}{total} {stage.unit}"]
    if stage.rate:
        parts.append(f"{short(stage.rate)} {stage.unit}/s")
    if stage.tokens_per_second:
        parts.append(f"{short(stage.tokens_per_second)} tokens/s")
    if stage.rejects:
        parts.append(f"{stage.rejects:,} rejected")
    if stage.state == "done":
        parts.append("done")
    elif running and stage.eta_seconds is not None:
        parts.append(f"{duration(stage.eta_seconds)} left")
    return ", ".join(parts)


def lease_line(lease: "Worker") -> str:
    """Who has the folder, and whether that process lives."""
    process = f"process {lease.pid} on {lease.host}"
    age = duration(lease.seconds_since_sign)
    if lease.liveness == "alive":
        return f"worked on by {process}, which is alive (last sign of life {age} ago)"
    if lease.liveness == "fresh":
        return f"worked on by {process} (last sign of life {age} ago)"
    if lease.liveness == "dead":
        return f"{process} worked on it, and is gone"
    return f"{process} worked on it, and gave no sign of life for {age}: taken for gone"
