"""The child process of compiler/isolate/crashing_rows.py: decodes the rows of a task and throws the results away.

Before each row a line of JSON with its number goes to the report pipe, so the parent knows which row was being decoded
when this process ended. Rejects and errors do not matter here: the task itself will meet them again.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

from omniprep.compiler.encode.shard_task import EncodeTask
from omniprep.compiler.plan.split_task import PlanTask
from omniprep.compiler.run.tasks import Task
from omniprep.compiler.run.workers import single_threaded
from omniprep.config import BuildConfig
from omniprep.families.context import FamilySpec
from omniprep.printable import printable
from omniprep.rows.split import Split


def main(report: int) -> None:
    """Try the rows of the task that is on standard input, from the given one on."""
    prefer_oom_kill()
    start, text = sys.stdin.buffer.read().split(b"\n", 1)
    task = task_from_json(text)

    def send(**event: object) -> None:
        os.write(report, json.dumps(event).encode() + b"\n")

    with single_threaded():
        try:
            for number, decode in task.rows():
                if number < int(start):
                    continue
                send(row=number)
                try:
                    decode()
                except MemoryError:
                    send(memory=True)
                    return
                except Exception as error:
                    print(printable(f"row {number}: {type(error).__name__}: {error}"), file=sys.stderr)
        except Exception as error:  # the input cannot be read: the task itself will say so
            print(printable(f"{type(error).__name__}: {error}"), file=sys.stderr)
    send(done=True)


def task_from_json(text: bytes) -> Task:
    """The task that crashing_rows.py wrote."""
    fields: dict[str, Any] = _with_tuples(json.loads(text))
    name = fields.pop("class")
    fields["spec"], fields["config"] = FamilySpec(**fields["spec"]), BuildConfig(**fields["config"])
    if name == PlanTask.__name__:
        return PlanTask(**{**fields, "split": Split(**fields["split"])})
    return EncodeTask(**fields)


def _with_tuples(value: Any) -> Any:
    """Lists become tuples again: the records hold no lists, since they are keys of caches."""
    if isinstance(value, list):
        return tuple(_with_tuples(entry) for entry in value)
    return {key: _with_tuples(entry) for key, entry in value.items()} if isinstance(value, dict) else value


def prefer_oom_kill() -> None:
    """Where memory runs out, the kernel ends this process rather than its parent."""
    try:
        Path("/proc/self/oom_score_adj").write_text("1000")
    except OSError as error:
        print(f"oom_score_adj: {error}", file=sys.stderr)
