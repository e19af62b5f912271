"""A rank's share of each bin, for context parallelism.

Each row is cut into 2*size chunks of equal length, of which rank i takes the i-th from the front and the i-th from the
end: as Megatron-LM and transformer-engine share out packed rows, since with causal attention every rank then has as
much to do. Rows must have lengths that divide (`omniprep build --pad-rows-to`).

A rank gets the media that its tokens stand for, and no others: whole images and videos of which it has a token, and of
modalities whose items have no size in tokens that the shard tells (sounds), all items of a row of which it has one.
"""

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import Dataset

from omniprep.data.arguments import to_model
from omniprep.data.collate import stack
from omniprep.errors import OmniprepError
from omniprep.shards.content import item_sizes
from omniprep.shards.cut import cut_row
from omniprep.shards.manifest import Manifest
from omniprep.shards.schema import Layout

IGNORED = -100


class BinSource(Protocol):
    """What a slice asks of a `PackedDataset`."""

    uri: str
    record: Manifest

    @property
    def layout(self) -> Layout:
        """What the shards declare."""

    def __len__(self) -> int:
        """Bins."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The arrays of one bin."""


class SlicedDataset(Dataset[dict[str, Any]]):
    """Item i is this rank's share of bin i; what `ds.slice(rank, size)` gives.

    Args:
        dataset: The bins.
        rank: Of the group of ranks that share each bin, 0 .. size-1.
        size: Ranks of that group.

    Raises:
        OmniprepError: No such rank.
    """

    def __init__(self, dataset: BinSource, rank: int, size: int) -> None:
        if not 0 <= rank < size:
            raise OmniprepError(f"slice: rank {rank} of {size}")
        self.dataset, self.rank, self.size = dataset, rank, size

    def __len__(self) -> int:
        """Bins."""
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The share of a bin of L tokens.

        Returns:
            input_ids, and position_ids as `collate` gives them: (…, L/size). shift_labels int64 (1, L/size): the label
            of the token behind each, -100 at the end of a row, since that token may be another rank's. loss_scale
            float32, likewise, where the dataset is weighted. token_index int64 (L/size): where the tokens stand in the
            bin. cu_seq_lens_q, cu_seq_lens_k, max_length_q, max_length_k: of the whole bin. Media arguments as
            `collate` gives them, of the items that are here. media_index: modality → int64 (placeholders of this
            share): which of the embeddings of those items each placeholder takes, in order.

        Raises:
            OmniprepError: A row is no multiple of 2*size long; it was built before placeholders were written down; or
                the dataset has preference rows, whose losses are sums over whole answers.
        """
        item = self.dataset[index]
        if "pair_ids" in item:
            raise OmniprepError(
                f"{self.dataset.uri}: ds.slice cuts each row among ranks, but a preference loss sums over whole "
                "answers: train preference rows without context parallelism"
            )
        borders = item["cu_seqlens"].astype(np.int64)
        chosen = self._tokens(np.diff(borders), index)
        here = [chosen[row] + borders[row] for row in range(len(chosen))]
        rows: list[dict[str, Any]] = []
        numbers: dict[str, list[tuple[np.ndarray, int]]] = {}
        for row, tokens in enumerate(chosen):
            cut = cut_row(item, row)
            for modality, index_in_row in self._keep_media(cut, tokens).items():
                numbers.setdefault(modality, []).append(index_in_row)
            rows.append(cut)
        result = to_model(stack(rows))
        token_index = torch.from_numpy(np.concatenate(here))
        labels = result.pop("labels").as_subclass(torch.Tensor)
        result.pop("use_cache")
        result["shift_labels"] = _shifted(labels, IGNORED, borders)[:, token_index]
        if "loss_scale" in result:
            result["loss_scale"] = _shifted(result["loss_scale"], 0, borders)[:, token_index]
        per_token = {c.name for c in self.dataset.layout.columns if c.kind == "tokens"}
        for name in ("input_ids", "position_ids", *(per_token & result.keys())):
            result[name] = result[name][..., token_index]
        result["token_index"] = token_index
        result["media_index"] = {name: torch.from_numpy(_joined(parts)) for name, parts in numbers.items()}
        return result

    def _tokens(self, lengths: np.ndarray, index: int) -> list[np.ndarray]:
        """Positions in each row that are this rank's, ascending."""
        chunks = 2 * self.size
        if (lengths % chunks).any():
            bad = int(np.flatnonzero(lengths % chunks)[0])
            raise OmniprepError(
                f"bin {index} of {self.dataset.uri}: its row {bad} of {lengths[bad]} tokens cannot be cut into "
                f"{chunks} equal chunks; build with --pad-rows-to {chunks} (with tensor parallelism: the least common "
                f"multiple of {chunks} and {self.size} * TP)"
            )
        result = []
        for length in lengths.tolist():
            chunk = length // chunks
            front, back = self.rank * chunk, (chunks - 1 - self.rank) * chunk
            result.append(np.concatenate([np.arange(front, front + chunk), np.arange(back, back + chunk)]))
        return result

    def _keep_media(self, row: dict[str, Any], tokens: np.ndarray) -> dict[str, tuple[np.ndarray, int]]:
        """Take the media that `tokens` of a row do not stand for out of it.

        Returns:
            For each modality: the embedding of the kept items that each placeholder among `tokens` takes, and how many
            embeddings those items have.
        """
        used: dict[str, tuple[np.ndarray, int]] = {}
        row["row_items"] = row["row_items"].copy()
        for column, modality in enumerate(row["layout"].modalities):
            items = int(row["row_items"][0, column])
            if not items:
                continue
            places = np.flatnonzero(row["input_ids"] == self._placeholder(row, modality))
            mine = np.flatnonzero(np.isin(places, tokens))
            sizes = _item_tokens(row, modality, items, len(places))
            borders = np.concatenate([[0], np.cumsum(sizes)])
            owner = np.searchsorted(borders, mine, side="right") - 1
            kept = np.isin(np.arange(len(sizes)), owner)
            before = np.concatenate([[0], np.cumsum(np.where(kept, 0, sizes))])  # tokens of items that are left out
            used[modality] = (mine - before[owner], int(sizes[kept].sum()))
            if len(sizes) != items:  # known together alone
                kept = np.full(items, kept[0])
            _take_items(row, modality, kept)
            row["row_items"][0, column] = kept.sum()
        return used

    def _placeholder(self, row: Mapping[str, Any], modality: str) -> int:
        placeholders = self.dataset.record.placeholders
        if modality not in placeholders:
            raise OmniprepError(
                f"{self.dataset.uri}: was built before manifests named the placeholder of each modality; build it again"
            )
        shared = [
            other
            for other, count in zip(row["layout"].modalities, row["row_items"][0], strict=True)
            if count and other != modality and placeholders.get(other) == placeholders[modality]
        ]
        if shared:
            raise OmniprepError(
                f"{self.dataset.uri}: {modality} and {shared[0]} have the same placeholder token in this family, so "
                "that a row with both cannot be cut"
            )
        return placeholders[modality]


