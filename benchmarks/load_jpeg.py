"""Photographs loaded by libraries that hold the JPEG files and decode them, as their users do, and by omniprep.

The libraries' side decodes with Pillow and resizes to the size that the model sees; it makes no patches, ids or
labels, which omniprep's side holds too. CPU time of all threads, all in turns, after a first pass that warms all. What
is not installed is left out: pip install omniprep[bench].

    python benchmarks/load_jpeg.py --model CHECKPOINT [--data FOLDER] [--rounds 3]
"""

import argparse
import io
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

import numpy as np
import torch
from corpus import make
from load import CODEC_ROWS, build_codecs
from PIL import Image
from record import record

from omniprep.data import stack
from omniprep.families.qwen.vision import Limits, image_size

Method = Callable[[], Iterator[object]]


def decoded(data: bytes) -> torch.Tensor:
    """A JPEG's bytes as the model's size of pixels, uint8 (height, width, 3)."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    height, width = image_size(image.height, image.width, Limits())
    return torch.from_numpy(np.array(image.resize((width, height), Image.Resampling.BICUBIC)))


def mosaicml(files: list[bytes], folder: Path) -> Method:
    from streaming import MDSWriter, StreamingDataset

    with MDSWriter(out=str(folder), columns={"image": "bytes"}) as writer:
        for data in files:
            writer.write({"image": data})
    ds = StreamingDataset(local=str(folder), shuffle=False, batch_size=1)
    return lambda: (decoded(ds[number]["image"]) for number in range(len(ds)))


def litdata(files: list[bytes], folder: Path) -> Method:
    from litdata.streaming import StreamingDataset
    from litdata.streaming.cache import Cache

    cache = Cache(str(folder), chunk_bytes=1 << 26)
    for number, data in enumerate(files):
        cache[number] = {"image": data}
    cache.done()
    cache.merge()
    ds = StreamingDataset(str(folder), shuffle=False)
    return lambda: (decoded(ds[number]["image"]) for number in range(len(files)))


def webdataset(files: list[bytes], folder: Path) -> Method:
    import webdataset as wds

    folder.mkdir()
    path = folder / "photographs.tar"
    with wds.TarWriter(str(path)) as writer:
        for number, data in enumerate(files):
            writer.write({"__key__": f"{number:06d}", "jpg": data})
    ds = wds.WebDataset(str(path), shardshuffle=False)
    return lambda: (decoded(item["jpg"]) for item in ds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=os.environ.get("OMNIPREP_BENCH_MODEL"))
    parser.add_argument("--data", type=Path, default=os.environ.get("OMNIPREP_BENCH_DATA"))
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    if not options.model:
        print("skipped: needs --model (OMNIPREP_BENCH_MODEL)")
        return
    torch.set_num_threads(1)
    os.environ.setdefault("RANK", "0")
    with tempfile.TemporaryDirectory(prefix="omniprep-jpeg-") as name:
        folder = Path(name)
        path = make(folder / "corpus", {"image": CODEC_ROWS}, options.data)["image"]
        files = [file.read_bytes() for file in sorted((path.parent / "media").glob("*.jpg"))]
        ways: dict[str, Method] = {}
        for codec, ds in build_codecs(options.model, path, folder, ("delta", "source")).items():
            ways[f"omniprep, {codec}"] = lambda ds=ds: (stack([ds[number]]) for number in range(len(ds)))
        for label, make_way in (("MosaicML Streaming", mosaicml), ("LitData", litdata), ("WebDataset", webdataset)):
            try:
                ways[f"{label}, JPEG decoded"] = make_way(files, folder / make_way.__name__)
            except ImportError as error:
                print(f"{label}: left out ({error})")
        seconds: dict[str, list[float]] = {label: [] for label in ways}
        for turn in range(options.rounds + 1):
            for label, way in ways.items():
                begin = time.process_time()
                for _ in way():
                    pass
                if turn:
                    seconds[label].append(time.process_time() - begin)
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
