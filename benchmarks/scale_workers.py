"""Build on 2 Ray workers against 1: time of the encode stage, start-up apart; the goal is 1.8 times. More: simulated.

Seconds are from the first to the last receipt of the stage's tasks as the driver sees them, after a first build has
warmed the workers. A worker is one core for Ray, so one worker (and the driver) is held to one core here, and two to
two; the line of one worker on two cores tells how much the second core helps a single worker, whose video decoder and
driver run beside it. Needs two free cores: on a busy machine the ratio says more about its other users.

What more workers would give is simulated, not measured: shards take what they took one worker here, 64 times as many
of them, those of most effort first, each to the worker that is free first; the driver hands out one task after the
other, in the time that a task without work was measured to take on Ray. Left out: a store or disk that all share.

    python benchmarks/scale_workers.py --model CHECKPOINT [--data FOLDER] [--rounds 3]
"""

import argparse
import heapq
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from corpus import make
from record import record

from omniprep.bars import reporter
from omniprep.compiler.build import build
from omniprep.compiler.run.cluster import ray_session
from omniprep.compiler.run.workers import run_tasks
from omniprep.config import BuildConfig

ROWS = {"text": 4000, "image": 320, "audio": 80, "video": 40}
SESSIONS = 1
SIMULATED, TIMES = (2, 4, 16, 64, 256), 64
EMPTY_TASKS = 400


class Stages:
    """A reporter that only remembers when stages began and ended."""

    def __init__(self) -> None:
        self.began: dict[str, float] = {}
        self.seconds: dict[str, float] = {}

    def start(self, stage: str, total: int | None, unit: str = "rows") -> None:
        """A stage begins."""
        self.began[stage] = time.perf_counter()

    def advance(self, stage: str, n: int = 1, *, tokens: int = 0, rejects: int = 0) -> None:
        """Not counted."""

    def finish(self, stage: str) -> None:
        """A stage is over."""
        self.seconds[stage] = time.perf_counter() - self.began[stage]

    def message(self, text: str) -> None:
        """Not shown."""


def once(files: list[Path], model: str, workers: int, out: Path) -> dict[str, float]:
    stages = Stages()
    options = BuildConfig(
        inputs=tuple(map(str, files)), model=model, bin_length=16384, out=str(out), workers=workers, shard_size=8 << 20
    )
    build(options, stages)
    return stages.seconds


@dataclass(frozen=True)
class EmptyTask:
    """A task without work."""

    out: str = ""
    fence: None = None
    isolate: bool = False

    def run(self) -> dict[str, Any]:
        """Do nothing."""
        return {}


def session(files: list[Path], model: str, workers: int, cores: int, rounds: int, folder: Path) -> dict[str, Any]:
    """Of some builds of a Ray session held to some cores, in a process of its own: seconds of the encode stage, of the
    shards of the last one, and of a task without work.
    """
    command = [sys.executable, __file__, "--model", model, "--rounds", str(rounds), "--session", str(workers)]
    command += ["--cores", str(cores), "--out", str(folder), *map(str, files)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def run_session(files: list[Path], model: str, workers: int, cores: int, rounds: int, folder: Path) -> None:
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    seconds = []
    with reporter(quiet=True), ray_session(workers, None):
        for turn in range(rounds + 1):
            stages = once(files, model, workers, folder / str(turn))
            receipts = [json.loads(path.read_text()) for path in (folder / str(turn) / "receipts").iterdir()]
            shutil.rmtree(folder / str(turn))
            if turn:  # the first warms the workers
                seconds.append(stages["encode"])
        begin = time.perf_counter()
        for _ in run_tasks([EmptyTask()] * EMPTY_TASKS, workers, [], print):
            pass
        empty = (time.perf_counter() - begin) / EMPTY_TASKS
    print(json.dumps({"encode": seconds, "shards": [receipt["seconds"] for receipt in receipts], "empty_task": empty}))


def simulated(shards: list[float], empty: float, workers: int) -> float:
    """Seconds of the stage: shards that take longest first, each to the worker that is free first."""
    free = [0.0] * workers
    handed = 0.0
    for seconds in sorted(shards, reverse=True):
        handed += empty
        heapq.heapreplace(free, max(free[0], handed) + seconds)
    return max(free)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=os.environ.get("OMNIPREP_BENCH_MODEL"))
    parser.add_argument("--data", type=Path, default=os.environ.get("OMNIPREP_BENCH_DATA"))
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--session", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--cores", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("files", nargs="*", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.session:
        run_session(options.files, options.model, options.session, options.cores, options.rounds, options.out)
        return
    if not options.model:
        print("skipped: needs --model (OMNIPREP_BENCH_MODEL)")
        return
    seconds: dict[tuple[int, int], list[float]] = {(1, 1): [], (2, 2): [], (1, 2): []}
    answers: dict[tuple[int, int], dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(prefix="omniprep-workers-") as name:
        files = list(make(Path(name) / "corpus", ROWS, options.data).values())
        for _ in range(SESSIONS):
            for (workers, cores), times in seconds.items():
                answer = session(files, options.model, workers, cores, options.rounds, Path(name))
                answers[workers, cores] = answer
                times += answer["encode"]
    rows = [
        {
            "workers": workers,
            "cores": cores,
            "seconds": round(median(times), 2),
            "speedup": round(median(seconds[1, 1]) / median(times), 2),
            "spread": f"{min(times):.2f} to {max(times):.2f} s",
        }
        for (workers, cores), times in seconds.items()
    ]
    shards, empty = answers[1, 1]["shards"] * TIMES, answers[1, 1]["empty_task"]
    for workers in SIMULATED:
        found = simulated(shards, empty, workers)
        speedup = round(simulated(shards, empty, 1) / found, 1)
        rows.append({"workers": workers, "cores": "simulated", "seconds": round(found, 2), "speedup": speedup})
    record(
        "scale_workers", rows, corpus=ROWS, goal=1.8, load_average=os.getloadavg()[0], stage="encode",
        simulated_shards=len(shards), empty_task_ms=round(1000 * empty, 2),
    )  # fmt: skip


if __name__ == "__main__":
    main()
