"""Small things users feel: `omniprep --help` (the goal is 0.4 s), a small build, the first batch of a large dataset.

The build is of the 40-odd rows of data_samples with `--workers 0`, report included; the dataset has 10,000 shards of 50
bins, and its first batch comes through a DataLoader that shuffles (the goal is 3 s). Both in processes of their own;
what those take to import is told apart. `import omniprep.data` must load neither transformers nor Ray.

    python benchmarks/cli.py [--model CHECKPOINT] [--rounds 7]
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from load import write_dataset
from record import record

PROGRAMS = {
    "omniprep --help": [sys.executable, "-m", "omniprep", "--help"],
    "omniprep build --help": [sys.executable, "-m", "omniprep", "build", "--help"],
    "python -c pass": [sys.executable, "-c", "pass"],
}
BUILD = """
import json, sys, time
begin = time.perf_counter()
import torch, torchvision, transformers, librosa
from omniprep.compiler.build import build
from omniprep.config import BuildConfig
from omniprep.bars import reporter
imported = time.perf_counter()
with reporter(quiet=True) as progress:
    model, out, *inputs = sys.argv[1:]
    manifest = build(BuildConfig(inputs=tuple(inputs), model=model, bin_length=4096, out=out, workers=0), progress)
print(json.dumps([imported - begin, time.perf_counter() - imported, manifest["counts"]["rows"]["read"]]))
"""
FIRST = """
import json, sys, time
begin = time.perf_counter()
from torch.utils.data import DataLoader
from omniprep.data import BinSampler, PackedDataset, stack
imported = time.perf_counter()
dataset = PackedDataset(sys.argv[1])
sampler = BinSampler(len(dataset), seed=0, costs=dataset.costs)
next(iter(DataLoader(dataset, sampler=sampler, collate_fn=stack)))
print(json.dumps([imported - begin, time.perf_counter() - imported, len(dataset)]))
"""
SHARDS, BINS = 10_000, 50
SAMPLES = Path(__file__).resolve().parent.parent / "data_samples"
LEFT_OUT = "import sys, omniprep.data; sys.exit(any(name in sys.modules for name in ('transformers', 'ray')))"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=os.environ.get("OMNIPREP_BENCH_MODEL"))
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    seconds: dict[str, list[tuple[float, float]]] = {}
    for turn in range(options.rounds + 1):
        for name, command in PROGRAMS.items():
            begin = time.perf_counter()
            cpu = _children()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            if turn:
                seconds.setdefault(name, []).append((time.perf_counter() - begin, _children() - cpu))
    subprocess.run([sys.executable, "-c", LEFT_OUT], check=True)
    rows = [
        {
            "command": name,
            "seconds": round(median(wall for wall, _ in times), 3),
            "cpu_seconds": round(median(cpu for _, cpu in times), 3),
            "spread": f"{min(wall for wall, _ in times):.2f} to {max(wall for wall, _ in times):.2f}",
            "goal": 0.4,
        }
        for name, times in seconds.items()
    ]
    rows += first_batch()
    if options.model:
        rows += small_build(options.model)
        rows += whole_commands(options.model, options.rounds)
    record("cli", rows, import_of_data_loads_transformers_or_ray=False)


def small_build(model: str) -> list[dict[str, Any]]:
    inputs = [str(path) for path in sorted(SAMPLES.glob("*.json*")) if path.stem != "broken"]
    answers = []
    for _ in range(4):
        with tempfile.TemporaryDirectory(prefix="omniprep-cli-") as folder:
            answers.append(run(BUILD, model, f"{folder}/out", *inputs))
    what = f"build of {answers[0][2]} rows after them"
    return timed(("imports of a build", what), answers[1:])  # the first compiled the kernels, perhaps


def whole_commands(model: str, rounds: int) -> list[dict[str, Any]]:
    """`plan` of 6 rows and `build` of some 40, imports and report included, after a first run that fills the cache."""
    inputs = [str(path) for path in sorted(SAMPLES.glob("*.json*")) if path.stem != "broken"]
    rows = []
    with tempfile.TemporaryDirectory(prefix="omniprep-whole-") as folder:
        few = SAMPLES / "text.jsonl"
        plan = ["plan", str(few), "--model", model, "--bin-length", "4096"]
        build = ["build", *inputs, "--model", model, "--bin-length", "4096", "--overwrite", "--out", f"{folder}/out"]
        for name, command, goal in (("plan of text.jsonl", plan, 1.5), ("build of 40 rows, whole command", build, 4.0)):
            times = []
            for _ in range(rounds + 1):
                begin, cpu = time.perf_counter(), _children()
                subprocess.run([sys.executable, "-m", "omniprep", *command], check=True, capture_output=True)
                times.append((time.perf_counter() - begin, _children() - cpu))
            walls, cpus = zip(*times[1:], strict=True)
            spread = f"{min(walls):.2f} to {max(walls):.2f}"
            numbers = {"seconds": round(median(walls), 3), "cpu_seconds": round(median(cpus), 3)}
            rows.append({"command": name, **numbers, "spread": spread, "goal": goal})
    return rows


def first_batch() -> list[dict[str, Any]]:
    """One shard of 50 bins under 10,000 names."""
    import numpy as np
    import pyarrow.parquet as pq

    from omniprep.shards.index import INDEX_SCHEMA

    with tempfile.TemporaryDirectory(prefix="omniprep-first-") as name:
        folder = Path(name)
        write_dataset(folder, BINS, 0.2)
        table = pq.read_table(folder / "index.parquet")
        numbers = [np.repeat(np.arange(SHARDS, dtype=np.int32), BINS)]
        table = table.take(np.tile(np.arange(BINS), SHARDS)).set_column(0, INDEX_SCHEMA.field("shard"), numbers)
        pq.write_table(table, folder / "index.parquet")
        manifest = json.loads((folder / "manifest.json").read_text())
        shards = [{**manifest["shards"][0], "path": f"shards/{i:05d}.arrow"} for i in range(SHARDS)]
        for shard in shards[1:]:
            os.link(folder / "shards" / "00000.arrow", folder / shard["path"])
        (folder / "manifest.json").write_text(json.dumps({**manifest, "shards": shards}))
        answers = [run(FIRST, name) for _ in range(5)]
    return timed(("imports of a loader", f"first batch of {SHARDS:,} shards after them"), answers)


def run(program: str, *arguments: str) -> list[float]:
    """What a program prints last."""
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    answer: list[float] = json.loads(done.stdout.splitlines()[-1])
    return answer


def timed(names: tuple[str, str], answers: list[list[float]]) -> list[dict[str, Any]]:
    found = []
    for at, name in enumerate(names):
        times = [answer[at] for answer in answers]
        spread = f"{min(times):.2f} to {max(times):.2f}"
        found.append({"command": name, "seconds": round(median(times), 3), "spread": spread})
    return found


def _children() -> float:
    times = os.times()
    return times.children_user + times.children_system


if __name__ == "__main__":
    main()
