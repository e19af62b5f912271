"""Which bin a rank trains on at each step: a pure function of (datasets, weights, seed), and one integer to resume
from.

All bins of a run form one global sequence, epoch after epoch. Within a step, position p goes to forward pass
p // (world * batch) of rank p // batch % world. So a checkpoint needs only the number of bins consumed: a run continues
in the middle of an epoch, on another number of ranks, with no bin lost or repeated, and without reading what was
already trained on.

Without weights an epoch has every bin once, in `BinSampler`'s order (balanced by cost). With weights an epoch has as
many bins as all datasets together; each dataset gives its share in passes of its own, so that each of its bins comes
once before any comes again. Where the last step of a run is not full, it is filled with bins whose labels are taken
away.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from torch.utils.data import Sampler

from omniprep.data import BinSampler
from omniprep.packing.balance import balanced_order


@dataclass(kw_only=True)
class Mixture:
    """The global order of bins.

    Attributes:
        sizes: Bins of each dataset.
        shares: Share of the bins of an epoch that each dataset gives, or None: every bin once an epoch.
        seed: Seed of the order.
        costs: float (all bins,): work of each bin, to balance ranks by; or None.
        tower_costs: The towers' part of `costs`, where it is to be balanced too; or None.
    """

    sizes: Sequence[int]
    shares: Sequence[float] | None = None
    seed: int = 0
    costs: np.ndarray | None = None
    tower_costs: np.ndarray | None = None
    _kept: tuple[int, np.ndarray] | None = field(default=None, repr=False)

    @property
    def epoch_bins(self) -> int:
        """Bins of an epoch."""
        return int(sum(self.sizes))

    def order(self, epoch: int) -> np.ndarray:
        """Bin numbers of an epoch, int64, datasets counted one after the other; that asked for last is kept."""
        if self._kept is None or self._kept[0] != epoch:
            self._kept = (epoch, self._order(epoch))
        return self._kept[1]

    def _order(self, epoch: int) -> np.ndarray:
        if self.shares is None:
            return shuffled(self.epoch_bins, self.seed, epoch, self.costs, self.tower_costs)
        begins = np.concatenate([[0], np.cumsum(self.sizes)])
        drawn = []
        edges = np.concatenate([[0.0], np.cumsum(self.shares)]) / np.sum(self.shares) * self.epoch_bins
        for d, size in enumerate(self.sizes):
            # Rounding the running edges, and the running epochs, keeps every total within one bin of its share.
            first, last = (round(e * float(edges[d + 1])) - round(e * float(edges[d])) for e in (epoch, epoch + 1))
            taken = np.arange(first, last)
            passes = {int(q): shuffled(size, self.seed + 1 + d, int(q)) for q in np.unique(taken // size)}
            drawn.append(np.array([begins[d] + passes[int(t) // size][int(t) % size] for t in taken], np.int64))
        bins = np.concatenate(drawn)[: self.epoch_bins]
        costs, tower_costs = (None if values is None else values[bins] for values in (self.costs, self.tower_costs))
        return bins[shuffled(len(bins), self.seed, epoch, costs, tower_costs)]

    def at(self, position: int) -> int:
        """The bin at a position of the endless sequence."""
        return int(self.order(position // self.epoch_bins)[position % self.epoch_bins])


def shuffled(
    n: int, seed: int, epoch: int, costs: np.ndarray | None = None, tower_costs: np.ndarray | None = None
) -> np.ndarray:
    """The order of n bins in an epoch, int64 (n,): that of `BinSampler`, but for `tower_costs`."""
    if costs is not None and tower_costs is not None:
        return balanced_order(costs, seed, epoch, tower_costs)
    sampler = BinSampler(n, seed=seed, costs=costs)
    sampler.set_epoch(epoch)
    return sampler.order()


class BinStream(Sampler[list[int]]):
    """Batches of bin numbers for one rank, from a position in the sequence to its end.

    A position at or beyond `total`, the bins of the whole run, gives `~bin`, a bin that must not count. `start` bins
    are consumed already; `steps` optimizer steps are still to go.
    """

    def __init__(
        self,
        mixture: Mixture,
        *,
        total: int,
        start: int,
        steps: int,
        rank: int = 0,
        world_size: int = 1,
        batch_size: int = 1,
        accumulation: int = 1,
    ) -> None:
        self.mixture, self.total, self.start = mixture, total, start
        self.rank, self.world_size, self.batch_size = rank, world_size, batch_size
        self.accumulation, self.steps = accumulation, steps

    @property
    def step_bins(self) -> int:
        """Bins of one optimizer step over all ranks."""
        return self.world_size * self.batch_size * self.accumulation

    def __len__(self) -> int:
        """Batches still to come."""
        return self.steps * self.accumulation

    def __iter__(self) -> Iterator[list[int]]:
        """The batches; every rank gets the same number."""
        for number in range(len(self)):
            first = self.start + (number * self.world_size + self.rank) * self.batch_size
            yield [
                self.mixture.at(p) if p < self.total else ~self.mixture.at(p)
                for p in range(first, first + self.batch_size)
            ]
