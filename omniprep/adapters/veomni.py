"""Packed bins as samples of VeOmni's mapping dataset.

Written for VeOmni 0.1.12 (veomni/data/data_collator.py). Its `MainCollator` lays samples end to end and finds the
borders of rows where the first axis of the positions is 0, so a bin is one sample: positions (3, L) which begin at 0
with each row, a mask for the placeholders of each modality in place of their ids, and the frames of all clips end to
end. Its collator pads for sequence parallelism, so rows need no `--pad-rows-to`.
"""

from typing import Any

import torch
from torch import Tensor

from omniprep.adapters.contracts import (
    BinDataset,
    check_dataset,
    mrope_positions,
    not_installed,
    placeholder_mask,
    whole_bin,
)
from omniprep.data import PackedDataset
from omniprep.errors import OmniprepError

ARGUMENTS = ("pixel_values", "image_grid_thw", "pixel_values_videos", "video_grid_thw", "input_features")
"""Media that its collator and its Qwen models know."""


class VeOmniDataset(BinDataset[list[dict[str, Tensor]]]):
    """Item i is bin i, as the one sample of a list, which is what VeOmni's transforms give.

    Args:
        dataset: The bins, or their folder.
        model_type: `model_type` of the checkpoint's config.json.

    Raises:
        OmniprepError: VeOmni would train on these bins otherwise than `omniprep train`.
    """

    def __init__(self, dataset: PackedDataset | str, model_type: str) -> None:
        super().__init__(dataset)
        check_dataset(self.bins, "VeOmni", model_type, ARGUMENTS)

    def __getitem__(self, index: int) -> list[dict[str, Tensor]]:
        """The sample of a bin of L tokens.

        Returns:
            input_ids int64 (L), 0 at placeholders; labels int64 (L), not shifted: VeOmni shifts them; attention_mask
            ones (L); position_ids int64 (3, L), or (L) without m-rope; {image,video,audio}_mask bool (L); pixels and
            grids as `omniprep.collate` gives them; input_features (frames of all clips, 128) and audio_feature_lengths
            int64 (clips).

        Raises:
            OmniprepError: VeOmni would see other borders of rows than these.
        """
        batch = whole_bin(self.bins, index)
        input_ids, positions = batch["input_ids"][0], mrope_positions(batch)
        starts = (positions if positions.ndim == 1 else positions[0]).eq(0).nonzero()[:, 0]
        if not torch.equal(starts, batch["cu_seq_lens_q"][:-1].long()):
            raise OmniprepError(
                f"bin {index} of {self.bins.uri}: VeOmni takes each position 0 for the begin of a row, and would see "
                f"{len(starts)} rows where there are {len(batch['cu_seq_lens_q']) - 1} (a row that begins with an "
                "image has several): begin such rows with text, or --system"
            )
        sample: dict[str, Tensor] = {
            "labels": batch["labels"][0],
            "attention_mask": torch.ones_like(input_ids),
            "position_ids": positions,
        }
        filled = torch.zeros_like(input_ids, dtype=torch.bool)
        for modality in self.bins.layout.modalities:
            mask = placeholder_mask(self.bins, input_ids, modality)
            sample[f"{modality}_mask"], filled = mask, filled | mask
        sample["input_ids"] = input_ids.masked_fill(filled, 0)
        if "input_features" in batch:
            frames = batch["feature_attention_mask"]
            sample["input_features"] = batch["input_features"].permute(0, 2, 1)[frames.bool()]
            sample["audio_feature_lengths"] = frames.sum(1)
        return [sample | {name: batch[name] for name in ARGUMENTS[:4] if name in batch}]


def register(model_type: str, name: str = "omniprep") -> None:
    """Let VeOmni's configuration name packed datasets: `data: {dataset_name: omniprep, train_path: DIR}`.

    Args:
        model_type: `model_type` of the checkpoint that will be trained; a dataset of another family is refused.
        name: Name in the configuration.

    Raises:
        OmniprepError: VeOmni is not installed.
    """
    try:
        from veomni.data.dataset import DATASET_REGISTRY
    except ModuleNotFoundError as error:
        raise not_installed("VeOmni", "pip install veomni==0.1.12 transformers==5.9.0", error) from error

    # VeOmni hands over all options of its data section; a packed dataset is its path.
    def packed(train_path: str, **_: Any) -> VeOmniDataset:
        return VeOmniDataset(train_path, model_type)

    DATASET_REGISTRY.register(name)(packed)
