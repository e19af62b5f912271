"""A dataset as a stream of bins with a state, for loaders that want one: torchdata's StatefulDataLoader, torchtitan."""

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import IterableDataset, get_worker_info

from omniprep.data.dataset import PackedDataset
from omniprep.data.ranks import find_rank
from omniprep.data.sampler import BinSampler, Tail
from omniprep.errors import OmniprepError


class PackedStream(IterableDataset[dict[str, Any]]):
    """The bins of one rank in the order of `BinSampler`; `collate_fn=ds.collate` makes batches of them.

    Inside a DataLoader each of its W workers yields every W-th bin of the rank, so that with batch_size=1 the batches
    come in the order of one process; with more, they are of other bins, and each bin comes once all the same.

    A state is of one worker: where it is in its epoch. StatefulDataLoader keeps those of all workers and gives each its
    own back. It can be loaded where ranks and workers are as many as before; `omniprep.loader` resumes on any number.

    Args:
        dataset: The bins.
        seed: Seed of the order; the same on all ranks.
        epoch: The epoch to begin with.
        rank: This process (default, with `world`: of torch.distributed where it is initialized, else as torchrun says).
        world: Processes that share an epoch.
        tail: What happens where bins do not divide among the ranks, as for `BinSampler`.
        repeat: Go on with the next epoch after each, without an end (torchtitan's `infinite`); else an iteration is one
            epoch, and `set_epoch` says which.
    """

    def __init__(
        self, dataset: PackedDataset, *, seed: int = 0, epoch: int = 0, rank: int | None = None,
        world: int | None = None, tail: Tail = "pad", repeat: bool = False,
    ) -> None:  # fmt: skip
        if not len(dataset):
            raise OmniprepError(f"{dataset.uri}: no bins")
        self.dataset, self.seed, self.tail, self.repeat = dataset, seed, tail, repeat
        self.rank, self.world = find_rank(rank, world)
        self._sampler(epoch)  # raises for numbers that do not fit
        # In shared memory: workers that outlive an epoch (persistent_workers) see what set_epoch says.
        self._epoch = torch.tensor(epoch).share_memory_()  # type: ignore[no-untyped-call]
        self._began = epoch  # epoch that the workers' turns are counted from
        self._running = epoch  # epoch that `_taken` counts in
        self._taken = 0  # bins that this worker has yielded of it
        self._loaded = False

    def _sampler(self, epoch: int) -> BinSampler:
        costs = self.dataset.costs
        sampler = BinSampler(len(costs), self.seed, self.rank, self.world, costs, self.tail)
        sampler.set_epoch(epoch)
        return sampler

    @property
    def epoch(self) -> int:
        """The epoch that the next iteration is of, where no state was loaded."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch the next iteration is of; nothing changes where it is that of a loaded state."""
        self._epoch.fill_(epoch)
        if epoch != self._running:
            self._loaded = False

    def __len__(self) -> int:
        """Bins of this rank in an epoch; TypeError where epochs go on without an end, as for any such dataset."""
        if self.repeat:
            raise TypeError("a PackedStream with repeat=True has no length")
        return len(self._sampler(0))

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """The bins of this worker, from where a loaded state says."""
        worker, workers = _worker()
        if not self._loaded:
            self._began = self._running = self.epoch
            self._taken = 0
        self._loaded = False
        while True:
            order = list(self._sampler(self._running))
            # The turns of the workers go on from epoch to epoch: a DataLoader asks each for as many bins as the others,
            # and a worker with fewer bins an epoch would run ahead.
            before = (self._running - self._began) * len(order)
            mine = order[(worker - before) % workers :: workers]
            while self._taken < len(mine):
                self._taken += 1  # before the bin is handed out: a state that is taken then counts it
                yield self.dataset[mine[self._taken - 1]]
            if not self.repeat:
                return
            self._running, self._taken = self._running + 1, 0

    def state_dict(self) -> dict[str, Any]:
        """Where this worker is, after what it has yielded: a few integers."""
        worker, workers = _worker()
        began, running, taken = self._began, self._running, self._taken
        if not (self.repeat or self._loaded or running == self.epoch):  # set_epoch was called since the last iteration
            began, running, taken = self.epoch, self.epoch, 0
        facts = {"began": began, "epoch": running, "taken": taken, "worker": worker, "workers": workers}
        return facts | {"num_bins": len(self.dataset), "seed": self.seed, "rank": self.rank, "world": self.world}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state of this worker.

        Raises:
            OmniprepError: It is of other data, or was taken with another number of ranks or workers.
        """
        now = self.state_dict()
        if not isinstance(state, dict) or not all(isinstance(state.get(name), int) for name in now):
            raise OmniprepError(f"{state!r:.200} is no state of a PackedStream")
        for name, value in now.items():
            if name not in ("began", "epoch", "taken") and state[name] != value:
                raise OmniprepError(
                    f"the state has {name} {state[name]}, this run has {value}: going on would repeat and leave out "
                    "bins; give the same, or use omniprep.loader, whose state fits any number of ranks and workers"
                )
        self._began, self._running, self._taken = state["began"], state["epoch"], state["taken"]
        self._epoch.fill_(self._running)
        self._loaded = True


def _worker() -> tuple[int, int]:
    """Number of this worker process and how many there are; 0 of 1 outside of a DataLoader's."""
    info = get_worker_info()
    return (0, 1) if info is None else (info.id, info.num_workers)
