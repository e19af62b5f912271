"""Memory and time of the driver: plan of 10,000,000 text rows gathered, packed, frozen, cut into tasks, tables written.

Everything the driver of a build does but waiting for its workers. The plan of 10,000 rows is made once and stands for
each of 1,000 splits, and the receipts of the shards are made up, so what is measured is only the driver. The goal is
2 GiB.

    python benchmarks/planner.py --model CHECKPOINT [--rows 10000000]
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from record import record
from scale import corpus

ROWS = 10_000  # of a split


def mebibytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


def receipts(tasks: list, lengths: np.ndarray) -> list[dict]:
    """What workers would have answered: every row encoded."""
    answers = []
    for task in tasks:
        tokens = np.add.reduceat(lengths[task.row_ids], task.offsets[:-1])
        bins = [
            {
                "bin": b,
                "offset": 4096 * b,
                "length": 4096,
                "checksum": 1 << 63,
                "tokens": int(tokens[b]),
                "rows": int(task.offsets[b + 1] - task.offsets[b]),
            }
            for b in range(len(tokens))
        ]
        path = f"shards/{task.number:05d}.arrow"
        answers.append(
            {"path": path, "bytes": 4096 * len(bins), "sha256": "0" * 64, "bins": bins, "rejects": [], "seconds": 0.0}
        )
    return answers


def worker(model: str, folder: Path, splits: int) -> None:
    from omniprep.bars import reporter
    from omniprep.compiler import build as run
    from omniprep.compiler.output.paths import plan_path
    from omniprep.compiler.run.stages import Stage
    from omniprep.config import BuildConfig

    source = folder / "rows.jsonl"
    corpus(source, ROWS)
    config = BuildConfig(inputs=(str(source),), model=model, bin_length=8192, out=str(folder / "out"), workers=0)
    (folder / "out" / "plan").mkdir(parents=True)
    with reporter(quiet=True) as progress:
        small = run.plan(config, progress)
    for number in range(1, splits):
        for suffix in (".arrow", ".json"):
            os.link(plan_path(config.out, 0, suffix), plan_path(config.out, number, suffix))
    base, begin = mebibytes(), time.process_time()
    answers: list[dict] = []

    def run_stage(stage: Stage, tasks: list, efforts: object = ()) -> list[dict]:
        if stage.name == "plan":
            return [small.receipts[0]] * len(tasks)
        answers.append({"stage": "packed, cut into tasks", "cpu_seconds": time.process_time() - begin})
        answers[-1]["peak_mib"] = mebibytes()
        return receipts(tasks, lengths)

    Stage.run = run_stage
    listed = run.list_inputs(config)
    object.__setattr__(listed, "splits", listed.splits * splits)
    with reporter(quiet=True) as progress:
        planned = run.plan(config, progress, None, listed)
        lengths = planned.rows.facts["length"]
        made = run._encode(config, planned, progress)
        run.finish(config, planned, made)
    answers.append({"stage": "finished", "cpu_seconds": time.process_time() - begin, "peak_mib": mebibytes()})
    for answer in answers:
        answer.update(rows=len(planned.rows), started_mib=base, cpu_seconds=round(answer["cpu_seconds"], 1))
    print(json.dumps(answers))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=os.environ.get("OMNIPREP_BENCH_MODEL"))
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not options.model:
        print("skipped: needs --model (OMNIPREP_BENCH_MODEL)")
        return
    if options.worker:
        worker(options.model, options.worker, options.rows // ROWS)
        return
    rows = []
    for size in (options.rows // 10, options.rows):
        with tempfile.TemporaryDirectory(prefix="omniprep-planner-") as name:
            command = [sys.executable, __file__, "--model", options.model, "--rows", str(size), "--worker", name]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        rows += json.loads(done.stdout.splitlines()[-1])
    record("planner", rows, goal_mib=2048)


if __name__ == "__main__":
    main()
