"""TRL's SFTTrainer on packed bins.

Tested with trl 1.16. Its fused output head computes the loss, token by token and without the logits of all positions;
weights of a dataset that has some are applied to it.
"""

from collections.abc import Callable, Sequence
from typing import Any

import datasets
import torch
from torch import Tensor, nn

from omniprep.adapters.contracts import not_installed
from omniprep.adapters.transformers import PackedBins
from omniprep.data import PackedDataset, stack
from omniprep.data.loss import WeightedLabels
from omniprep.errors import OmniprepError

try:
    from trl import SFTConfig, SFTTrainer
except ModuleNotFoundError as error:
    raise not_installed("TRL", "pip install 'omniprep[adapters]'", error) from error


class PackedSFTTrainer(PackedBins, SFTTrainer):  # type: ignore[misc]
    """`trl.SFTTrainer` on a `PackedDataset`, whose rows are tokenized, truncated and packed already."""

    def __init__(
        self,
        model: nn.Module,
        args: SFTConfig,
        train_dataset: PackedDataset,
        *,
        eval_dataset: PackedDataset | None = None,
        processing_class: Any = None,
        callbacks: Sequence[Any] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        peft_config: Any = None,
    ) -> None:
        asked = [name for name in ("packing", "padding_free", "assistant_only_loss") if getattr(args, name)]
        if asked:
            raise OmniprepError(f"{', '.join(asked)}: the rows of a packed dataset are made and packed; leave it off")
        super().__init__(
            model=model,
            args=args,
            # SFTTrainer takes datasets of `datasets` alone, which it looks into before it asks for batches.
            train_dataset=_numbers_of(train_dataset),
            eval_dataset=None if eval_dataset is None else _numbers_of(eval_dataset),
            data_collator=stack,  # else it makes one, and asks the tokenizer for a pad token
            processing_class=processing_class,
            callbacks=None if callbacks is None else list(callbacks),
            optimizers=optimizers,
            peft_config=peft_config,
        )
        self.train_dataset, self.eval_dataset = train_dataset, eval_dataset

    def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
        """The dataset as it is: there is nothing to tokenize."""
        return dataset

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """SFTTrainer's own loss and metrics, with the weights of the tokens where there are some."""
        labels = inputs["labels"]
        forward = model
        if isinstance(labels, WeightedLabels):
            forward = self._weighted(model, labels)
            inputs = {**inputs, "labels": labels.as_subclass(Tensor)}
        result = SFTTrainer.compute_loss(self, forward, inputs, return_outputs, num_items_in_batch)
        if self.model.training and inputs["position_ids"].ndim == 3:
            self._count_tokens(inputs["position_ids"])
        return result

    def _weighted(self, model: Any, labels: WeightedLabels) -> Callable[..., Any]:
        """`model`, whose log-probabilities (1, L-1) are times the weights: SFTTrainer sums them up."""
        if self.args.loss_type != "nll" or self.compute_loss_func is not None or labels.loss_scale is None:
            raise OmniprepError("a dataset with loss weights trains with loss_type='nll' and no compute_loss_func")
        scale = labels.loss_scale[:, 1:]

        def forward(**inputs: Any) -> Any:
            outputs = model(**inputs)
            if inputs.get("fused_lm_head"):
                outputs.log_probs = outputs.log_probs * scale.to(outputs.log_probs.device)
            return outputs

        return forward

    def _count_tokens(self, positions: Tensor) -> None:
        """Mend the log's `num_tokens`: SFTTrainer takes the second axis of (4, 1, L) positions for the tokens."""
        missed = torch.tensor(positions.shape[-1] - positions.shape[1], device=positions.device)
        self._total_train_tokens += int(self.accelerator.gather(missed).sum()) // self._tp_size
        self._metrics["train"]["num_tokens"] = [self._total_train_tokens]


def _numbers_of(dataset: PackedDataset) -> datasets.Dataset:
    return datasets.Dataset.from_dict({"bin": list(range(len(dataset)))})
