"""Equal work for all ranks of a step: what a bin costs, and an order whose neighbors cost the same.

Bins hold equally many tokens but not equal work: a 32k row attends 32 times as much as 32 rows of 1k, and a bin of
images runs the vision tower. All ranks wait for the slowest, so the bins of one step should cost the same. The order
below sorts by cost, cuts the sorted bins into blocks of a power of two, and shuffles the blocks and the bins of each
block. Whatever 8, 16, 32 or 64 ranks take from it in one step lies inside one block. The order knows no number of
ranks, so a run may go on with another; a number that is no power of two, or an odd start, only makes some steps
straddle two blocks.

Where vision and audio towers train and their weights are shared out, ranks wait for each other within the towers and
within the language model: bins of one step should then have equal shares of both. Bins whose cost is about the same are
sorted by what the towers have of it.
"""

import numpy as np

from omniprep.packing.order import permutation

TIGHT = 1.05
"""A group whose dearest bin costs at most this times its cheapest may be in any order."""
JITTER = 0.01
"""Costs are blurred by half of this either way, so that blocks differ from epoch to epoch."""


def epoch_order(num_bins: int, seed: int, epoch: int, costs: np.ndarray | None = None) -> np.ndarray:
    """The order of an epoch, int64 (num_bins,): balanced where the costs of the bins are given, else random."""
    return permutation(num_bins, seed, epoch, 3) if costs is None else balanced_order(costs, seed, epoch)


def balanced_order(costs: np.ndarray, seed: int, epoch: int, tower_costs: np.ndarray | None = None) -> np.ndarray:
    """An order of bins in which the bins of one step cost about the same; another one each epoch.

    Args:
        costs: Work of each bin, positive, (n,).
        seed: Seed of the order.
        epoch: Another order for each epoch.
        tower_costs: The towers' part of `costs`, (n,), where it is to be balanced too.

    Returns:
        int64 (n,). The n % block bins that fill no block, chosen at random, come last, ordered likewise in smaller
        blocks.
    """
    costs = np.asarray(costs, np.float64)
    towers = None if tower_costs is None else np.asarray(tower_costs, np.float64)
    order = permutation(len(costs), seed, epoch, 4)
    parts = []
    while len(order):
        block = _block(len(order))
        whole = len(order) // block * block
        parts.append(_blocks_in_order(order[:whole].copy(), costs, towers, block, seed, epoch))
        order = order[whole:]
    return np.concatenate(parts) if parts else order


def _block(n: int) -> int:
    """Bins of a block: 64 (as many ranks as are balanced), more for many bins, less where there would be under four."""
    block = 64
    while block < 1024 and n >= 256 * block:
        block *= 2
    while block > 1 and n < 4 * block:
        block //= 2
    return block


def _blocks_in_order(
    bins: np.ndarray, costs: np.ndarray, towers: np.ndarray | None, block: int, seed: int, epoch: int
) -> np.ndarray:
    raw = np.random.PCG64(np.random.SeedSequence([seed, epoch, 5, len(bins)])).random_raw(2 * len(bins))
    # The upper 53 bits of each number, as a float in [0, 1).
    blur = 1 + JITTER * ((raw[: len(bins)] >> 11) * 2.0**-53 - 0.5)
    rising = np.argsort(costs[bins] * blur, kind="stable")
    if towers is not None:
        rising = _by_towers(rising, costs[bins], towers[bins] * blur, block)
    grid = bins[rising].reshape(-1, block)
    keys = _inner_keys(costs[grid], None if towers is None else towers[grid], raw[len(bins) :].reshape(grid.shape))
    inner = np.argsort(keys, axis=1, kind="stable")
    return np.take_along_axis(grid, inner, axis=1)[permutation(len(grid), seed, epoch, 6)].reshape(-1)


def _by_towers(rising: np.ndarray, costs: np.ndarray, towers: np.ndarray, block: int) -> np.ndarray:
    """Positions in rising order of cost, those of whole blocks whose costs are alike in rising order of the towers'."""
    ordered = rising.copy()
    highest = np.maximum.accumulate(costs[rising])
    start = 0
    while start < len(ordered):
        alike = int(np.searchsorted(highest, TIGHT * costs[rising[start : start + block]].min(), side="right")) - start
        end = start + max(alike // block, 1) * block
        if alike >= block:
            group = ordered[start:end]
            ordered[start:end] = group[np.argsort(towers[group], kind="stable")]
        start = end
    return ordered


def _inner_keys(costs: np.ndarray, towers: np.ndarray | None, raw: np.ndarray) -> np.ndarray:
    """Sort keys inside blocks of rising cost: a tight group is shuffled, any other becomes its two halves in a random
    order, and so on within the halves.

    So a run with fewer ranks than a block has bins finds bins of equal cost side by side, in blocks that are not tight
    too. With `towers` a group is tight only where their parts differ by as little of the cost.
    """
    blocks, width = costs.shape
    keys = raw >> np.uint64(11)
    tight = np.zeros(costs.shape, bool)
    columns = np.arange(width)
    bit = np.uint64(63)
    size = width
    while size > 1:
        groups = costs.reshape(blocks, -1, size)
        alike = groups.max(axis=2) <= TIGHT * groups.min(axis=2)
        if towers is not None:
            parts = towers.reshape(blocks, -1, size)
            alike &= parts.max(axis=2) - parts.min(axis=2) <= (TIGHT - 1) * groups.min(axis=2)
        tight |= np.repeat(alike, size, axis=1)
        swap = np.repeat(raw.reshape(blocks, -1, size)[:, :, 0] >> bit, size, axis=1)
        half = (columns // (size // 2) % 2).astype(np.uint64)
        keys |= np.where(tight, raw >> bit & np.uint64(1), (half ^ swap) & np.uint64(1)) << bit
        bit -= np.uint64(1)
        size //= 2
    return keys
