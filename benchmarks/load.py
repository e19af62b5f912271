"""Loading bins of about 20 MB from the page cache to contiguous host tensors, against a plain copy of the same bytes.

All methods take turns in each round, so that they see the same machine; medians are reported. Tokens a second against
ms-swift's encode: benchmarks/build.py. With a checkpoint, photographs are built with each codec and loaded too: bytes
of pixels by CPU second of all threads.

    python benchmarks/load.py [--bins 16] [--rounds 5] [--megabytes 20] [--model CHECKPOINT] [--data FOLDER]
"""

import argparse
import mmap
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from statistics import median

import numpy as np
import pyarrow as pa
import torch
from corpus import make
from record import leave_out_report, load_kernels, record
from torch.utils.data import DataLoader

from omniprep.bars import reporter
from omniprep.compiler.build import build
from omniprep.config import BuildConfig
from omniprep.data import PackedDataset, stack
from omniprep.shards.schema import Bin, Column

sys.path.append(str(Path(__file__).parents[1] / "tests"))  # for the writer of hand-made bins
from synthetic import write_bins

PARAMS = {"mean": [0.5] * 3, "std": [0.5] * 3, "patch_size": 14, "temporal_patch_size": 2}
COLUMNS = (
    Column(name="image_grid_thw", modality="image", kind="items", shape=(3,)),
    Column(
        name="pixel_values",
        modality="image",
        kind="flat",
        dtype="uint8",
        shape=(588,),
        sizes="prod(image_grid_thw)",
        load="patches",
        params=PARAMS,
    ),
)


CODEC_ROWS = 36
"""Photographs that each codec holds."""


def write_dataset(folder: Path, bins: int, megabytes: float) -> None:
    """Bins of 8 rows with one image each; a quarter as many tokens as patches, and half as many again of text."""
    rng = np.random.default_rng(0)
    side = int((megabytes * 1e6 / 588 / 8) ** 0.5) // 2 * 2
    length = side * side // 4 * 3 // 2

    def made() -> Iterator[Bin]:
        for _ in range(bins):
            labels = rng.integers(0, 150_000, 8 * length, np.int32)
            labels[::length] = -100
            yield Bin(
                input_ids=rng.integers(0, 150_000, 8 * length, np.int32),
                labels=labels,
                position_ids=rng.integers(0, length, (3, 8 * length), np.int32),
                cu_seqlens=np.arange(0, 8 * length + 1, length, dtype=np.int32),
                row_ids=np.arange(8, dtype=np.int32),
                row_items=np.ones((8, 1), np.int32),
                media={
                    "image_grid_thw": [np.array([1, side, side])] * 8,
                    "pixel_values": [rng.integers(0, 256, (side * side, 588), np.uint8) for _ in range(8)],
                },
            )

    write_bins(folder, made(), COLUMNS, family="benchmark", modalities=("image",), bin_length=8 * length)


def methods(folder: Path) -> dict[str, Callable[[], Iterator[object]]]:
    """Each gives every bin once, one after the other."""
    ds = PackedDataset(folder, verify="never")
    checked = PackedDataset(folder, verify="always")
    path = folder / "shards" / "00000.arrow"
    places = [(int(o), int(n)) for o, n in zip(ds.index["offset"], ds.index["length"], strict=True)]
    source = [np.frombuffer(path.read_bytes()[o : o + n], np.uint8).copy() for o, n in places]
    target = np.zeros(max(n for _, n in places), np.uint8)
    file = os.open(path, os.O_RDONLY)
    mapped = mmap.mmap(file, 0, prot=mmap.PROT_READ)

    def copies() -> Iterator[object]:
        for array in source:
            np.copyto(target[: array.size], array)
            yield target

    def preads() -> Iterator[object]:
        for offset, size in places:
            os.preadv(file, [memoryview(target)[:size]], offset)
            yield target

    def maps() -> Iterator[object]:
        for offset, size in places:
            batch = pa.ipc.read_record_batch(
                pa.ipc.read_message(pa.py_buffer(mapped)[offset : offset + size]), ds.schema
            )
            yield {name: torch.tensor(np.frombuffer(array.buffers()[-1], np.uint8)) for name, array in _full(batch)}

    def loads(dataset: PackedDataset) -> Iterator[object]:
        for number in range(len(dataset)):
            yield stack([dataset[number]])

    loader = DataLoader(ds, collate_fn=stack, num_workers=1, prefetch_factor=2, persistent_workers=True)

    return {
        "plain copy into a used buffer": copies,
        "preadv into a used buffer": preads,
        "memory map and a fresh copy": maps,
        "omniprep, one bin": lambda: loads(ds),
        "omniprep, one bin, checksum": lambda: loads(checked),
        "omniprep, 1 DataLoader worker": lambda: iter(loader),
    }


