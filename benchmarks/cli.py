"""Small things users feel: `omniprep --help` (the goal is 0.4 s), small commands, the first batch of a large dataset.

Plans and builds are of the 40-odd rows of data_samples with `--workers auto`, imports and report included, as whole
commands. The dataset has 10,000 shards of 50 bins, and its first batch comes through a DataLoader that shuffles (the
goal is 3 s), in a process of its own; what that takes to import is told apart. `import omniprep.data` must load neither
transformers nor Ray.

    python benchmarks/cli.py [--model CHECKPOINT] [--rounds 7]
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
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
FIRST = """
import json, sys, time
begin = time.process_time()
from torch.utils.data import DataLoader
from omniprep.data import BinSampler, PackedDataset, stack
imported = time.process_time()
dataset = PackedDataset(sys.argv[1])
sampler = BinSampler(len(dataset), seed=0, costs=dataset.costs)
next(iter(DataLoader(dataset, sampler=sampler, collate_fn=stack)))
print(json.dumps([imported - begin, time.process_time() - imported, len(dataset)]))
"""
SHARDS, BINS = 10_000, 50
SAMPLES = Path(__file__).resolve().parent.parent / "data_samples"
LEFT_OUT = "import sys, omniprep.data; sys.exit(any(name in sys.modules for name in ('transformers', 'ray')))"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=os.environ.get("OMNIPREP_BENCH_MODEL"))
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    seconds: dict[str, list[float]] = {}
    for turn in range(options.rounds + 1):
        for name, command in PROGRAMS.items():
            cpu = _children()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            if turn:
                seconds.setdefault(name, []).append(_children() - cpu)
    subprocess.run([sys.executable, "-c", LEFT_OUT], check=True)
    rows = [timing(name, times, None if "python" in name else 0.4) for name, times in seconds.items()]
    rows += first_batch()
    if options.model:
        rows += whole_commands(options.model, options.rounds)
    record("cli", rows, import_of_data_loads_transformers_or_ray=False)


def whole_commands(model: str, rounds: int) -> list[dict[str, Any]]:
    """Commands on a few rows, imports and report included, with the cache of the user's first command and without."""
    samples = {path.stem: str(path) for path in sorted(SAMPLES.glob("*.json*")) if path.stem != "broken"}
    pictures = [samples[name] for name in ("text", "images", "grounding")]
    options = ["--model", model, "--bin-length", "4096"]
    rows = []
    with tempfile.TemporaryDirectory(prefix="omniprep-whole-") as folder:
        out, again = f"{folder}/out", ["--overwrite", "--out", f"{folder}/out"]
        commands: list[tuple[str, list[str], float | None]] = [
            ("plan of 15 rows, first command with a checkpoint", ["plan", samples["text"], *options], None),
            ("plan of 15 rows", ["plan", samples["text"], *options], 1.5),
            ("build of 28 rows of text and pictures", ["build", *pictures, *options, *again], 4.0),
            ("build of 39 rows, sounds and videos too", ["build", *samples.values(), *options, *again], 4.0),
            ("inspect of them", ["inspect", out], 1.5),
        ]
        for number, (name, command, goal) in enumerate(commands):
            times = []
            for turn in range(rounds + 1):
                cache, cpu = f"{folder}/cache-{turn}" if number == 0 else f"{folder}/cache", _children()
                subprocess.run(
                    [sys.executable, "-m", "omniprep", *command],
                    check=True, capture_output=True, env={**os.environ, "XDG_CACHE_HOME": cache},
                )  # fmt: skip
                times.append(_children() - cpu)
            rows.append(timing(name, times[1:], goal))  # the first of each fills the cache
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
    return [
        timing("imports of a loader", [answer[0] for answer in answers]),
        timing(f"first batch of {SHARDS:,} shards after them", [answer[1] for answer in answers], 3.0),
    ]


def run(program: str, *arguments: str) -> list[float]:
    """What a program prints last."""
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    answer: list[float] = json.loads(done.stdout.splitlines()[-1])
    return answer


def timing(command: str, times: list[float], goal: float | None = None) -> dict[str, Any]:
    """The CPU time of all processes of a command; on a machine that others use, wall time would be theirs too."""
    spread = f"{min(times):.2f} to {max(times):.2f}"
    return {"command": command, "cpu_seconds": round(median(times), 3), "spread": spread, "goal": goal}


def _children() -> float:
    times = os.times()
    return times.children_user + times.children_system


if __name__ == "__main__":
    main()
