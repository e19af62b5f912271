"""Photographs loaded by libraries that hold the JPEG files and decode them, as their users do, and by omniprep.

The libraries' side decodes with Pillow and resizes to the size that the model sees; it makes no patches, ids or
labels, which omniprep's side holds too. CPU time of all threads, all in turns, after a first pass that warms all. The
libraries run in an environment of their own: benchmarks/rival_loaders.py says how to make it.

    OMNIPREP_RIVALS_PYTHON=RIVALS/bin/python python benchmarks/load_jpeg.py --model CHECKPOINT [--data FOLDER]
"""

import argparse
import io
import json
import os
import tempfile
import time
from pathlib import Path
from statistics import median

import torch
from corpus import make
from load import CODEC_ROWS, build_codecs
from PIL import Image
from record import record
from rival_loaders import SIZE, Item, Rivals

from omniprep.data import stack
from omniprep.families.qwen.vision import Limits, image_size


def item(data: bytes) -> Item:
    """A JPEG's bytes, and the size that the model sees."""
    with Image.open(io.BytesIO(data)) as image:
        height, width = image_size(image.height, image.width, Limits())
    return {"jpg": data, SIZE: json.dumps([width, height]).encode()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=os.environ.get("OMNIPREP_BENCH_MODEL"))
    parser.add_argument("--data", type=Path, default=os.environ.get("OMNIPREP_BENCH_DATA"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rivals", default=os.environ.get("OMNIPREP_RIVALS_PYTHON"), help="their Python")
    options = parser.parse_args()
    if not options.model:
        print("skipped: needs --model (OMNIPREP_BENCH_MODEL)")
        return
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="omniprep-jpeg-") as name:
        folder = Path(name)
        path = make(folder / "corpus", {"image": CODEC_ROWS}, options.data)["image"]
        files = [file.read_bytes() for file in sorted((path.parent / "media").glob("*.jpg"))]
        datasets, _ = build_codecs(options.model, path, folder, ("raw", "delta", "source", "webp"))
        rivals = Rivals(options.rivals, "jpeg", list(map(item, files)), folder / "rivals")
        seconds: dict[str, list[float]] = {}
        try:
            for turn in range(options.rounds + 1):
                for codec, ds in datasets.items():
                    begin = time.process_time()
                    for number in range(len(ds)):
                        stack([ds[number]])
                    if turn:
                        seconds.setdefault(f"omniprep, {codec}", []).append(time.process_time() - begin)
                for label in rivals.labels:
                    taken = rivals.seconds(label)
                    if turn:
                        seconds.setdefault(f"{label}, JPEG decoded", []).append(taken)
        finally:
            rivals.close()
    delta = median(seconds["omniprep, delta"])
    rows = [
        {
            "library": label,
            "photographs_per_cpu_second": round(len(files) / median(times), 1),
            "delta_is_faster": round(median(times) / delta, 2),
        }
        for label, times in seconds.items()
    ]
    record("load_jpeg", rows, photographs=len(files), rounds=options.rounds)


if __name__ == "__main__":
    main()
