"""A loop with accelerate on packed bins.

Tested with accelerate 1.15. The loader shares the bins out itself, so it stays outside of `accelerator.prepare`; it is
saved and loaded with `accelerator.save_state` and `load_state`, and closes an accumulated step at the end of an epoch.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from omniprep.adapters.contracts import not_installed
from omniprep.data import BinLoader, PackedDataset
from omniprep.data import loader as bin_loader
from omniprep.data.sampler import Tail

try:
    from accelerate import Accelerator
    from accelerate.data_loader import DataLoaderStateMixin
    from accelerate.state import GradientState
except ModuleNotFoundError as error:
    raise not_installed("accelerate", "pip install 'omniprep[train]'", error) from error


class AcceleratedLoader(DataLoaderStateMixin):  # type: ignore[misc]
    """A `BinLoader` that tells accelerate where its epoch ends."""

    def __init__(self, bins: BinLoader) -> None:
        self.bins = bins
        self.gradient_state = GradientState()

    @property
    def epoch(self) -> int:
        """The epoch that the running or the next iteration is of."""
        return self.bins.epoch

    def set_epoch(self, epoch: int) -> None:
        """As `BinLoader.set_epoch`."""
        self.bins.set_epoch(epoch)

    def __len__(self) -> int:
        """Batches that the next iteration gives."""
        return len(self.bins)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """The batches of `BinLoader`; with the last of them `accelerator.accumulate` closes its step."""
        self.begin()
        left = len(self.bins)
        try:
            for batch in self.bins:
                left -= 1
                self.end_of_dataloader = left == 0
                yield batch
        finally:
            self.end()

    def state_dict(self) -> dict[str, Any]:
        """As `BinLoader.state_dict`."""
        return self.bins.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """As `BinLoader.load_state_dict`."""
        self.bins.load_state_dict(state)


def loader(
    accelerator: Accelerator,
    dataset: PackedDataset | Sequence[PackedDataset],
    model: nn.Module,
    *,
    batch_size: int = 1,
    num_workers: int = 0,
    epoch: int = 0,
    seed: int = 0,
    tail: Tail = "pad",
) -> AcceleratedLoader:
    """This process's batches on its device, saved and loaded with the accelerator's state.

    Args:
        accelerator: Says rank, number of ranks and device.
        dataset: As for `omniprep.loader`, like the other arguments.
        model: What will get the batches, prepared or not; it is checked.
        batch_size: Bins of a batch.
        num_workers: Reader processes.
        epoch: The epoch to begin with.
        seed: Seed of the order.
        tail: What happens where bins do not divide among the ranks.

    Raises:
        OmniprepError: As `omniprep.loader`.
    """
    bins = bin_loader(
        dataset, batch_size, num_workers, accelerator.device, epoch, accelerator.process_index,
        accelerator.num_processes, model=model, seed=seed, tail=tail,
    )  # fmt: skip
    made = AcceleratedLoader(bins)
    accelerator.register_for_checkpointing(made)
    return made


def labeled_tokens(accelerator: Accelerator, batches: Sequence[dict[str, Any]]) -> Tensor:
    """Labeled tokens of some batches on all ranks: `num_items_in_batch` of `omniprep.weighted_loss`.

    DDP and FSDP average gradients over the ranks, so multiply the loss by `accelerator.num_processes`; accelerate
    divides it by the accumulated passes, so multiply it by their number too.
    """
    count = sum(int((batch["labels"] != -100).sum()) for batch in batches)
    total: Tensor = accelerator.reduce(torch.tensor(count, device=accelerator.device))
    return total
