"""Loading the same bins from MosaicML Streaming, LitData and WebDataset, against omniprep, in one process, in turns.

Each holds the bins of benchmarks/load.py as it likes best (bytes of each array; MDS shards, LitData chunks, tar files),
uncompressed, on the local disk, read in order from the page cache to contiguous tensors that may be written to. The
first pass is told apart: buffers are made in it, and maps touched for the first time. What is not installed is left
out: pip install omniprep[bench].

    python benchmarks/load_rivals.py [--bins 12] [--rounds 3] [--megabytes 20]
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from load import write_dataset
from record import record

from omniprep.data import PackedDataset, stack

DTYPES = {"pixel_values": np.uint8}
Method = Callable[[], Iterator[object]]


def tensors(sample: dict[str, Any], names: list[str]) -> dict[str, torch.Tensor]:
    """Tensors that may be written to: these libraries hand out read-only bytes, so this copies."""
    return {name: torch.from_numpy(np.frombuffer(sample[name], DTYPES.get(name, np.int32)).copy()) for name in names}


def mosaicml(bins: list[dict[str, bytes]], folder: Path) -> Method:
    from streaming import MDSWriter, StreamingDataset

    names = list(bins[0])
    with MDSWriter(out=str(folder), columns=dict.fromkeys(names, "bytes"), size_limit=1 << 28) as writer:
        for item in bins:
            writer.write(item)
    ds = StreamingDataset(local=str(folder), shuffle=False, batch_size=1)
    return lambda: (tensors(ds[i], names) for i in range(len(ds)))


def webdataset(bins: list[dict[str, bytes]], folder: Path) -> Method:
    import webdataset as wds

    names = list(bins[0])
    folder.mkdir()
    path = folder / "bins.tar"
    with wds.TarWriter(str(path)) as writer:
        for number, item in enumerate(bins):
            writer.write({"__key__": f"{number:06d}", **item})
    ds = wds.WebDataset(str(path), shardshuffle=False)
    return lambda: (tensors(item, names) for item in ds)


def litdata(bins: list[dict[str, bytes]], folder: Path) -> Method:
    from litdata.streaming import StreamingDataset
    from litdata.streaming.cache import Cache

    names = list(bins[0])
    cache = Cache(str(folder), chunk_bytes=1 << 28)
    for number, item in enumerate(bins):
        cache[number] = item
    cache.done()
    cache.merge()
    ds = StreamingDataset(str(folder), shuffle=False)
    return lambda: (tensors(ds[i], names) for i in range(len(bins)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bins", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--megabytes", type=float, default=20)
    options = parser.parse_args()
    torch.set_num_threads(1)
    os.environ.setdefault("RANK", "0")
    with tempfile.TemporaryDirectory(prefix="omniprep-rivals-") as name:
        folder = Path(name)
        write_dataset(folder / "out", options.bins, options.megabytes)
        ds = PackedDataset(folder / "out", verify="never")
        volume = int(ds.index["length"].sum())
        arrays = [k for k, v in ds[0].items() if isinstance(v, np.ndarray)]
        bins = [{k: ds[i][k].tobytes() for k in arrays} for i in range(len(ds))]
        ways: dict[str, Method] = {"omniprep": lambda: (stack([ds[i]]) for i in range(len(ds)))}
        for label, make in (("MosaicML Streaming", mosaicml), ("LitData", litdata), ("WebDataset", webdataset)):
            try:
                ways[label] = make(bins, folder / make.__name__)
            except ImportError as error:
                print(f"{label}: left out ({error})")
        seconds: dict[str, list[float]] = {}
        for _ in range(options.rounds + 1):
            for label, method in ways.items():
                begin = time.process_time()
                count = sum(1 for _ in method())
                assert count == len(bins), (label, count)
                seconds.setdefault(label, []).append(time.process_time() - begin)
    later = {label: median(times[1:]) for label, times in seconds.items()}
    rows = [
        {
            "library": label,
            "first_pass_gb_per_cpu_second": round(volume / times[0] / 1e9, 2),
            "omniprep_is_faster": round(times[0] / seconds["omniprep"][0], 2),
            "later_gb_per_cpu_second": round(volume / later[label] / 1e9, 2),
            "omniprep_is_faster_later": round(later[label] / later["omniprep"], 2),
        }
        for label, times in seconds.items()
    ]
    record("load_rivals", rows, bins=options.bins, megabytes_a_bin=options.megabytes)


if __name__ == "__main__":
    main()
