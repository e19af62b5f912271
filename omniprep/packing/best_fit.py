"""Global best-fit-decreasing packing of row lengths into bins of one length.

Lengths are integers, so bins with the same space left are interchangeable: open bins are kept by their space left, and
rows of equal length are packed together. One step packs many rows: c rows of length l go to the bins with the least
space r >= l, r // l rows into each, which is exactly what packing them one by one would do. "The least space >= l" is a
search in a bitmap of two levels. There are at most n steps, and never more than (distinct lengths) x (distinct spaces):
1,000,000 rows take about a second on one core, 10,000,000 about ten, in 60 bytes a row. Log-normal lengths fill bins to
99.9 % and better.

The seed decides ties: rows of equal length are taken in a seeded order, and the bins are numbered by a seeded
permutation, so that bins with neighboring numbers have nothing in common.
"""

import numpy as np

from omniprep.packing.order import permutation

_WORD = 512  # bits of one word of the bitmap: Python integers of this size still cost about 50 ns an operation


def pack(
    lengths: np.ndarray,
    bin_length: int,
    seed: int = 0,
    costs: np.ndarray | None = None,
    cost_limits: np.ndarray | None = None,
) -> np.ndarray:
    """Bin number of each row: no bin holds more than `bin_length` tokens, and there are few bins.

    A pure function: the same result on every machine, whatever the version of numpy.

    Args:
        lengths: Tokens of each row, integers from 1 to bin_length, (n,).
        bin_length: Tokens a bin holds.
        seed: Seed of ties and of the numbering of the bins.
        costs: Other sizes of each row, not negative, (n, k): say vision patches and audio frames. Used with
            `cost_limits` only.
        cost_limits: Most of each cost in one bin, (k,). A row that exceeds one alone shares its bin only with rows
            without any cost.

    Returns:
        int64 (n,), numbers from 0 without gaps.

    Raises:
        ValueError: A row is longer than the bin or has no token (the first one is named), or shapes do not fit.
    """
    sizes = np.ascontiguousarray(lengths, np.int64)
    if sizes.ndim != 1 or bin_length < 1:
        raise ValueError(f"lengths must be one-dimensional and bin_length positive, got {sizes.shape} and {bin_length}")
    if len(sizes) == 0:
        return np.zeros(0, np.int64)
    for bad, what in ((sizes > bin_length, f"more than the {bin_length} of a bin"), (sizes < 1, "which is no row")):
        if bad.any():
            row = int(bad.argmax())
            raise ValueError(f"row {row} has {sizes[row]} tokens, {what}")
    if costs is None or cost_limits is None:
        bins = _best_fit(sizes, bin_length, np.zeros(0, np.int64), seed)
    else:
        bins = _pack_limited(sizes, bin_length, seed, np.asarray(costs), np.asarray(cost_limits))
    return permutation(int(bins.max()) + 1, seed, 2)[bins]


