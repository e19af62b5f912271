"""`omniprep.loader`: the batches of a dataset for one rank, on its device, in one call.

Reader processes read bins and join them (`stack`); media travel as they are stored, in one buffer a batch, and become
floats where the model is (`to_model`). On a GPU a thread copies two batches ahead (prefetch.py).
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Sampler

from omniprep.data.arguments import to_model
from omniprep.data.collate import check_alike, stack
from omniprep.data.dataset import PackedDataset
from omniprep.data.model_check import check_model
from omniprep.data.prefetch import HostBatch, OneBuffer, on_device, one_buffer
from omniprep.data.ranks import find_rank
from omniprep.data.reading import one_line_errors
from omniprep.data.sampler import BinSampler, Tail
from omniprep.errors import OmniprepError


def loader(
    dataset: PackedDataset | Sequence[PackedDataset],
    batch_size: int = 1,
    num_workers: int = 0,
    device: torch.device | str | None = None,
    epoch: int = 0,
    rank: int | None = None,
    world: int | None = None,
    *,
    model: nn.Module | None = None,
    dtype: torch.dtype | None = None,
    seed: int = 0,
    tail: Tail = "pad",
) -> "BinLoader":
    """The batches of this rank, as `ds.collate` makes them, on the device.

    Args:
        dataset: The bins; several datasets are gone through as one, every bin once an epoch.
        batch_size: Bins of a batch, laid end to end.
        num_workers: Reader processes (0: this one).
        device: Where the batches go (default: where the model is, else the host).
        epoch: The epoch to begin with.
        rank: This process (default, with `world`: of torch.distributed where it is initialized, else as torchrun says).
        world: Processes that share an epoch.
        model: What will get the batches: it is checked (`check_model`), and says device and type of the floats.
        dtype: Type of the media (default: that of the model's first weight, else float32).
        seed: Seed of the order; the same on all ranks.
        tail: What happens where the bins do not divide among the ranks, as for `BinSampler`: "pad" (default: the last
            bins come twice, and every rank takes the same number of steps), "drop" or "ragged".

    Raises:
        OmniprepError: The datasets are of several families or otherwise no one batch, have no bins, or are not for the
            model; or numbers that do not fit.
    """
    datasets = [dataset] if isinstance(dataset, PackedDataset) else list(dataset)
    if not sum(len(ds) for ds in datasets):
        raise OmniprepError(f"{', '.join(ds.uri for ds in datasets) or 'loader'}: no bins")
    if batch_size < 1 or num_workers < 0:
        raise OmniprepError(f"loader: batch_size {batch_size} and num_workers {num_workers} must be at least 1 and 0")
    datasets = [ds for ds in datasets if len(ds)]
    check_alike([{"layout": ds.layout} for ds in datasets])
    left_out: frozenset[str] = frozenset()
    if model is not None:
        for ds in datasets:
            left_out |= check_model(ds, model)
        first = next(model.parameters(), None)
        if first is not None:
            device = first.device if device is None else device
            dtype = first.dtype if dtype is None and first.is_floating_point() else dtype
    number, ranks = find_rank(rank, world)
    sampler = BinSampler(
        sum(len(ds) for ds in datasets),
        seed=seed,
        rank=number,
        world_size=ranks,
        costs=np.concatenate([ds.costs for ds in datasets]),
        tail=tail,
    )
    sampler.set_epoch(epoch)
    joined: Dataset[dict[str, Any]] = datasets[0] if len(datasets) == 1 else ConcatDataset(datasets)
    return BinLoader(
        joined, sampler, batch_size, num_workers, torch.device("cpu" if device is None else device), dtype, left_out
    )


class BinLoader:
    """Iterates over the batches of an epoch; what `loader` gives.

    After its last batch it goes on with the next epoch by itself, and `set_epoch` says another. Its state counts the
    batches that it handed out, however far ahead the reader processes are, so it may be taken after any step; a run
    resumes on another number of ranks.

    Attributes:
        dataset: What the bins are read from.
        sampler: The order of the bins.
    """

    def __init__(
        self, dataset: Dataset[dict[str, Any]], sampler: BinSampler, batch_size: int, num_workers: int,
        device: torch.device, dtype: torch.dtype | None, left_out: frozenset[str],
    ) -> None:  # fmt: skip
        self.dataset, self.sampler, self.batch_size = dataset, sampler, batch_size
        self.device, self.dtype, self._left_out = device, dtype, left_out
        self._handed = 0  # batches since the running iteration began, or the last one that ended early
        cuda = device.type == "cuda"
        self._loader = DataLoader(
            dataset,
            batch_size=batch_size,
            sampler=_Drawn(sampler),
            num_workers=num_workers,
            collate_fn=_buffered if cuda or num_workers else stack,
            pin_memory=cuda,
            generator=torch.Generator(),  # reading draws nothing from the generator that a run saves
            prefetch_factor=4 if num_workers else None,
        )

    @property
    def epoch(self) -> int:
        """The epoch that the running or the next iteration is of."""
        return self.sampler.epoch

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of an epoch; nothing changes where the loader is in it."""
        if epoch != self.epoch:
            self._handed = 0
        self.sampler.set_epoch(epoch)

    def __len__(self) -> int:
        """Batches that the next iteration gives."""
        return -(-len(self.sampler) // self.batch_size)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """The batches of the rest of the epoch: of all of it, but for what a loaded state has behind it."""
        epoch, self._handed = self.epoch, 0
        batches: Iterator[Any] = one_line_errors(self._loader)
        if self.device.type == "cuda":
            batches = on_device(batches, self.device)
        for batch in batches:
            stacked = batch
            if isinstance(batch, OneBuffer):
                stacked, _ = batch.to(self.device)
            elif isinstance(batch, HostBatch):
                stacked = batch.batch
            arguments = to_model(stacked, self.device, self.dtype)
            self._handed += 1
            yield {n: v for n, v in arguments.items() if n != "loss_scale" and n not in self._left_out}
        if self.epoch == epoch:
            self.set_epoch(epoch + 1)

    def state_dict(self) -> dict[str, Any]:
        """The state after the batches that were handed out: a few integers."""
        return self.sampler.state_after(self._handed, self.batch_size)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state, taken by any rank of any number; OmniprepError where it is of other data or order."""
        self.sampler.load_state_dict(state)
        self._handed = 0


class _Drawn(Sampler[int]):
    """The bins of a sampler, drawn anew in each iteration.

    accelerate and others look for `set_epoch` at a DataLoader's sampler; this one belongs to `BinLoader` alone.
    """

    def __init__(self, sampler: BinSampler) -> None:
        self.sampler = sampler

    def __iter__(self) -> Iterator[int]:
        return iter(self.sampler)

    def __len__(self) -> int:
        return len(self.sampler)


def _buffered(bins: list[dict[str, Any]]) -> OneBuffer | HostBatch:
    return one_buffer(stack(bins))
