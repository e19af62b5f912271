"""From bins to the tensors of a forward pass: what a reader process does, and what is left for the device.

A reader makes one batch of host tensors (pixels still uint8, spectrograms bf16) and finds the positions to predict
from, so that the device never waits for a count. `BatchLoader` measures how long the training loop stood waiting; on a
GPU the next batches are copied meanwhile (prefetch.py).
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from omniprep.data import PackedDataset, stack, to_model
from omniprep.data.loss import LOSS_FIELDS, predicted
from omniprep.data.objective import Objective
from omniprep.data.prefetch import HostBatch, OneBuffer, on_device, one_buffer
from omniprep.data.reading import one_line_errors
from omniprep.errors import OmniprepError
from omniprep.modalities import row_kinds
from omniprep.train.compiling import padded
from omniprep.train.preference import mismatched_batch, sides_of
from omniprep.train.stream import BinStream
from omniprep.train.tower_numbers import TowerGeometry, bin_numbers

IGNORED = -100


class Bins(Dataset[dict[str, Any]]):
    """Several datasets as one; a number `~i` gives bin i with every label taken away.

    `bins` are the numbers of those that take part (None: all); `sources` the number of each row's source.
    """

    def __init__(
        self,
        datasets: Sequence[PackedDataset],
        bins: Sequence[np.ndarray | None] | None = None,
        sources: Sequence[np.ndarray] = (),
    ) -> None:
        self.datasets, self.sources = list(datasets), sources
        chosen = bins or [None] * len(self.datasets)
        self.bins = [np.arange(len(d)) if b is None else b for d, b in zip(self.datasets, chosen, strict=True)]
        self.begins = np.concatenate([[0], np.cumsum([len(b) for b in self.bins])])

    def __len__(self) -> int:
        """Bins that take part."""
        return int(self.begins[-1])

    def __getitem__(self, number: int) -> dict[str, Any]:
        """A bin as `PackedDataset` gives it, with `sources` (R) where they are wanted."""
        bin_number = number if number >= 0 else ~number
        dataset = int(np.searchsorted(self.begins, bin_number, side="right")) - 1
        item = dict(self.datasets[dataset][int(self.bins[dataset][bin_number - self.begins[dataset]])])
        if number < 0:
            item["labels"] = np.full_like(item["labels"], IGNORED)
        if self.sources:
            item["sources"] = self.sources[dataset][item["row_ids"]]
        return item


def number_sources(datasets: Sequence[PackedDataset]) -> tuple[tuple[str, ...], list[np.ndarray]]:
    """Names of all sources, as short as they differ, and for each dataset the number of each row's source.

    Reads rows.parquet: 10,000,000 rows are 20 MB of numbers, and some seconds.
    """
    paths: list[str] = []
    numbers = []
    for dataset in datasets:
        column = dataset.rows["source"].unify_dictionaries().combine_chunks()
        names = column.dictionary.to_pylist()
        paths += [n for n in names if n not in paths]
        numbers.append(np.array([paths.index(n) for n in names], np.int16)[column.indices.to_numpy()])
    stems = [Path(p).name.split(".")[0] for p in paths]
    return tuple(s if stems.count(s) == 1 else p for s, p in zip(stems, paths, strict=True)), numbers


class Batcher:
    """Makes one batch of bins (runs in reader processes).

    Args:
        modalities: Names of the columns of row_items, to tell the kinds of rows apart.
        sources: Names of the sources, where losses are wanted by source.
        length: Pad every batch to so many tokens (0: not).

    Attributes:
        geometry: Of the towers of the model that will take the batches, for their `BinNumbers`; None until the model
            is loaded, and for models that take no numbers.
        objective: What is learned from preference rows; None where answers are learned.
        placeholders: Ids of the tokens that stand for media, for an objective.
        fillers: Modality → a short row with an item of it. It goes behind the rows of a batch that has none, without
            targets, for a model of any class (any_class.py) whose towers must run in every pass.
    """

    geometry: TowerGeometry | None = None
    objective: Objective | None = None
    placeholders: tuple[int, ...] = ()
    fillers: Mapping[str, dict[str, Any]] = MappingProxyType({})

    def __init__(self, modalities: Sequence[str], sources: Sequence[str] = (), length: int = 0) -> None:
        self.modalities, self.sources, self.length = tuple(modalities), tuple(sources), length
        self.kinds = ("text", *self.modalities, "mixed")

    def __call__(self, bins: list[dict[str, Any]]) -> dict[str, Any]:
        """Host tensors.

        Returns:
            stacked: What `omniprep.data.stack` gives.
            numbers: `BinNumbers` of it, so that no forward pass waits for the device to know them.
            positions, targets (K): Where to predict what. weights (K) or None. kinds (K): index into `kinds` of each
            target's row. sources (K): likewise, or None.
            tokens: Tokens of the batch, without padding. sequences: rows, or answers, of each bin.
            sides: What the objective compares, and mismatched: the batch by which KTO estimates the divergence; each
            None where it is not needed.
        """
        labels = torch.from_numpy(np.concatenate([b["labels"] for b in bins]).astype(np.int64))
        scale = None
        if "loss_scale" in bins[0]:
            scale = torch.from_numpy(np.concatenate([b["loss_scale"] for b in bins]).astype(np.float32))
        sides = None
        if self.objective is None:
            positions, targets, weights = predicted(labels, scale)
        else:
            sides = sides_of(self.objective, bins, self.placeholders)
            positions, targets, weights = sides.positions, sides.targets, None
        kind_of_row = np.concatenate([row_kinds(np.asarray(b["row_items"]).T) for b in bins])
        lengths = np.concatenate([np.diff(b["cu_seqlens"]) for b in bins])
        kinds = torch.from_numpy(np.repeat(kind_of_row, lengths))[positions + 1]
        sources = None
        if "sources" in bins[0]:
            row_sources = np.concatenate([b["sources"] for b in bins]).astype(np.int64)
            sources = torch.from_numpy(np.repeat(row_sources, lengths))[positions + 1]
        filled = self.filled(bins)
        stacked, other = padded(stack(filled), self.length), None
        if self.objective is not None and self.objective.needs_divergence:
            other = mismatched_batch(
                self.objective, bins, filled[len(bins) :], stacked, self.geometry, self.placeholders, self.length
            )
        return {
            "stacked": stacked,
            "numbers": bin_numbers(stacked, self.geometry),
            "positions": positions,
            "targets": targets,
            "weights": weights,
            "kinds": kinds,
            "sources": sources,
            "tokens": len(labels),
            "sequences": tuple(len(b["row_ids"]) for b in bins),
            "sides": sides,
            "mismatched": other,
        }

    def filled(self, bins: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The bins, and a filler for each modality that they do not have."""
        filled = list(bins)
        for modality, filler in self.fillers.items():
            column = self.modalities.index(modality)
            if not any(np.asarray(b["row_items"]).reshape(-1, len(self.modalities))[:, column].any() for b in filled):
                filled.append(filler)
        return filled


