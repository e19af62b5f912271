"""Packed bins as micro-batches of Megatron-Bridge's `vlm_step`.

Written for the commit 067f987 of its repository (src/megatron/bridge/training/vlm_step.py). A bin is a micro-batch of
size 1 in Megatron-Core's THD layout: labels shifted within rows, a loss mask, borders of the rows, and the pixels in
`visual_inputs`. Rows must be multiples of lcm(2·CP, CP·TP) long (`omniprep build --pad-rows-to`); pad tokens are part
of their rows, so the padded borders are the borders.

Its models compute the positions of m-rope themselves, from the tokens and the grids. Those of videos depend on seconds
a frame, which shards do not keep beside the positions that they made of them, so m-rope videos are refused; so are
sounds, which `vlm_step` passes to no model. Its Qwen3-VL and Qwen3-Omni have steps of their own that refuse packs.
"""

import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch

from omniprep.adapters.contracts import IGNORED, BinDataset, check_dataset, next_labels, whole_bin
from omniprep.data import PackedDataset
from omniprep.errors import OmniprepError

ARGUMENTS = ("pixel_values", "image_grid_thw")
VIDEO_ARGUMENTS = ("pixel_values_videos", "video_grid_thw")


class VisualInputs(SimpleNamespace):
    """Media of a micro-batch: what `vlm_step` asks of Megatron-Bridge's GenericVisualInputs, tensors alone."""

    def normalized_for_model(self) -> dict[str, Any]:
        """Arguments of the model, flat already."""
        return {name: value for name, value in vars(self).items() if value is not None}


class MegatronDataset(BinDataset[dict[str, Any]]):
    """Item i is the micro-batch of bin i; its DataLoader takes `collate` and micro-batch size 1.

    Args:
        dataset: The bins, or their folder.
        model_type: `model_type` of the checkpoint's config.json.
        context_parallel_size: Ranks that share a sequence (CP).
        tensor_parallel_size: Ranks that share a layer (TP), with sequence parallelism.

    Raises:
        OmniprepError: Megatron-Bridge would train on these bins otherwise than `omniprep train`.
    """

    def __init__(
        self,
        dataset: PackedDataset | str,
        model_type: str,
        *,
        context_parallel_size: int = 1,
        tensor_parallel_size: int = 1,
    ) -> None:
        super().__init__(dataset)
        taken = ARGUMENTS if self.bins.layout.mrope else (*ARGUMENTS, *VIDEO_ARGUMENTS)
        check_dataset(self.bins, "Megatron-Bridge's vlm_step", model_type, taken)
        cp, tp = context_parallel_size, tensor_parallel_size
        if cp < 1 or tp < 1:
            raise OmniprepError(f"context_parallel_size {cp}, tensor_parallel_size {tp}: at least 1 each")
        # Without context parallelism a row is not cut; sequence parallelism cuts the bin alone.
        self.row_multiple = math.lcm(2 * cp, cp * tp) if cp > 1 else 1
        self.bin_multiple = math.lcm(self.row_multiple, tp)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The micro-batch of a bin of L tokens and R rows.

        Returns:
            input_ids, labels int64 (1, L), labels shifted within rows; loss_mask float32 (1, L); position_ids int64
            (1, L), positions in the row; attention_mask None; cu_seqlens_q, cu_seqlens_kv int32 (R+1); max_seqlen_q,
            max_seqlen_kv int32 (); total_tokens; visual_inputs, None without media.

        Raises:
            OmniprepError: A row does not divide among the ranks.
        """
        batch = whole_bin(self.bins, index)
        borders = batch["cu_seq_lens_q"]
        lengths = borders.diff()
        multiple, total = self.row_multiple, int(borders[-1])
        if (lengths % multiple).any() or total % self.bin_multiple:
            row = int((lengths % multiple).nonzero()[0]) if (lengths % multiple).any() else len(lengths) - 1
            raise OmniprepError(
                f"bin {index} of {self.bins.uri}: its row {row} has {int(lengths[row])} tokens, no multiple of "
                f"{self.bin_multiple}; build with --pad-rows-to {self.bin_multiple}"
            )
        labels, positions = next_labels(batch)[None], batch["position_ids"]
        longest = torch.tensor(batch["max_length_q"], dtype=torch.int32)
        media = {name: batch[name] for name in (*ARGUMENTS, *VIDEO_ARGUMENTS) if name in batch}
        return {
            "input_ids": batch["input_ids"],
            "labels": labels,
            "loss_mask": (labels != IGNORED).float(),
            "position_ids": positions[0] if positions.ndim == 3 else positions,
            "attention_mask": None,  # the borders say what a token sees
            "cu_seqlens_q": borders,
            "cu_seqlens_kv": borders,
            "max_seqlen_q": longest,
            "max_seqlen_kv": longest,
            "total_tokens": total,
            "visual_inputs": VisualInputs(**media) if media else None,
        }


def collate(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The one micro-batch of a batch.

    Raises:
        OmniprepError: The micro-batch size is not 1.
    """
    if len(items) != 1:
        raise OmniprepError(f"{len(items)} bins in a micro-batch: a bin is a whole one; set micro_batch_size to 1")
    return items[0]
