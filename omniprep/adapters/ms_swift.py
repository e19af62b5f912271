"""ms-swift's trainer on packed bins.

Tested with ms-swift 3.9.3 and transformers 4.57.6. Its command reads datasets of its own, so a script makes the
trainer: `PackedSwiftTrainer(model=..., args=..., template=..., train_dataset=...)`. The template encodes nothing; it is
made with `padding_free=True`, as ms-swift does for rows that it packs itself.
"""

from typing import Any

from torch import Tensor

from omniprep.adapters.contracts import not_installed
from omniprep.adapters.transformers import PackedBins
from omniprep.data.loss import WeightedLabels
from omniprep.data.model_check import unwrapped
from omniprep.errors import OmniprepError

try:
    from swift.trainers import Seq2SeqTrainer
except ModuleNotFoundError as error:
    raise not_installed("ms-swift", "pip install ms-swift==3.9.3 transformers==4.57.6", error) from error

WITHOUT_EFFECT = ("predict_with_generate", "enable_channel_loss", "use_logits_to_keep", "router_aux_loss_coef")
"""Options that ms-swift reads where it encodes rows or makes batches, which bins are already."""


class PackedSwiftTrainer(PackedBins, Seq2SeqTrainer):  # type: ignore[misc]
    """ms-swift's `Seq2SeqTrainer` on a `PackedDataset`: its loss, metrics, tuners and checkpoints."""

    def check_packed(self, dataset: Any) -> None:
        """As `PackedBins`, and refuse what ms-swift would do to rows that it encodes itself."""
        asked = [name for name in WITHOUT_EFFECT if getattr(self.args, name, None)]
        if self.template.sequence_parallel_size > 1:
            asked.append("sequence_parallel_size")
        if asked:
            raise OmniprepError(f"{', '.join(asked)}: does nothing to bins, which are made and packed; leave it off")
        if not self.args.train_dataloader_shuffle:
            raise OmniprepError(
                "train_dataloader_shuffle=False does nothing here: bins come in the order of BinSampler; leave it on"
            )
        if not self.template.padding_free:
            raise OmniprepError("bins hold several rows: make the template with padding_free=True")
        super().check_packed(dataset)

    def trained_model(self) -> Any:
        """Of an omni model the thinker, to which ms-swift hands the forward pass of the whole."""
        model = unwrapped(self.model)
        return getattr(model, "thinker", model)

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """The arguments that `Seq2SeqTrainer.compute_loss` reads, weights apart from the labels."""
        batch = super()._prepare_inputs(inputs)
        labels = batch["labels"]
        if isinstance(labels, WeightedLabels):
            assert labels.loss_scale is not None, "to_model keeps the weights"
            batch["labels"], batch["loss_scale"] = labels.as_subclass(Tensor), labels.loss_scale
        batch["compute_loss_func"] = self.compute_loss_func
        positions = batch["position_ids"]
        batch["text_position_ids"] = positions[0] if positions.ndim == 3 else positions
        return batch

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """ms-swift's own loss and metrics."""
        return Seq2SeqTrainer.compute_loss(self, model, inputs, return_outputs, num_items_in_batch)
