"""What the adapters share whose trainer has a batch of its own, with labels, positions and borders in its own places.

None of these trainers knows weights of tokens, and each names the media that it passes on: what it would leave out
without a word is refused before the first step.
"""

from collections.abc import Collection
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.data import Dataset

from omniprep.data import PackedDataset, collate
from omniprep.data.loss import NOT_FOR_LANGUAGE_MODELING
from omniprep.errors import OmniprepError

IGNORED = -100
"""Label of a token that nothing is learned from."""
Item = TypeVar("Item")


class BinDataset(Dataset[Item]):
    """A dataset with an item for each bin of a packed one, `bins`, which may be given as its folder."""

    def __init__(self, dataset: PackedDataset | str) -> None:
        self.bins = dataset if isinstance(dataset, PackedDataset) else PackedDataset(dataset)

    def __len__(self) -> int:
        """Bins."""
        return len(self.bins)


def not_installed(trainer: str, command: str, error: ModuleNotFoundError) -> OmniprepError:
    """What to raise where a trainer's module is not found, its own or one that it needs.

    Args:
        trainer: Its name.
        command: Installs the versions that the adapter is tested with.
        error: Of the import.
    """
    return OmniprepError(f"{trainer} cannot be imported ({error}): {command}")


def refuse_preferences(dataset: PackedDataset, trainer: str) -> None:
    """Refuse preference rows: a trainer that learns every label would learn the rejected answers.

    Raises:
        OmniprepError: The dataset has some.
    """
    if len(dataset) and dataset.layout.preferences:
        raise OmniprepError(f"{trainer} cannot train on {dataset.uri}: {NOT_FOR_LANGUAGE_MODELING}")


def check_dataset(dataset: PackedDataset, trainer: str, model_type: str, arguments: Collection[str]) -> None:
    """Refuse a dataset that `trainer` would train on otherwise than `omniprep train`.

    Args:
        dataset: The bins.
        trainer: Its name, for the message.
        model_type: `model_type` of the checkpoint's config.json.
        arguments: Names of media arguments that the trainer passes on to its model.

    Raises:
        OmniprepError: Another family's model, a dataset with loss weights or preference rows, or media that would be
            lost.
    """
    refuse_preferences(dataset, trainer)
    built = dataset.record.model_types
    if built and model_type not in built:
        raise OmniprepError(
            f"{dataset.uri} was built for model type {' or '.join(built)}, not {model_type!r}: build it with --model "
            "of this checkpoint, or give the checkpoint that it was built for"
        )
    if dataset.layout.weighted:
        raise OmniprepError(
            f"{dataset.uri} has loss weights, which {trainer} does not apply: build it without a weighted --loss-scale"
        )
    counts = dataset.record.counts
    lost = [
        column
        for column in dataset.layout.columns
        if column.load != "none"
        and column.name not in arguments
        and (counts is None or counts.items.get(column.modality, 0))  # declared by the family, held by no row
    ]
    if lost:
        raise OmniprepError(
            f"{trainer} passes no {', '.join(column.name for column in lost)} on to its model, so that the "
            f"{lost[0].modality} of {dataset.uri} would be lost: use omniprep.loader in a loop of your own"
        )


def whole_bin(dataset: PackedDataset, index: int) -> dict[str, Any]:
    """Bin `index` as `omniprep.collate` gives it, its pixels as float32."""
    return collate([dataset[index]])


def mrope_positions(batch: dict[str, Any]) -> Tensor:
    """The positions that the rotary embedding takes: int64 (3, L) of m-rope, else (L)."""
    positions: Tensor = batch["position_ids"]
    return positions[1:, 0] if positions.ndim == 3 else positions[0]


def next_labels(batch: dict[str, Any]) -> Tensor:
    """Labels int64 (L) of the token behind each; -100 at the end of a row, which predicts nothing."""
    shifted = torch.roll(batch["labels"][0], -1)
    shifted[batch["cu_seq_lens_q"][1:].long() - 1] = IGNORED
    return shifted


def placeholder_mask(dataset: PackedDataset, input_ids: Tensor, modality: str) -> Tensor:
    """Where tokens of a modality's placeholder stand.

    Raises:
        OmniprepError: The manifest is from before it named them.
    """
    if modality not in dataset.record.placeholders:
        raise OmniprepError(
            f"{dataset.uri}: was built before manifests named the placeholder of each modality; build it again"
        )
    return input_ids == dataset.record.placeholders[modality]
