"""Axolotl's trainer on packed bins.

Tested with axolotl 0.19.0. Its command reads datasets of its own, so the trainer is made by a script, like that of
transformers, with AxolotlTrainingArguments.
"""

from typing import Any

from omniprep.adapters.contracts import not_installed
from omniprep.adapters.transformers import PackedBins
from omniprep.errors import OmniprepError

try:
    from axolotl.core.trainers.base import AxolotlTrainer
except ModuleNotFoundError as error:
    raise not_installed("Axolotl", "pip install axolotl==0.19.0", error) from error


class PackedAxolotlTrainer(PackedBins, AxolotlTrainer):  # type: ignore[misc]
    """AxolotlTrainer on a `PackedDataset`: its optimizers, schedules and offloading."""

    def check_packed(self, dataset: Any) -> None:
        """As `PackedBins`, and refuse what its arguments ask of batches that are made."""
        asked = [
            name for name in ("sample_packing", "curriculum_sampling", "orpo_alpha") if getattr(self.args, name, None)
        ]
        if asked:
            raise OmniprepError(f"{', '.join(asked)}: the rows of a packed dataset are made and packed; leave it off")
        super().check_packed(dataset)
