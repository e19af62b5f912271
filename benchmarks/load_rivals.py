"""Loading the same bins from MosaicML Streaming, LitData, WebDataset and Energon, against omniprep, in turns.

Each holds the bins of benchmarks/load.py as it likes best (bytes of each array; MDS shards, LitData chunks, tar files),
uncompressed, on the local disk, read in order from the page cache to contiguous tensors that may be written to. The
first pass is told apart: buffers are made in it, and maps touched for the first time. The libraries run in an
environment of their own: benchmarks/rival_loaders.py says how to make it.

    OMNIPREP_RIVALS_PYTHON=RIVALS/bin/python python benchmarks/load_rivals.py [--bins 12] [--rounds 3] [--megabytes 20]
"""

import argparse
import os
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import torch
from load import write_dataset
from record import record
from rival_loaders import Rivals

from omniprep.data import PackedDataset, stack


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bins", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--megabytes", type=float, default=20)
    parser.add_argument("--rivals", default=os.environ.get("OMNIPREP_RIVALS_PYTHON"), help="their Python")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="omniprep-rivals-") as name:
        folder = Path(name)
        write_dataset(folder / "out", options.bins, options.megabytes)
        ds = PackedDataset(folder / "out", verify="never")
        volume = int(ds.index["length"].sum())
        arrays = [k for k, v in ds[0].items() if isinstance(v, np.ndarray)]
        bins = [{k: ds[i][k].tobytes() for k in arrays} for i in range(len(ds))]
        rivals = Rivals(options.rivals, "bins", bins, folder / "rivals")
        seconds: dict[str, list[float]] = {label: [] for label in ("omniprep", *rivals.labels)}
        try:
            for _ in range(options.rounds + 1):
                begin = time.process_time()
                for number in range(len(ds)):
                    stack([ds[number]])
                seconds["omniprep"].append(time.process_time() - begin)
                for label in rivals.labels:
                    seconds[label].append(rivals.seconds(label))
        finally:
            rivals.close()
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
