"""Share of a training step spent waiting for data: packed shards against encoding on the fly with ms-swift.

Both sides feed bins of the same length, from the same rows, through a DataLoader with the same number of workers, to a
step that takes a given time (a sleep: on a training machine the GPU computes and the CPUs are free for the workers).
The wait is the time from asking for a batch to having it. ms-swift's side encodes rows in its workers, as it does for
multimodal data in every epoch, and joins them until a bin is full; it runs in an environment of its own.

    python benchmarks/train_wait.py --model MODEL [--ms-swift PYTHON] [--step 0.25]
    [--data FOLDER] [--workers 1]
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

ROWS = {"text": 60, "image": 30, "audio": 8, "video": 2}
SWIFT_SIDE = """
import json, os, sys, time
os.environ["HF_HUB_OFFLINE"] = "1"
model, rows, bin_length, workers, step, bins = sys.argv[1], sys.argv[2], *map(float, sys.argv[3:])
import torch
from torch.utils.data import DataLoader
from swift.llm import get_model_tokenizer, get_template
torch.set_num_threads(1)
_, processor = get_model_tokenizer(model, model_type="qwen2_5_omni", load_model=False)
template = get_template("qwen2_5_omni", processor, max_length=1 << 17, truncation_strategy="raise")
template.set_mode("train")
template.packing = template.padding_free = True
os.chdir(os.path.dirname(rows))
data = [json.loads(line) for line in open(rows)]
def encode(row):
    try:
        return template.encode(row, return_length=True)
    except Exception:  # as its dataset does with a broken file: the next row
        return {"length": 0}
loader = iter(DataLoader(data * 1000, batch_size=None, num_workers=int(workers), prefetch_factor=10, collate_fn=encode))
waits = []
for _ in range(int(bins) + 2):
    begin, tokens = time.perf_counter(), 0
    while tokens < 0.9 * bin_length:
        tokens += next(loader)["length"]
    waits.append(time.perf_counter() - begin)
    time.sleep(step)
print("WAITS " + json.dumps(waits[2:]))
"""


def packed_waits(built: Path, workers: int, step: float, bins: int) -> list[float]:
    """Seconds waited for each bin of a built dataset."""
    from torch import device

    from omniprep.data import PackedDataset
    from omniprep.train.batches import Batcher, BatchLoader, Bins, make_loader
    from omniprep.train.stream import BinStream, Mixture

    dataset = PackedDataset(str(built))
    stream = BinStream(Mixture(sizes=[len(dataset)]), total=1 << 40, start=0, steps=bins + 2)
    loader = make_loader(Bins([dataset]), stream, Batcher(dataset.layout.modalities), workers, pin=False)
    batches = BatchLoader(loader, bins + 2, device("cpu"))
    waits, before = [], 0.0
    for _ in batches:
        waits.append(batches.waited - before)
        before = batches.waited
        time.sleep(step)
    return waits[2:]


def swift_waits(
    python: Path, model: Path, rows: Path, length: int, workers: int, step: float, bins: int
) -> list[float]:
    """The same for ms-swift, in its own environment."""
    command = [str(python), "-c", SWIFT_SIDE, str(model), str(rows), str(length), str(workers), str(step), str(bins)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"ms-swift failed:\n{done.stderr[-2000:]}")
    out = done.stdout
    line = next(line for line in out.splitlines() if line.startswith("WAITS "))
    waits: list[float] = json.loads(line[6:])
    return waits


def main() -> None:
    """Build, measure both, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=os.environ.get("OMNIPREP_BENCH_MODEL"))
    parser.add_argument("--data", type=Path, default=os.environ.get("OMNIPREP_BENCH_DATA"))
    parser.add_argument("--ms-swift", type=Path, default=Path(os.environ.get("OMNIPREP_SWIFT_PYTHON", "")))
    parser.add_argument("--step", type=float, default=0.25, help="seconds a step computes")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--bin-length", type=int, default=4096)
    parser.add_argument("--bins", type=int, default=12)
    options = parser.parse_args()
    if not options.model:
        print("skipped: needs --model (OMNIPREP_BENCH_MODEL)")
        return
    from corpus import make
    from record import record

    with tempfile.TemporaryDirectory(prefix="omniprep-wait-") as name:
        folder = Path(name)
        lines = [text for path in make(folder, ROWS, options.data).values() for text in path.read_text().splitlines()]
        rows = folder / "mixed.jsonl"
        import random

        random.Random(0).shuffle(lines)
        rows.write_text("\n".join(lines) + "\n")
        exe = [sys.executable, "-m", "omniprep", "build", str(rows), "--model", str(options.model)]
        build = [*exe, "--bin-length", str(options.bin_length), "--workers", "0", "--out", str(folder / "out")]
        subprocess.run(build, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
        ours = packed_waits(folder / "out", options.workers, options.step, options.bins)
        found = {"omniprep": ours}
        if options.ms_swift.exists():
            theirs = swift_waits(
                options.ms_swift,
                Path(options.model).resolve(),
                rows,
                options.bin_length,
                options.workers,
                options.step,
                options.bins,
            )
            found = {"ms-swift, encoding on the fly": theirs} | found
    table = [
        {
            "side": side,
            "wait_ms_median": round(median(waits) * 1e3, 2),
            "wait_ms_mean": round(sum(waits) / len(waits) * 1e3, 2),
            "share_of_step_waiting": round(sum(waits) / (sum(waits) + options.step * len(waits)), 4),
        }
        for side, waits in found.items()
    ]
    record(
        "train_wait",
        table,
        step_seconds=options.step,
        workers=options.workers,
        bin_length=options.bin_length,
        bins=options.bins,
    )


if __name__ == "__main__":
    main()