def _item_tokens(row: Mapping[str, Any], modality: str, items: int, placeholders: int) -> np.ndarray:
    """Tokens of each item of a row; one number for all of them where the shard does not tell them apart."""
    for column in row["columns"]:
        if column.modality == modality and column.load == "patches" and column.name in row:
            merged = int(column.params.get("merge_size", 2)) ** 2
            tokens = item_sizes(column, row) // merged
            if len(tokens) == items and tokens.sum() == placeholders:
                return np.asarray(tokens, np.int64)
    return np.array([placeholders], np.int64)


def _take_items(row: dict[str, Any], modality: str, kept: np.ndarray) -> None:
    """Leave the chosen items of a modality in the columns of a row."""
    columns = [column for column in row["columns"] if column.modality == modality and column.kind != "tokens"]
    if not kept.any():
        for column in columns:
            row.pop(column.name, None)
        return
    # Flat columns first: their sizes stand in the others.
    for column in sorted(columns, key=lambda column: column.kind != "flat"):
        if column.name not in row or column.kind == "rows":
            continue
        values = row[column.name]
        if column.kind == "flat":
            sizes = item_sizes(column, row) * (column.unit if column.load == "mel" else 1)
            row[column.name] = values[np.repeat(kept, sizes)]
        else:
            row[column.name] = values[kept]


def _shifted(values: torch.Tensor, fill: int, borders: np.ndarray) -> torch.Tensor:
    """(1, L) of the next token; `fill` at the end of each row."""
    shifted = torch.roll(values, -1, dims=1)
    shifted[:, borders[1:] - 1] = fill
    return shifted


def _joined(parts: list[tuple[np.ndarray, int]]) -> np.ndarray:
    """Indices within rows as indices within the bin."""
    before = np.cumsum([0, *(count for _, count in parts)])
    return np.concatenate([index + start for (index, _), start in zip(parts, before, strict=False)])
