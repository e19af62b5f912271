"""Which rank reads which bin, when: one global order an epoch, dealt out to the ranks in turn.

The order is a pure function of (seed, epoch, costs), never of the number of ranks, and the state is how many bins of
it all ranks together have taken. So a run that stopped on 64 GPUs goes on where it was on 48.
"""

import sys
from collections.abc import Iterator
from typing import Any, Literal, get_args

import numpy as np
from torch.utils.data import Sampler

from omniprep.errors import OmniprepError
from omniprep.packing.balance import epoch_order

Tail = Literal["pad", "drop", "ragged"]


class BinSampler(Sampler[int]):
    """Bins of one rank, in the order of the epoch.

    Position p of the global order goes to rank p % world_size. A DataLoader with batch_size B draws B bins of a rank a
    step.

    The state counts what this sampler has yielded, and takes it that the other ranks are as far. DataLoader workers
    fetch ahead, so a checkpoint inside an epoch should use `state_after(steps)`, which counts the steps that were
    trained on.

    The sampler shares the bins out itself. accelerate does so too, for every DataLoader that goes through
    `accelerator.prepare` (the Hugging Face Trainer's included): give it a sampler with the default rank and world_size,
    or leave the DataLoader out of `prepare`. Both at once would skip bins, so it raises.

    Args:
        num_bins: Bins of the dataset.
        seed: Seed of the order; the same on all ranks.
        rank: This process, 0 .. world_size-1.
        world_size: Processes that share an epoch.
        costs: Work of each bin (`PackedDataset.costs`): ranks then get bins of equal work in every step.
        tail: What happens where the bins do not divide among the ranks. "pad": every rank takes the same number of
            steps, and the last bins of the order come twice to fill the last round (several times, where there are
            fewer bins than ranks). "drop": the bins of the last, incomplete round are left out. "ragged": every bin
            comes once, so some ranks take one step more than others; collective operations (DDP, FSDP) would wait for
            ever in it.

    Raises:
        OmniprepError: Numbers that do not fit, or a tail that is none of these.
    """

    def __init__(
        self,
        num_bins: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        costs: np.ndarray | None = None,
        tail: Tail = "pad",
    ) -> None:
        if not 0 <= rank < world_size:
            raise OmniprepError(f"BinSampler: rank {rank} of {world_size}")
        if costs is not None and len(costs) != num_bins:
            raise OmniprepError(f"BinSampler: {len(costs)} costs for {num_bins} bins")
        if tail not in get_args(Tail):
            raise OmniprepError(f"BinSampler: tail is one of {', '.join(map(repr, get_args(Tail)))}, not {tail!r}")
        self.num_bins = num_bins
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.costs = costs
        self.tail = tail
        self.epoch = 0
        self._begin = 0  # position where the running iteration began, or the next one will
        self._waiting = True  # whether _begin is that of the next one
        self._consumed = 0
        self._loaded = False  # whether a state was loaded and no iteration has gone on from it yet

    def order(self) -> np.ndarray:
        """The global order of this epoch, int64 (num_bins,)."""
        return epoch_order(self.num_bins, self.seed, self.epoch, self.costs)

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of an epoch; nothing changes where it is the epoch that the sampler is in.

        Raises:
            OmniprepError: A state was loaded, no bin was drawn since, and the epoch is before that of the state. A
                DataLoader that accelerate prepared counts its own epochs, from 0 after a restart, and sets them here.
        """
        if self._loaded and epoch < self.epoch:
            raise OmniprepError(
                f"BinSampler: set_epoch({epoch}) after a state of epoch {self.epoch} was loaded would train on "
                f"bins of earlier epochs again; with accelerate, call set_epoch({self.epoch}) of the loader"
            )
        if epoch != self.epoch:
            self.epoch = epoch
            self._go_to(0)

    def __iter__(self) -> Iterator[int]:
        """The bins of this rank from where the state says, the next time from the start of the epoch.

        Raises:
            OmniprepError: accelerate would share this rank's bins out a second time.
        """
        self._refuse_second_sharding()
        if not self._waiting:
            self._go_to(0)
        self._waiting = self._loaded = False
        # The order, and behind it what fills the last round of the ranks.
        order = self.order()
        missing = -(self.num_bins - self._begin) % self.world_size
        if missing and self.tail == "pad":
            order = np.concatenate([order, np.resize(order[-missing:], missing)])
        end = self._end(self._begin)
        for first in range(self._begin, end, self.world_size):
            self._consumed = min(first + self.world_size, self.num_bins)
            if first + self.rank < end:  # else it is the last round of a ragged epoch, and this rank has no part in it
                yield int(order[first + self.rank])

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
            bins_per_step: Bins of one rank in a step (batch size times gradient accumulation). Where accelerate shares
                the bins out (world_size is 1 here), the bins of all processes.
        """
        return self._state(min(self._begin + steps * bins_per_step * self.world_size, self.num_bins))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state, taken by any rank of any number.

        Raises:
            OmniprepError: The state is of another dataset or order, so going on would repeat and leave out bins; or it
                is no state of a sampler.
        """
        for name, value in self._state(0).items():
            if name not in ("epoch", "consumed") and state.get(name) != value:
                raise OmniprepError(f"the sampler's state has {name} {state.get(name)!r}, this run has {value!r}")
        epoch, consumed = state.get("epoch"), state.get("consumed")
        if not isinstance(epoch, int) or not isinstance(consumed, int) or not 0 <= consumed <= self.num_bins:
            raise OmniprepError(f"the sampler's state has epoch {epoch!r} and consumed {consumed!r}: it is no state")
        self.epoch = epoch
        self._go_to(consumed)
        self._loaded = True

    def _state(self, consumed: int) -> dict[str, Any]:
        return {
            "epoch": self.epoch,
            "consumed": consumed,
            "num_bins": self.num_bins,
            "seed": self.seed,
            "balanced": self.costs is not None,
        }

    def _go_to(self, position: int) -> None:
        self._begin = self._consumed = position
        self._waiting, self._loaded = True, False

    def _end(self, begin: int) -> int:
        """The end of the positions that an iteration from `begin` goes through, over all ranks."""
        over = (self.num_bins - begin) % self.world_size
        if over == 0 or self.tail == "ragged":
            return self.num_bins
        return self.num_bins - over if self.tail == "drop" else self.num_bins - over + self.world_size

    def _refuse_second_sharding(self) -> None:
        accelerate = sys.modules.get("accelerate.data_loader")
        if self.world_size == 1 or accelerate is None:
            return
        # accelerate never asks the sampler; that it shares out what comes from here shows in who is calling.
        caller = sys._getframe(1).f_back
        while caller is not None:
            owner = caller.f_locals.get("self") if caller.f_globals is vars(accelerate) else None
            if isinstance(owner, accelerate.BatchSamplerShard | accelerate.DataLoaderDispatcher):
                raise OmniprepError(
                    f"BinSampler: accelerate shares the bins of a prepared DataLoader out over the processes, and this "
                    f"sampler (rank {self.rank} of {self.world_size}) has done so already: most bins would never be "
                    "read. Make it without rank and world_size, or leave the DataLoader out of accelerator.prepare()"
                )
            caller = caller.f_back
