"""Cost against rows: text rows from 1,000 to 1,000,000, each size in a process of its own; CPU time, peak memory.

The whole build runs in one process here, so its memory bounds that of the driver (which holds numbers only, some 115
bytes a row) and of a worker together. `estimate` reckons 100,000,000 rows on 64 nodes of 32 cores from the CPU time and
bytes of the largest size measured; requests are counted from what a task does on an object store.

    python benchmarks/scale.py --model CHECKPOINT [--most 1000000]
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
from record import leave_out_report, record

from omniprep.compiler.plan.split_task import CHUNK_ROWS
from omniprep.rows.sources import SPLIT_BYTES

WORDS = [
    "the",
    "of",
    "light",
    "and",
    "a",
    "small",
    "house",
    "with",
    "green",
    "doors",
    "is",
    "near",
    "some",
    "water",
    "where",
    "birds",
    "sing",
    "in",
    "spring",
]


def corpus(path: Path, rows: int) -> None:
    rng = np.random.default_rng(0)
    lengths = np.clip(np.exp(rng.normal(4.5, 0.8, rows)), 5, 3000).astype(int)
    text = " ".join(rng.choice(WORDS, 4000).tolist())
    with path.open("w") as file:
        for i, length in enumerate(lengths.tolist()):
            start = (37 * i) % 500
            answer = text[start : start + 5 * length]
            question = {"role": "user", "content": f"Question {i}?"}
            file.write(json.dumps({"messages": [question, {"role": "assistant", "content": answer}]}) + "\n")


def worker(model: str, path: str) -> None:
    from omniprep.bars import reporter
    from omniprep.compiler import build as run
    from omniprep.config import BuildConfig

    leave_out_report()
    warm = Path(path).with_name("warm.jsonl")
    corpus(warm, 10)

    def build(source: str, out: str) -> dict:
        config = BuildConfig(inputs=(source,), model=model, bin_length=8192, out=f"{path}.{out}", workers=0)
        with reporter(quiet=True) as progress:
            return run.build(config, progress)

    build(str(warm), "warm")
    base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    begin = time.process_time()
    manifest = build(path, "out")
    seconds = time.process_time() - begin
    print(
        json.dumps(
            {
                "rows": manifest["counts"]["rows"]["read"],
                "tokens": manifest["counts"]["tokens"],
                "cpu_seconds": round(seconds, 2),
                "microseconds_a_row": round(seconds / manifest["counts"]["rows"]["read"] * 1e6, 1),
                "input_bytes_a_row": round(Path(path).stat().st_size / manifest["counts"]["rows"]["read"], 1),
                "shard_bytes_a_row": round(
                    sum(shard["bytes"] for shard in manifest["shards"]) / manifest["counts"]["rows"]["read"], 1
                ),
                "tokens_per_second": round(manifest["counts"]["tokens"] / seconds),
                "fill": round(manifest["fill"], 5),
                "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
                "started_mib": base,
            }
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=os.environ.get("OMNIPREP_BENCH_MODEL"))
    parser.add_argument("--most", type=int, default=1_000_000)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not options.model:
        print("skipped: needs --model (OMNIPREP_BENCH_MODEL)")
        return
    if options.worker:
        worker(options.model, options.worker)
        return
    rows = []
    for size in (1_000, 10_000, 100_000, 1_000_000):
        if size > options.most:
            break
        with tempfile.TemporaryDirectory(prefix="omniprep-scale-") as name:
            path = Path(name) / "rows.jsonl"
            corpus(path, size)
            command = [sys.executable, __file__, "--model", options.model, "--worker", str(path)]
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
            rows.append(json.loads(done.stdout.splitlines()[-1]))
    each = rows[-1]["microseconds_a_row"] * 1e-6
    cores = 64 * 32
    splits, shards = 1e8 * rows[-1]["input_bytes_a_row"] / SPLIT_BYTES, 1e8 * rows[-1]["shard_bytes_a_row"] / 2**29
    estimate = {
        "rows": 100_000_000,
        "cores": cores,
        "worker_hours": round(1e8 * each / 3600, 1),
        "minutes_on_all_cores": round(1e8 * each / cores / 60, 2),
        "minutes_of_packing_on_one_core": round(1e8 * 0.7e-6 / 60, 1),
        "terabytes_of_input": round(1e8 * rows[-1]["input_bytes_a_row"] / 1e12, 3),
        "terabytes_of_shards": round(1e8 * rows[-1]["shard_bytes_a_row"] / 1e12, 3),
        "gibibytes_of_driver": round(1e8 * 115 / 2**30, 1),
        "splits": round(splits),
        "shards": round(shards),
        # A split: read its range, put plan and receipt, look for the receipt, read the facts for packing. A shard: look
        # for the receipt, put shard (parts of 64 MiB, begun and ended) and receipt. A chunk of the plan (256 rows) is
        # read by the shards of its window: about twice, since a shard is cut from one window or two.
        "requests": round(5 * splits + (3 + 2**29 / 2**26 + 1) * shards + 2 * 1e8 / CHUNK_ROWS),
    }
    record("scale", rows, estimate=estimate)
    print(json.dumps(estimate, indent=1))


if __name__ == "__main__":
    main()
