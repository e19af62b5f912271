"""The child process of omniprep/compiler/isolate/crashing_rows.py: does the rows of a task and throws the results away.

Before each row a line of JSON with its number goes to the report pipe, so whoever reads it knows which row was under
way when this process ended. An ordinary reject or error is no matter here: the task itself will meet it again.
"""

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from omniprep.compiler.encode.rows import MediaCache, encode_planned
from omniprep.compiler.plan.file import PlanReader
from omniprep.compiler.plan.rows import plan_rows
from omniprep.compiler.run.tasks import PlanTask, ShardTask, task_from_json
from omniprep.compiler.run.workers import single_threaded
from omniprep.families.context import resolve
from omniprep.media.fetch import MediaRoots
from omniprep.printable import printable
from omniprep.rows.sources import read_split


def main(report: int) -> None:
    """Try the rows of the task that stands on standard input, from the given one on.

    Args:
        report: File descriptor of the report pipe.
    """
    _first_to_go()
    start, text = sys.stdin.buffer.read().split(b"\n", 1)
    task = task_from_json(text)
    rows = _plan_rows(task) if isinstance(task, PlanTask) else _shard_rows(task)

    def say(**event: object) -> None:
        os.write(report, json.dumps(event).encode() + b"\n")

    with single_threaded():
        try:
            for number, attempt in rows:
                if number < int(start):
                    continue
                say(row=number)
                try:
                    attempt()
                except MemoryError:
                    say(memory=True)
                    return
                except Exception as error:
                    print(printable(f"row {number}: {type(error).__name__}: {error}"), file=sys.stderr)
        except Exception as error:  # the input cannot be read: met again, and told, when the task itself is done
            print(printable(f"{type(error).__name__}: {error}"), file=sys.stderr)
    say(done=True)


def _plan_rows(task: PlanTask) -> Iterator[tuple[int, Callable[[], object]]]:
    ctx = resolve(task.spec)
    media_roots = MediaRoots(task.split.base, task.config.media_root, task.config.allow_http)
    for number, raw in enumerate(read_split(task.split, max_line_bytes=task.config.max_line_bytes)):
        yield number, lambda raw=raw: plan_rows([raw.content], ctx, task.config, media_roots)  # type: ignore[misc]


def _shard_rows(task: ShardTask) -> Iterator[tuple[int, Callable[[], object]]]:
    ctx, reader, cache = resolve(task.spec), PlanReader(task.out, task.generation), MediaCache(0)
    for at in range(len(task.rows)):
        planned = reader.read(int(task.splits[at]), int(task.rows[at]))
        yield at, lambda planned=planned: encode_planned(planned, ctx, task.config, cache)  # type: ignore[misc]


def _first_to_go() -> None:
    """Where memory runs out, the kernel ends this process rather than its parent."""
    try:
        Path("/proc/self/oom_score_adj").write_text("1000")
    except OSError as error:
        print(f"oom_score_adj: {error}", file=sys.stderr)
