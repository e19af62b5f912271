"""Equal work for all ranks of a step: what a bin costs, and an order whose neighbors cost the same.

Bins hold equally many tokens but not equal work: a 32k row attends 32 times as much as 32 rows of 1k, and a bin of
images runs the vision tower. All ranks wait for the slowest, so the bins of one step should cost the same. The order
below sorts by cost, cuts the sorted bins into blocks of a power of two, and shuffles the blocks and the bins of each
block. Whatever 8, 16, 32 or 64 ranks take from it in one step lies inside one block. The order knows no number of
ranks, so a run may go on with another; a number that is no power of two, or an odd start, only makes some steps
straddle two blocks.
"""

from dataclasses import dataclass

import numpy as np

from omniprep.packing.order import permutation

__all__ = ["CostModel", "balanced_order", "bin_cost"]

TIGHT = 1.05  # a group whose dearest bin costs at most this times its cheapest may be in any order
JITTER = 0.01  # costs are blurred by half of this either way, so that blocks differ from epoch to epoch


@dataclass(frozen=True, kw_only=True, slots=True)
class CostModel:
    """Work in units of one text token through the language model, forward and backward.

    The defaults are Qwen2.5-Omni-7B's thinker with a trained language model and frozen towers (forward only, a
    third), from its config: 28 layers of width 3584, 6.5 G parameters and the head make 14.1 GFLOP a token; causal
    attention 2*3584*28 FLOP a pair of tokens; the vision tower (32 layers of width 1280, 0.65 G parameters) 1.3 GFLOP
    a patch, with its windows of 64 patches; the audio tower (32 layers of width 1280, 0.64 G parameters, half a
    position a frame, chunks of 200 frames) 0.65 GFLOP a frame.
    """

    token: float = 1.0
    """Linear layers and head, for each token."""
    pair: float = 1.42e-5
    """Attention, for the square of each row's length."""
    patch: float = 0.031
    """Vision tower, for each patch (of 14 x 14 pixels, twice that in a video)."""
    audio_frame: float = 0.0155
    """Audio tower, for each frame of the spectrogram (10 ms)."""


def bin_cost(
    lengths: np.ndarray,
    bins: np.ndarray,
    patches: np.ndarray | None = None,
    audio_frames: np.ndarray | None = None,
    model: CostModel | None = None,
) -> np.ndarray:
    """Work of each bin.

    Args:
        lengths: Tokens of each row, (n,).
        bins: Bin of each row, (n,).
        patches: Vision patches of each row, (n,), or None for none.
        audio_frames: Spectrogram frames of each row, (n,), or None for none.
        model: What things cost (default: Qwen2.5-Omni-7B, towers frozen).

    Returns:
        float64 (bins,), in text tokens.
    """
    model = model or CostModel()
    tokens = np.asarray(lengths, np.float64)
    work = model.pair * tokens * tokens
    work = model.token * tokens + work
    del tokens
    for amount, price in ((patches, model.patch), (audio_frames, model.audio_frame)):
        if amount is not None:
            work += price * np.asarray(amount, np.float64)
    return np.bincount(np.asarray(bins, np.int64), weights=work)


def balanced_order(costs: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """An order of bins in which the bins of one step cost about the same; another one each epoch.

    Args:
        costs: Work of each bin, positive, (n,).
        seed: Seed of the order.
        epoch: Another order for each epoch.

    Returns:
        int64 (n,). The n % block bins that fill no block, chosen at random, come last, ordered likewise in smaller
        blocks.
    """
    costs = np.asarray(costs, np.float64)
    order = permutation(len(costs), seed, epoch, 4)
    parts = []
    while len(order):
        block = _block(len(order))
        whole = len(order) // block * block
        parts.append(_blocks_in_order(order[:whole].copy(), costs, block, seed, epoch))
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


def _blocks_in_order(bins: np.ndarray, costs: np.ndarray, block: int, seed: int, epoch: int) -> np.ndarray:
    raw = np.random.PCG64(np.random.SeedSequence([seed, epoch, 5, len(bins)])).random_raw(2 * len(bins))
    blur = 1 + JITTER * ((raw[: len(bins)] >> 11) * 2.0**-53 - 0.5)
    grid = bins[np.argsort(costs[bins] * blur, kind="stable")].reshape(-1, block)
    inner = np.argsort(_inner_keys(costs[grid], raw[len(bins) :].reshape(grid.shape)), axis=1, kind="stable")
    return np.take_along_axis(grid, inner, axis=1)[permutation(len(grid), seed, epoch, 6)].reshape(-1)


def _inner_keys(costs: np.ndarray, raw: np.ndarray) -> np.ndarray:
    """Sort keys inside blocks of rising cost: a tight group is shuffled, any other becomes its two halves in a random
    order.

    So fewer ranks than a block has bins still find equal ones side by side in blocks that are not tight.
    """
    blocks, width = costs.shape
    keys = raw >> np.uint64(11)
    tight = np.zeros(costs.shape, bool)
    places = np.arange(width)
    bit = np.uint64(63)
    size = width
    while size > 1:
        groups = costs.reshape(blocks, -1, size)
        alike = groups.max(axis=2) <= TIGHT * groups.min(axis=2)
        tight |= np.repeat(alike, size, axis=1)
        swap = np.repeat(raw.reshape(blocks, -1, size)[:, :, 0] >> bit, size, axis=1)
        half = (places // (size // 2) % 2).astype(np.uint64)
        keys |= np.where(tight, raw >> bit & np.uint64(1), (half ^ swap) & np.uint64(1)) << bit
        bit -= np.uint64(1)
        size //= 2
    return keys
