"""Build on 2 Ray workers against 1: time of the stages, start-up apart; the goal is 1.8 times.

Seconds are from the first to the last receipt of a stage's tasks as the driver sees them, after a first build has
warmed the workers. Needs two free cores: on a busy machine the ratio says more about its other users.

    python benchmarks/scale_workers.py --model CHECKPOINT [--data FOLDER] [--rounds 3]
"""

import argparse
import os
import tempfile
import time
from pathlib import Path
from statistics import median

from corpus import make
from record import record

from omniprep.build.run import build
from omniprep.build.workers import ray_session
from omniprep.config import BuildConfig
from omniprep.progress import reporter

ROWS = {"text": 3000, "image": 200, "audio": 80, "video": 40}
SESSIONS = 2


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=os.environ.get("OMNIPREP_BENCH_MODEL"))
    parser.add_argument("--data", type=Path, default=os.environ.get("OMNIPREP_BENCH_DATA"))
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    if not options.model:
        print("skipped: needs --model (OMNIPREP_BENCH_MODEL)")
        return
    seconds: dict[int, list[float]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory(prefix="omniprep-workers-") as name:
        folder = Path(name)
        files = list(make(folder / "corpus", ROWS, options.data).values())
        for session in range(SESSIONS):
            for workers in seconds:
                with reporter(quiet=True), ray_session(workers, None):
                    for turn in range(options.rounds + 1):
                        stages = once(files, options.model, workers, folder / f"out-{session}-{workers}-{turn}")
                        if turn:  # the first warms the workers
                            seconds[workers].append(stages["encode"])
    rows = [
        {"workers": n, "seconds": round(median(times), 2), "speedup": round(median(seconds[1]) / median(times), 2)}
        for n, times in seconds.items()
    ]
    record("scale_workers", rows, corpus=ROWS, goal=1.8, load_average=os.getloadavg()[0], stage="encode")


if __name__ == "__main__":
    main()
