"""LLaMA-Factory's trainer for supervised fine-tuning on packed bins.

Tested with llamafactory 0.9.5 and transformers 5.6. Its commands read datasets of their own, so a script makes the
trainer: `PackedLlamaFactoryTrainer(finetuning_args, processor, model=..., args=..., train_dataset=..., tokenizer=...)`.
"""

from typing import Any

from omniprep.adapters.contracts import not_installed
from omniprep.adapters.transformers import PackedBins
from omniprep.errors import OmniprepError

try:
    from llamafactory.train.sft.trainer import CustomSeq2SeqTrainer
except ModuleNotFoundError as error:
    raise not_installed("LLaMA-Factory", "pip install llamafactory==0.9.5", error) from error


class PackedLlamaFactoryTrainer(PackedBins, CustomSeq2SeqTrainer):  # type: ignore[misc]
    """LLaMA-Factory's CustomSeq2SeqTrainer on a `PackedDataset`: its optimizers, schedules and callbacks."""

    def check_packed(self, dataset: Any) -> None:
        """As `PackedBins`, and refuse what its arguments ask of batches that are made."""
        if self.finetuning_args.disable_shuffling:
            raise OmniprepError(
                "disable_shuffling does nothing here: bins come in the order of BinSampler; leave it off"
            )
        if self.finetuning_args.use_asft_loss:
            raise OmniprepError("use_asft_loss runs a second model without the media: leave it off")
        super().check_packed(dataset)
