"""Which rank reads which bin, when: one global order an epoch, dealt out to the ranks in turn.

The order is a pure function of (seed, epoch, costs), never of the number of ranks, and the state is how many bins of
it all ranks together have taken. So a run that stopped on 64 GPUs goes on where it was on 48.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from torch.utils.data import Sampler

from omniprep.errors import OmniprepError
from omniprep.packing.balance import balanced_order
from omniprep.packing.order import permutation

__all__ = ["BinSampler"]


class BinSampler(Sampler[int]):
    """Bins of one rank, in the order of the epoch.

    Place p of the global order goes to rank p % world_size. A DataLoader with batch_size B draws B bins of a rank a
    step.

    The state counts what this sampler has yielded, and takes it that the other ranks are as far. DataLoader workers
    fetch ahead, so a checkpoint inside an epoch should use `state_after(steps)`, which counts the steps that were
    trained on.

    Args:
        num_bins: Bins of the dataset.
        seed: Seed of the order; the same on all ranks.
        rank: This process, 0 .. world_size-1.
        world_size: Processes that share an epoch.
        costs: Work of each bin (`PackedDataset.costs`): ranks then get bins of equal work in every step.
        drop_last: Leave out the bins of a last, incomplete round, so that all ranks take equally many steps. Without
            it, some ranks get one bin more than others at the end of the epoch.

    Raises:
        ValueError: Numbers that do not fit.
    """

    def __init__(
        self,
        num_bins: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        costs: np.ndarray | None = None,
        drop_last: bool = False,
    ) -> None:
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} of {world_size}")
        if costs is not None and len(costs) != num_bins:
            raise ValueError(f"{len(costs)} costs for {num_bins} bins")
        self.num_bins = num_bins
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.costs = costs
        self.drop_last = drop_last
        self.epoch = 0
        self._begin = 0  # place where the running iteration began, or the next one will
        self._waiting = True  # whether _begin is that of the next one
        self._consumed = 0

    def order(self) -> np.ndarray:
        """The global order of this epoch, int64 (num_bins,)."""
        if self.costs is None:
            return permutation(self.num_bins, self.seed, self.epoch, 3)
        return balanced_order(self.costs, self.seed, self.epoch)

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of an epoch; the epoch it is in stays where it is."""
        if epoch != self.epoch:
            self.epoch = epoch
            self._go_to(0)

    def __iter__(self) -> Iterator[int]:
        """The bins of this rank from where the state says, the next time from the start of the epoch."""
        if not self._waiting:
            self._go_to(0)
        self._waiting = False
        order = self.order()
        for place in range(self._begin, self._end(self._begin), self.world_size):
            self._consumed = min(place + self.world_size, self.num_bins)
            if place + self.rank < self.num_bins:
                yield int(order[place + self.rank])

    def __len__(self) -> int:
        """Bins that the next iteration gives this rank."""
        begin = self._begin if self._waiting else 0
        return len(range(begin + self.rank, self._end(begin), self.world_size))

    def state_dict(self) -> dict[str, Any]:
        """The state after what was yielded so far."""
        return self._state(self._consumed)

    def state_after(self, steps: int, bins_per_step: int = 1) -> dict[str, Any]:
        """The state after some steps of the running iteration, however far ahead bins were fetched.

        Args:
            steps: Steps since the iteration began.
            bins_per_step: Bins of one rank in a step (batch size times gradient accumulation).
        """
        return self._state(min(self._begin + steps * bins_per_step * self.world_size, self.num_bins))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state, taken by any rank of any number.

        Raises:
            OmniprepError: The state is of another dataset or order, so going on would repeat and leave out bins.
        """
        for name, value in self._state(0).items():
            if name not in ("epoch", "consumed") and state.get(name) != value:
                raise OmniprepError(f"the sampler's state has {name} {state.get(name)!r}, this run has {value!r}")
        self.epoch = int(state["epoch"])
        self._go_to(int(state["consumed"]))

    def _state(self, consumed: int) -> dict[str, Any]:
        return {
            "epoch": self.epoch,
            "consumed": consumed,
            "num_bins": self.num_bins,
            "seed": self.seed,
            "balanced": self.costs is not None,
        }

    def _go_to(self, place: int) -> None:
        self._begin = self._consumed = place
        self._waiting = True

    def _end(self, begin: int) -> int:
        left = self.num_bins - begin
        return self.num_bins - left % self.world_size if self.drop_last else self.num_bins
