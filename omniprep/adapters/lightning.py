"""Lightning on packed bins: a data module whose loader is saved and loaded with the Trainer's checkpoints.

Tested with lightning 2.6. The loss of a step is `omniprep.weighted_loss` in the user's `training_step`.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from omniprep.adapters.contracts import not_installed
from omniprep.data import BinLoader, PackedDataset
from omniprep.data import loader as bin_loader
from omniprep.data.sampler import Tail

try:
    from lightning.pytorch import LightningDataModule, LightningModule
except ModuleNotFoundError as error:
    raise not_installed("Lightning", "pip install 'omniprep[adapters]'", error) from error


def labeled_on_all_ranks(module: LightningModule, batch: Mapping[str, Any]) -> Tensor:
    """Labeled tokens of a rank in this step, on average: `num_items_in_batch` of `omniprep.weighted_loss`.

    DDP and FSDP average gradients over the ranks; with this count their average is the gradient of the mean over the
    tokens of all ranks, as of one large batch.

    Args:
        module: Which trains.
        batch: Of this rank.
    """
    count = (batch["labels"] != -100).sum().float()
    total: Tensor = module.trainer.strategy.reduce(count, reduce_op="mean")
    return total


class EpochLoader:
    """A `BinLoader` as Lightning wants one.

    Its length is that of a whole epoch, after a resume too: Lightning counts the batches of an epoch on from its own
    checkpoint. A run that ends by max_steps within an epoch counts it as a whole one, so that a resumed one says an
    epoch too many; the epoch of the loaded state is the one that goes on, and later ones are counted from it.
    """

    def __init__(self, bins: BinLoader) -> None:
        self.bins, self.length = bins, len(bins)
        self.sampler = self  # Lightning calls set_epoch of it
        self._loaded = False
        self._ahead = 0  # epochs that Lightning has counted and that were not gone through

    def __len__(self) -> int:
        """Batches of a whole epoch."""
        return self.length

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """As `BinLoader`."""
        return iter(self.bins)

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before each epoch."""
        if self._loaded:
            self._loaded, self._ahead = False, epoch - self.bins.epoch
        self.bins.set_epoch(epoch - self._ahead)

    def state_dict(self) -> dict[str, Any]:
        """As `BinLoader`."""
        return self.bins.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """As `BinLoader`; at the end of an epoch the next one follows."""
        self.bins.load_state_dict(state)
        if not len(self.bins):
            self.bins.set_epoch(self.bins.epoch + 1)
        self._loaded = True


class PackedDataModule(LightningDataModule):  # type: ignore[misc]
    """Batches of a `PackedDataset` for each rank of a Lightning Trainer, on its device.

    Args:
        dataset: As for `omniprep.loader`, like the other arguments.
        model: What the batches go to within the LightningModule; it is checked.
        eval_dataset: Bins of `val_dataloader`, where there are some.
        batch_size: Bins of a batch.
        num_workers: Reader processes a rank.
        seed: Seed of the order.
        tail: What happens where bins do not divide among the ranks.
    """

    def __init__(
        self,
        dataset: PackedDataset | Sequence[PackedDataset],
        model: nn.Module,
        *,
        eval_dataset: PackedDataset | Sequence[PackedDataset] | None = None,
        batch_size: int = 1,
        num_workers: int = 0,
        seed: int = 0,
        tail: Tail = "pad",
    ) -> None:
        super().__init__()
        self.dataset, self.model, self.eval_dataset = dataset, model, eval_dataset
        self.batch_size, self.num_workers, self.seed, self.tail = batch_size, num_workers, seed, tail
        if eval_dataset is not None:
            self.val_dataloader = self._evaluation

    def train_dataloader(self) -> EpochLoader:
        """The bins of this rank; Lightning says the epoch and keeps the state."""
        return self._loader(self.dataset)

    def _evaluation(self) -> EpochLoader:
        assert self.eval_dataset is not None
        return self._loader(self.eval_dataset)

    def _loader(self, dataset: PackedDataset | Sequence[PackedDataset]) -> EpochLoader:
        trainer = self.trainer
        assert trainer is not None, "Lightning attaches its trainer before it asks for loaders"
        bins = bin_loader(
            dataset, self.batch_size, self.num_workers, trainer.strategy.root_device, 0, trainer.global_rank,
            trainer.world_size, model=self.model, seed=self.seed, tail=self.tail,
        )  # fmt: skip
        return EpochLoader(bins)
