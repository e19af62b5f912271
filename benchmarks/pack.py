"""Packing log-normal lengths: time on one core, fill, memory; against next-fit, first-fit and windows of 1,000 rows.

The windowed rival is what ms-swift 3.9.3 does (binpacking.to_constant_volume on windows of 1,000 rows, the last bin
carried over), with `binpacking` where it is installed (pip install binpacking), else with best-fit-decreasing inside
each window.

    python benchmarks/pack.py [--rows 1000000] [--bin-length 8192] [--large]
"""

import argparse
import resource
import time
from collections.abc import Callable

import numba
import numpy as np
from record import record

from omniprep.packing import pack

try:
    from binpacking import to_constant_volume
except ImportError:
    to_constant_volume = None


def next_fit(lengths: np.ndarray, bin_length: int) -> np.ndarray:
    bins, number, used = np.empty(len(lengths), np.int64), 0, 0
    for row, length in enumerate(lengths.tolist()):
        if used + length > bin_length:
            number, used = number + 1, 0
        bins[row] = number
        used += length
    return bins


@numba.njit(cache=True)
def _first_fit(lengths: np.ndarray, bin_length: int) -> np.ndarray:
    """A tree of the room that is left finds the first bin with enough of it."""
    leaves = 1
    while leaves < len(lengths):
        leaves *= 2
    room = np.full(2 * leaves, bin_length, np.int64)
    bins = np.empty(len(lengths), np.int64)
    for row in range(len(lengths)):
        node = 1
        while node < leaves:
            node = 2 * node if room[2 * node] >= lengths[row] else 2 * node + 1
        bins[row] = node - leaves
        room[node] -= lengths[row]
        while node > 1:
            node //= 2
            room[node] = max(room[2 * node], room[2 * node + 1])
    return bins


def first_fit(lengths: np.ndarray, bin_length: int) -> np.ndarray:
    return _first_fit(lengths, bin_length)


def first_fit_decreasing(lengths: np.ndarray, bin_length: int) -> np.ndarray:
    order = np.argsort(-lengths, kind="stable")
    bins = np.empty(len(lengths), np.int64)
    bins[order] = _first_fit(lengths[order], bin_length)
    return bins


def windows(lengths: np.ndarray, bin_length: int, window: int = 1000) -> np.ndarray:
    bins, number = np.empty(len(lengths), np.int64), 0
    carried: list[tuple[int, int]] = []
    for first in range(0, len(lengths), window):
        part = carried + [(row, int(lengths[row])) for row in range(first, min(first + window, len(lengths)))]
        groups = _window(part, bin_length)
        last = first + window >= len(lengths)
        carried = [] if last else groups.pop()
        for group in groups:
            for row, _ in group:
                bins[row] = number
            number += 1
    return bins


def _window(part: list[tuple[int, int]], bin_length: int) -> list[list[tuple[int, int]]]:
    if to_constant_volume is not None:
        groups: list[list[tuple[int, int]]] = to_constant_volume(part, bin_length, weight_pos=1)
        return groups
    numbers = pack(np.array([length for _, length in part]), bin_length)
    found: list[list[tuple[int, int]]] = [[] for _ in range(int(numbers.max()) + 1)]
    for number, row in zip(numbers.tolist(), part, strict=True):
        found[number].append(row)
    return found


def measure(name: str, method: Callable[[np.ndarray, int], np.ndarray], lengths: np.ndarray, bin_length: int) -> dict:
    begin = time.process_time()
    bins = method(lengths, bin_length)
    seconds = time.process_time() - begin
    loads = np.bincount(bins, weights=lengths)
    assert loads.max() <= bin_length
    return {
        "method": name,
        "rows": len(lengths),
        "seconds": round(seconds, 3),
        "rows_per_second": round(len(lengths) / seconds),
        "bins": len(loads),
        "fill": round(float(lengths.sum() / (len(loads) * bin_length)), 6),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
    }


def log_normal(n: int, bin_length: int) -> np.ndarray:
    return np.clip(np.exp(np.random.default_rng(0).normal(6, 1, n)).astype(np.int64), 8, bin_length)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--bin-length", type=int, default=8192)
    parser.add_argument("--large", action="store_true", help="also 10 times as many rows (peak_mib counts the process)")
    options = parser.parse_args()
    lengths = log_normal(options.rows, options.bin_length)
    first_fit(lengths[:10], options.bin_length)  # compiled apart
    rival = "binpacking" if to_constant_volume else "best-fit"
    rows = [
        measure("omniprep.pack", lambda a, b: pack(a, b, seed=1), lengths, options.bin_length),
        measure("next-fit", next_fit, lengths, options.bin_length),
        measure("first-fit", first_fit, lengths, options.bin_length),
        measure("first-fit, longest first", first_fit_decreasing, lengths, options.bin_length),
        measure(f"windows of 1000 ({rival})", windows, lengths, options.bin_length),
    ]
    if options.large:
        lengths = log_normal(options.rows * 10, options.bin_length)
        rows.append(measure("omniprep.pack", lambda a, b: pack(a, b, seed=1), lengths, options.bin_length))
    record("pack", rows, bin_length=options.bin_length)


if __name__ == "__main__":
    main()