def _pack_limited(sizes: np.ndarray, bin_length: int, seed: int, costs: np.ndarray, limits: np.ndarray) -> np.ndarray:
    """`pack` under limits, by three passes of the packing without.

    Call a row heavy when it uses a larger share of a limit than of the bin's tokens. Rows that are not heavy can
    share any bin: when their tokens fit, so do their costs. So heavy rows go first, each as if it were as long as its
    largest share; then light rows into what is left of tokens and limits; then rows without any cost into what is
    left of tokens.
    """
    if costs.ndim != 2 or costs.shape != (len(sizes), len(limits)) or (costs < 0).any() or (limits < 1).any():
        raise ValueError(f"costs {costs.shape} must be (rows, limits), not negative, and limits positive")
    costs, limits = np.ceil(costs).astype(np.int64), np.floor(limits).astype(np.int64)
    # The largest share of a limit that each row uses, in tokens of the bin, rounded up.
    shares = (-(-costs * bin_length // limits)).max(axis=1, initial=0)
    free = np.logical_not(costs.any(axis=1))
    heavy = shares > sizes
    bins = np.zeros(len(sizes), np.int64)
    used = np.zeros((0, len(limits) + 1), np.int64)
    weights = np.column_stack([sizes, costs])
    for rows in (np.flatnonzero(heavy), np.flatnonzero(~heavy & ~free), np.flatnonzero(free)):
        if len(rows) == 0:
            continue
        as_long = np.clip(np.maximum(sizes[rows], shares[rows]), 1, bin_length)
        space = bin_length - used[:, 0]
        if not free[rows[0]] and len(used):
            left = np.maximum(limits - used[:, 1:], 0) * bin_length // limits
            space = np.minimum(space, left.min(axis=1))
        bins[rows] = chosen = _best_fit(as_long, bin_length, space, seed)
        grown = np.zeros((max(len(used), int(chosen.max()) + 1), used.shape[1]), np.int64)
        grown[: len(used)] = used
        np.add.at(grown, chosen, weights[rows])
        used = grown
    return bins


def _best_fit(sizes: np.ndarray, bin_length: int, space: np.ndarray, seed: int) -> np.ndarray:
    """Best-fit-decreasing into open bins, `space[b]` tokens left in bin b, and then into new ones."""
    order = permutation(len(sizes), seed, 0)
    falling = sizes[order]
    np.negative(falling, out=falling)
    order = order[np.argsort(falling, kind="stable")]
    del falling
    values, counts = np.unique(sizes, return_counts=True)
    bins = np.empty(len(sizes), np.int64)
    bins[order] = _fill(values[::-1].tolist(), counts[::-1].tolist(), bin_length, space)
    return bins


def _fill(values: list[int], counts: list[int], bin_length: int, space: np.ndarray) -> np.ndarray:
    """Bins of the rows in falling order of length; `values` falls, `counts` says how many rows have each length."""
    smallest = values[-1]
    stacks: dict[int, list[int]] = {}  # space left -> open bins
    bitmap = _Bitmap(bin_length + 1)
    result: list[int] = []

    def keep_open(bins: list[int], left: int) -> None:
        if left < smallest or not bins:  # no row fits any more
            return
        if left in stacks:
            stacks[left] += bins
        else:
            stacks[left] = bins
            bitmap.add(left)

    for number in np.argsort(-space, kind="stable").tolist():
        keep_open([number], int(space[number]))
    opened = len(space)
    for value, count in zip(values, counts, strict=True):
        waiting = count
        while waiting:
            least = bitmap.first(value)
            if least < 0:  # no open bin has room: as many new ones as the rows of this length need
                least = bin_length
                need = -(-waiting // (bin_length // value))
                bins = list(range(opened, opened + need))
                opened += need
            else:
                stack = stacks[least]
                need = -(-waiting // (least // value))
                bins = stack[-need:]
                del stack[-need:]
                if not stack:
                    del stacks[least]
                    bitmap.remove(least)
            # Each of the bins takes as many rows as fit, but for the last one where the rows run out.
            each = least // value
            whole = min(len(bins), waiting // each)
            result += bins[:whole] * each
            waiting -= whole * each
            if whole < len(bins):
                result += bins[whole:] * waiting
                keep_open(bins[whole:], least - waiting * value)
                waiting = 0
            keep_open(bins[:whole], least - each * value)
    return np.array(result, np.int64)


class _Bitmap:
    """A set of integers below `size` that finds the least element from a number on, in constant time."""

    __slots__ = ("summary", "words")

    def __init__(self, size: int) -> None:
        self.words = [0] * (size // _WORD + 1)
        self.summary = 0  # bit i: words[i] is not zero

    def add(self, number: int) -> None:
        index, bit = divmod(number, _WORD)
        self.words[index] |= 1 << bit
        self.summary |= 1 << index

    def remove(self, number: int) -> None:
        index, bit = divmod(number, _WORD)
        self.words[index] ^= 1 << bit
        if not self.words[index]:
            self.summary ^= 1 << index

    def first(self, number: int) -> int:
        """The least element >= number, or -1."""
        index, bit = divmod(number, _WORD)
        word = self.words[index] >> bit
        if word:
            return number + (word & -word).bit_length() - 1
        later = self.summary >> (index + 1)
        if not later:
            return -1
        index += (later & -later).bit_length()
        word = self.words[index]
        return index * _WORD + (word & -word).bit_length() - 1
