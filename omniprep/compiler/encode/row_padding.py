"""Pad tokens behind rows that are copied (`omniprep repack --pad-rows-to`): those that a build puts there.

compiler/plan/padding.py pads the rows of a build. To pad a row twice, to multiples of M and then of a multiple of M,
gives what padding it once to the larger one does, so datasets that are padded already may be padded further.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omniprep.compiler.duplicates import HASH_COLUMNS
from omniprep.errors import OmniprepError, UsageError
from omniprep.rows.preference import Verdict
from omniprep.shards.dataset import StoredDataset


@dataclass(frozen=True, slots=True)
class RowPadding:
    """How rows are padded.

    Args:
        multiple: Tokens that a row's length is a multiple of; 0: rows stay as they are.
        token: Id of the pad token.
    """

    multiple: int = 0
    token: int = 0

    def padded(self, lengths: NDArray[Any]) -> NDArray[Any]:
        """Lengths of rows with their pad tokens."""
        return lengths + (-lengths % self.multiple) if self.multiple else lengths

    def missing(self, length: int) -> int:
        """Pad tokens of a row."""
        return -length % self.multiple if self.multiple else 0


NO_PADDING = RowPadding()


def following(positions: NDArray[np.int32], missing: int) -> NDArray[np.int32]:
    """M-rope positions (3, L) of a row and of its pad tokens: they go on from those of the row, as text."""
    if not missing:
        return positions
    behind = positions.max() + 1 + np.arange(missing, dtype=np.int32)
    return np.concatenate([positions, np.broadcast_to(behind, (3, missing))], axis=1)


def repack_padding(datasets: Sequence[StoredDataset], multiple: int | None) -> RowPadding:
    """The padding of a repack; refuses what would not become what a build makes.

    Args:
        datasets: Those that are repacked.
        multiple: Of `--pad-rows-to`; None: rows are copied as they are.

    Raises:
        OmniprepError: Datasets that are padded otherwise, have pairs or hashes of rows, or do not name their pad token.
    """
    first = datasets[0]
    if multiple is None:
        for dataset in datasets:
            if dataset.record.config.pad_rows_to != first.record.config.pad_rows_to:
                raise OmniprepError(
                    f"{dataset.uri}: its rows end in pad tokens to multiples of {dataset.record.config.pad_rows_to} "
                    f"(--pad-rows-to), those of {first.uri} of {first.record.config.pad_rows_to}; give --pad-rows-to a "
                    "multiple of both, or build both alike"
                )
        return NO_PADDING
    changed = [dataset for dataset in datasets if dataset.record.config.pad_rows_to != multiple]
    for dataset in changed:
        before = dataset.record.config.pad_rows_to
        if before > 1 and (multiple == 0 or multiple % before):
            raise UsageError(
                f"--pad-rows-to {multiple}: rows of {dataset.uri} end in pad tokens to multiples of {before}, which "
                f"are not taken away; give a multiple of {before}, or build it again"
            )
        if set(HASH_COLUMNS) & set(dataset.rows.column_names):
            raise UsageError(
                f"--pad-rows-to {multiple}: {dataset.uri} was built with --dedup exact, whose hashes of rows are of "
                "their tokens, pad tokens among them; build it again with both options"
            )
        if "verdict" in dataset.rows.column_names and Verdict.PAIR in dataset.rows["verdict"].unique().to_pylist():
            raise UsageError(
                f"--pad-rows-to {multiple}: {dataset.uri} has pairs, both answers of which would be padded; build it "
                "again with --pad-rows-to"
            )
        if dataset.record.pad_token is None and multiple > 1:
            raise OmniprepError(
                f"{dataset.uri}: names no pad token (its tokenizer has none, or it was built before manifests named "
                "it); build it again with --pad-rows-to"
            )
    token = first.record.pad_token
    return RowPadding(multiple, token) if changed and multiple > 1 and token is not None else NO_PADDING
