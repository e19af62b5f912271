"""Packed bins in NeMo Automodel's recipe for vision and omni models, by `_target_`.

Written for nemo-automodel 0.7.0. Items are what its neat packing makes, and its own `neat_packed_vlm_collater` makes
the batch of them: a mask of blocks, from the number of each token's row, and positions (3, 1, L). Two things are added
that it leaves out: sounds, and the pixels as float32 (it rounds them to bfloat16). Labels are shifted within rows, as
its losses want them. For attention that takes a mask ("sdpa", "eager"), without context or pipeline parallelism.
"""

from collections.abc import Sequence
from typing import Any

import torch

from omniprep.adapters.contracts import (
    BinDataset,
    check_dataset,
    mrope_positions,
    next_labels,
    not_installed,
    whole_bin,
)
from omniprep.data import PackedDataset
from omniprep.errors import OmniprepError

PIXELS = ("pixel_values", "pixel_values_videos")
GRIDS = ("image_grid_thw", "video_grid_thw")
SOUNDS = ("input_features", "feature_attention_mask")


class AutomodelDataset(BinDataset[dict[str, Any]]):
    """Item i is bin i as a pack of Automodel's neat packing.

    Args:
        dataset: The bins, or their folder.
        model_type: `model_type` of the checkpoint's config.json.

    Raises:
        OmniprepError: Automodel would train on these bins otherwise than `omniprep train`.
    """

    def __init__(self, dataset: PackedDataset | str, model_type: str) -> None:
        super().__init__(dataset)
        check_dataset(self.bins, "NeMo Automodel", model_type, (*PIXELS, *GRIDS, *SOUNDS))

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The pack of a bin of L tokens.

        Returns:
            input_ids, labels int64 (L), labels shifted within rows; attention_mask int64 (L), the number from 1 of each
            token's row; position_ids int64 (3, L), or (L) without m-rope; media as `omniprep.collate` gives them;
            n_images, n_videos.
        """
        batch = whole_bin(self.bins, index)
        lengths = batch["cu_seq_lens_q"].diff().long()
        return {
            "input_ids": batch["input_ids"][0],
            "labels": next_labels(batch),
            "attention_mask": torch.repeat_interleave(torch.arange(1, len(lengths) + 1), lengths),
            "position_ids": mrope_positions(batch),
            "n_images": len(batch.get("image_grid_thw", ())),
            "n_videos": len(batch.get("video_grid_thw", ())),
        } | {name: batch[name] for name in (*PIXELS, *GRIDS, *SOUNDS) if name in batch}


def packed_dataset(path: str, model_type: str) -> AutomodelDataset:
    """What `dataset: {_target_: omniprep.adapters.automodel.packed_dataset, path: DIR, model_type: ...}` makes.

    Raises:
        OmniprepError: As `AutomodelDataset`.
    """
    return AutomodelDataset(path, model_type)


def packed_collate(examples: Sequence[dict[str, Any]], processor: Any = None) -> dict[str, Any]:
    """What `collate_fn: {_target_: omniprep.adapters.automodel.packed_collate}` makes of one bin.

    Args:
        examples: One item of `AutomodelDataset`: set local_batch_size to 1.
        processor: Given by the recipe; there is nothing left to process.

    Raises:
        OmniprepError: Automodel is not installed, or there are several bins.
    """
    try:
        from nemo_automodel.components.datasets.vlm.collate_fns import neat_packed_vlm_collater
    except ModuleNotFoundError as error:
        raise not_installed("NeMo Automodel", "pip install nemo-automodel==0.7.0", error) from error
    if len(examples) != 1:
        raise OmniprepError(f"{len(examples)} bins in a batch: a bin is a whole one; set local_batch_size to 1")
    pack = examples[0]
    batch: dict[str, Any] = neat_packed_vlm_collater(list(examples))
    # Zeros of this family-blind argument would tell a class that asks for it that all tokens are text.
    del batch["mm_token_type_ids"]
    return batch | {name: pack[name] for name in (*PIXELS, *SOUNDS) if name in pack}
