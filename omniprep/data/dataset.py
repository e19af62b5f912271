"""A built dataset as a map-style torch dataset."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils.data import Dataset

from omniprep.data.collate import check_alike, collate
from omniprep.data.context_parallel import SlicedDataset
from omniprep.shards.dataset import StoredDataset


class PackedDataset(StoredDataset, Dataset[dict[str, Any]]):
    """The bins of a dataset that `omniprep build` finished.

    Args:
        uri: Its folder: a path, s3://..., hf://datasets/ORG/NAME, or any other fsspec URI.
        verify: When the checksum of a bin is compared: the first time that a process reads it (forked processes know
            what their parent has read), always, or never.
        check_pixels: When pixels that are made of files (--pixel-codec source) are compared with the hashes of those
            that the build saw: likewise.
        cache_dir: Local folder in which bins of a remote dataset are kept, so that only the first epoch reads the
            store; processes may share it.
        cache_bytes: Bound of that folder; the bins used longest ago go first.

    Raises:
        OmniprepError: There is no finished dataset, or one of a newer format.
    """

    def collate(
        self, bins: Sequence[Mapping[str, Any]], device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> dict[str, Any]:  # fmt: skip
        """As `omniprep.collate`, for bins of this dataset alone, and with nothing that a model would take and ignore.

        Loss weights are in `labels.loss_scale` alone: `omniprep.weighted_loss` reads them there.

        Raises:
            OmniprepError: As `omniprep.collate`; or a bin is of a dataset of another family, or of other media.
        """
        check_alike([{"layout": self.layout}, *bins])
        batch = collate(bins, device, dtype)
        batch.pop("loss_scale", None)
        return batch

    def slice(self, rank: int, size: int) -> SlicedDataset:
        """This rank's zigzag share of each bin, for context parallelism (`omniprep.data.context_parallel`)."""
        return SlicedDataset(self, rank, size)

    def row(self, source: str | os.PathLike[str], line: int) -> dict[str, Any]:
        """Arguments of the model's forward for one input row alone, as `collate` makes them for bins.

        Args:
            source: The input as it was given to the build.
            line: Line of the row, from 1 (in a JSON array: the number of the element).

        Raises:
            OmniprepError: There is no such row, or it was rejected (the text has the code).
            DamagedDataError: The bin holds another row, or none, at the offset that rows.parquet gives.
        """
        return collate([self.stored_row(self.row_number(os.fspath(source), line))])
