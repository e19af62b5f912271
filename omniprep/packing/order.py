"""Seeded orders: permutations that never change, and the order of the rows in each bin.

Permutations sort the raw stream of PCG64, which numpy promises to keep (the streams of `Generator` methods it may
change), so a seed means the same order on every machine and in every version. 10,000,000 elements: about 1.5 s.
"""

import numpy as np


def permutation(n: int, *key: int) -> np.ndarray:
    """A random order of 0..n-1, int64 (n,), that depends on n and the key alone.

    Args:
        n: How many.
        key: Whole numbers, not negative: a seed, and what the order is for (an epoch, a purpose).
    """
    raw = np.random.PCG64(np.random.SeedSequence(list(key))).random_raw(n)
    return np.argsort(raw, kind="stable").astype(np.int64, copy=False)


def rows_by_bin(bins: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """The rows of each bin, in a random order within the bin.

    Args:
        bins: Bin of each row, as `pack` returns it, (n,).
        seed: Seed of the order.

    Returns:
        Row numbers, bin after bin, int64 (n,); and the offset at which each bin begins, int64 (bins + 1,): bin b holds
        rows `order[offsets[b]:offsets[b + 1]]`, one after the other.
    """
    order = permutation(len(bins), seed, 1)
    order = order[np.argsort(bins[order], kind="stable")]
    counts = np.bincount(bins) if len(bins) else np.zeros(0, np.int64)
    return order, np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