def build_codecs(
    model: str, path: Path, folder: Path, names: Sequence[str]
) -> tuple[dict[str, PackedDataset], dict[str, float]]:
    """The rows of a file built with each codec, and the CPU seconds that each build took."""
    load_kernels()
    leave_out_report()
    datasets, seconds = {}, {}
    for turn, name in enumerate((names[0], *names)):  # the first build imports and warms up
        out = folder / (name if turn else "warm")
        options = BuildConfig(
            inputs=(str(path),), model=model, bin_length=8192, out=str(out), workers=0, pixel_codec=name
        )
        begin = time.process_time()
        with reporter(quiet=True) as progress:
            build(options, progress)
        seconds[name] = time.process_time() - begin
        datasets[name] = PackedDataset(out)
    return datasets, seconds


def codecs(model: str, data: Path | None, rounds: int, folder: Path) -> list[dict[str, object]]:
    """CPU time of loading the same photographs from each codec, on one thread, after a first pass that warms all."""
    path = make(folder / "corpus", {"image": CODEC_ROWS}, data)["image"]
    names = ("raw", "delta", "source", "webp", *(["jxl"] if find_spec("pillow_jxl") else []))
    datasets, built = build_codecs(model, path, folder, names)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    raw, tokens = datasets["raw"], 0
    pixels = sum(raw[number]["pixel_values"].nbytes for number in range(len(raw)))
    for turn in range(rounds + 1):
        for name, ds in datasets.items():
            begin = time.process_time()
            tokens = sum(stack([ds[number]])["input_ids"].numel() for number in range(len(ds)))
            if turn:
                seconds[name].append(time.process_time() - begin)
    stored = {name: sum(shard["bytes"] for shard in ds.manifest["shards"]) for name, ds in datasets.items()}
    slowest = median(seconds["webp"])
    return [
        {
            "codec": name,
            "bytes_a_token": round(stored[name] / tokens, 1),
            "gb_of_pixels_per_cpu_second": round(pixels / median(times) / 1e9, 3),
            "tokens_per_cpu_second": round(tokens / median(times)),
            "times_webp": round(slowest / median(times), 2),
            "built_tokens_per_cpu_second": round(tokens / built[name]),
        }
        for name, times in seconds.items()
    ]


def _full(batch: pa.RecordBatch) -> Iterator[tuple[str, pa.Array]]:
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        if not column.null_count:
            yield name, column.values if isinstance(column, pa.ListArray) else column


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bins", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--megabytes", type=float, default=20)
    parser.add_argument("--model", default=os.environ.get("OMNIPREP_BENCH_MODEL"))
    parser.add_argument("--data", type=Path, default=os.environ.get("OMNIPREP_BENCH_DATA"))
    parser.add_argument("--codecs-only", action="store_true", help="only what each codec takes")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.model:
        with tempfile.TemporaryDirectory(prefix="omniprep-codecs-") as name:
            record("load_codecs", codecs(options.model, options.data, options.rounds, Path(name)), threads=1)
    else:
        print("codecs skipped: needs --model (OMNIPREP_BENCH_MODEL)")
    if options.codecs_only:
        return
    with tempfile.TemporaryDirectory(prefix="omniprep-load-") as name:
        folder = Path(name) / "out"
        write_dataset(folder, options.bins, options.megabytes)
        ds = PackedDataset(folder)
        volume, tokens = int(ds.index["length"].sum()), int(ds.index["tokens"].sum())
        seconds: dict[str, list[float]] = {}
        ways = methods(folder)
        for turn in range(options.rounds + 1):
            for label, method in ways.items():
                begin = time.perf_counter()
                for _ in method():
                    pass
                if turn:  # the first round warms caches and buffers
                    seconds.setdefault(label, []).append(time.perf_counter() - begin)
    copy = median(seconds["plain copy into a used buffer"])
    rows = [
        {
            "method": label,
            "gb_per_second": round(volume / median(times) / 1e9, 2),
            "of_plain_copy": round(copy / median(times), 3),
            "tokens_per_second": round(tokens / median(times)),
        }
        for label, times in seconds.items()
    ]
    record("load", rows, bins=options.bins, megabytes_a_bin=round(volume / options.bins / 1e6, 1))


if __name__ == "__main__":
    main()