class BufferedBatcher:
    """A `Batcher` whose batches are pinned as one buffer."""

    def __init__(self, batcher: Batcher) -> None:
        self.batcher = batcher

    def __call__(self, bins: list[dict[str, Any]]) -> OneBuffer | HostBatch:
        """As the batcher."""
        return one_buffer(self.batcher(bins))


def make_loader(bins: Bins, stream: BinStream, batcher: Batcher, num_workers: int, pin: bool) -> DataLoader[Any]:
    """A DataLoader with its own random generator, so that reading draws nothing from the one that training resumes.

    With `pin` it gives `OneBuffer`s.
    """
    return DataLoader(
        bins,
        batch_sampler=stream,
        collate_fn=BufferedBatcher(batcher) if pin else batcher,
        num_workers=num_workers,
        pin_memory=pin,
        generator=torch.Generator(),
        prefetch_factor=4 if num_workers else None,
    )


class BatchLoader:
    """Hands out batches and keeps the time that was waited for them.

    `length` are the forward passes of the whole run, those before a resume included: the Trainer's epoch is of it.
    """

    def __init__(self, loader: DataLoader[Any], length: int, device: torch.device) -> None:
        self.loader, self.length, self.device = loader, length, device
        self.waited = 0.0

    def __len__(self) -> int:
        """Forward passes of the whole run."""
        return self.length

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Batches; with a GPU, on it."""
        source: Iterator[dict[str, Any]] = iter(self.loader)
        if self.device.type == "cuda":
            source = on_device(source, self.device)
        source = one_line_errors(source)
        while True:
            began = time.perf_counter()
            batch = next(source, None)
            self.waited += time.perf_counter() - began
            if batch is None:
                return
            yield batch


def forward_kwargs(batch: dict[str, Any], device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """The forward pass's keyword arguments: floats from stored media, all on the device."""
    kwargs: dict[str, Any] = to_model(batch["stacked"], device, dtype)
    if "input_ids" not in kwargs:
        raise OmniprepError("the dataset gives no input_ids")
    for name in LOSS_FIELDS:
        kwargs.pop(name, None)
    return kwargs
