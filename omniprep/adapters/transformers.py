"""The Hugging Face Trainer on packed bins.

Tested with transformers 5.23. `PackedTrainer(model=model, args=args, train_dataset=PackedDataset(...))` is the Trainer
with the bins' own order, batch and loss; what it launches, shards, logs and saves is as ever.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import Trainer

from omniprep.adapters.contracts import refuse_preferences
from omniprep.data import BinSampler, PackedDataset, check_model, stack, to_model, weighted_loss
from omniprep.errors import OmniprepError


class PackedBins:
    """What a Trainer needs for packed bins; stands in front of its class: `class Mine(PackedBins, Trainer)`.

    - Data: bins in the order of `BinSampler` with the run's seed, which accelerate shares out over the ranks. A resumed
      run skips what it has trained on without reading it.
    - Batches: pixels reach the device as bytes and become floats there, of the type of the model's weights. A model
      that the dataset is not for is refused before the first step (`omniprep.check_model`).
    - Loss: that of `omniprep train`, over the labeled tokens of the whole step on all ranks, times the weights of a
      dataset that has some. `compute_loss_func` is given labels that carry the weights (`omniprep.weighted_loss`).
    """

    args: Any
    accelerator: Any
    model: Any
    train_dataset: Any
    eval_dataset: Any
    label_smoother: Any
    compute_loss_func: Any
    _left_out: frozenset[str] = frozenset()

    def get_train_dataloader(self) -> Any:
        """The bins of an epoch, shuffled, shared out by accelerate."""
        args, dataset = self.args, self.train_dataset
        self.check_packed(dataset)
        seed = args.seed if args.data_seed is None else args.data_seed
        sampler = BinSampler(len(dataset), seed=seed, costs=dataset.costs)
        return self._prepared(dataset, sampler, args.train_batch_size, args.dataloader_drop_last)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """Bins to evaluate on, in their order."""
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        if isinstance(dataset, str):
            dataset = self.eval_dataset[dataset]
        self.check_packed(dataset)
        return self._prepared(dataset, None, self.args.eval_batch_size, False)

    def check_packed(self, dataset: Any) -> None:
        """Refuse what is no packed dataset, a model that it is not for, and options that would change nothing."""
        if not isinstance(dataset, PackedDataset):
            raise OmniprepError(
                f"{type(self).__name__} trains on a PackedDataset, not on {type(dataset).__name__}; "
                "omniprep build makes one"
            )
        if not len(dataset):
            raise OmniprepError(f"{dataset.uri}: no bins")
        refuse_preferences(dataset, type(self).__name__)
        if self.args.n_gpu > 1:
            raise OmniprepError("several GPUs in one process (DataParallel) would cut bins apart: launch by torchrun")
        # Before transformers 5 the option was group_by_length, of which True is no strategy here either.
        strategy = getattr(self.args, "train_sampling_strategy", "random")
        if strategy != "random" or getattr(self.args, "group_by_length", False):
            raise OmniprepError(
                f"train_sampling_strategy={strategy!r} or group_by_length does nothing here: bins are "
                "balanced by their cost; leave it at 'random'"
            )
        if self.label_smoother is not None:
            raise OmniprepError("label_smoothing_factor: the loss of packed bins has none; leave it at 0")
        self._left_out = check_model(dataset, self.trained_model())

    def trained_model(self) -> Any:
        """The part of the model that gets the batches."""
        return self.model

    def _prepared(self, dataset: PackedDataset, sampler: BinSampler | None, batch_size: int, drop_last: bool) -> Any:
        args = self.args
        loader: DataLoader[Any] = DataLoader(
            dataset,
            batch_size=batch_size,
            sampler=sampler,
            collate_fn=stack,
            drop_last=drop_last,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory,
            persistent_workers=args.dataloader_persistent_workers,
            prefetch_factor=args.dataloader_prefetch_factor,
        )
        return self.accelerator.prepare(loader)

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Floats of the media, where the model is."""
        weights = next(self.model.parameters())
        batch = to_model(inputs, self.args.device, weights.dtype if weights.is_floating_point() else torch.float32)
        return {name: value for name, value in batch.items() if name != "loss_scale" and name not in self._left_out}

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The loss of `omniprep train`; a `compute_loss_func` goes before it."""
        if self.compute_loss_func is not None:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)  # type: ignore[misc]
        outputs = model(**{name: value for name, value in inputs.items() if name != "labels"})
        loss = weighted_loss(outputs.logits, inputs["labels"], num_items_in_batch)
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            loss = loss * (self.accelerator.num_processes // self.get_tp_size())  # type: ignore[attr-defined]
        return (loss, outputs) if return_outputs else loss


class PackedTrainer(PackedBins, Trainer):  # type: ignore[misc]
    """`transformers.Trainer` on a `PackedDataset`; the collator and the columns of other datasets play no part."""
