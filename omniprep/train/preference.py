"""Preferences in training: what a batch holds for its objective, and what is checked before a run.

The log-probabilities of a reference are stored by `omniprep score`, so no second model is in memory. KTO's estimate of
the divergence needs a second forward pass, without gradients, over the same media with answers of other rows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from omniprep.data import PackedDataset, stack
from omniprep.data.host_numbers import BinNumbers
from omniprep.data.mismatched import mismatched
from omniprep.data.objective import Objective
from omniprep.data.preference import Compared, compared
from omniprep.errors import OmniprepError
from omniprep.shards.pairs import batch_pairs
from omniprep.shards.references import ReferenceModel, read_references
from omniprep.train.compiling import padded
from omniprep.train.tower_numbers import TowerGeometry, bin_numbers


@dataclass(frozen=True, kw_only=True, slots=True)
class Mismatched:
    """What differs in the forward pass of mismatched answers; its media are those of the batch itself.

    Attributes:
        stacked: Tokens and borders, as `stack` gives them.
        numbers: Of the batch with these tokens.
        sides: Its targets.
        donors: int64: the sequences that have an answer of another row.
    """

    stacked: Mapping[str, Any]
    numbers: BinNumbers
    sides: Compared
    donors: Tensor


def sides_of(objective: Objective, bins: Sequence[Mapping[str, Any]], placeholders: Sequence[int]) -> Compared:
    """What an objective takes of some bins laid end to end."""

    def joined(name: str) -> np.ndarray:
        return np.concatenate([np.asarray(item[name]) for item in bins]).astype(np.int64)

    borders = np.concatenate([[0], np.cumsum(np.concatenate([np.diff(item["cu_seqlens"]) for item in bins]))])
    reference = None
    if objective.needs_reference and all("reference_logps" in item for item in bins):
        reference = torch.from_numpy(np.concatenate([item["reference_logps"] for item in bins]).astype(np.float32))
    pair_ids, chosen = batch_pairs(bins)
    return compared(
        objective,
        labels=torch.from_numpy(joined("labels")),
        borders=torch.from_numpy(borders),
        pair_ids=torch.from_numpy(pair_ids),
        chosen=torch.from_numpy(chosen),
        reference=reference,
        input_ids=torch.from_numpy(joined("input_ids")),
        placeholders=placeholders,
    )


def mismatched_batch(
    objective: Objective,
    bins: Sequence[dict[str, Any]],
    fillers: Sequence[dict[str, Any]],
    stacked: Mapping[str, Any],
    geometry: TowerGeometry | None,
    placeholders: Sequence[int],
    length: int,
) -> Mismatched:
    """The batch of mismatched answers of `bins`, whose own batch is `stacked`; `fillers` lie behind them."""
    moved, donors, before = list[dict[str, Any]](), list[np.ndarray](), 0
    for item in bins:
        other, own = mismatched(item, placeholders)
        moved.append(other)
        donors.append(own + before)
        before += len(item["row_ids"])
    tokens = padded(stack([without_media(item) for item in (*moved, *fillers)]), length)
    return Mismatched(
        stacked=tokens,
        numbers=bin_numbers({**stacked, **tokens}, geometry),
        sides=sides_of(objective, moved, placeholders),
        donors=torch.from_numpy(np.concatenate(donors)),
    )


def without_media(item: Mapping[str, Any]) -> dict[str, Any]:
    """A bin with its tokens alone."""
    media = {column.name for column in item["columns"] if column.kind != "tokens"} | {"files"}
    return {name: value for name, value in item.items() if name not in media}


def step_counts(batches: Sequence[Mapping[str, Any]]) -> tuple[int, int]:
    """Pairs (kto: sequences) and targets of the cross entropy of some batches."""
    counts = [batch["sides"].counts for batch in batches]
    return sum(pairs for pairs, _ in counts), sum(tokens for _, tokens in counts)


def without_dropout(model: nn.Module) -> None:
    """Turn dropout off, that of adapters too, as TRL does: the reference was computed without."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0


def placeholder_ids(datasets: Sequence[PackedDataset]) -> tuple[int, ...]:
    """Ids of the tokens that stand for media."""
    return tuple(sorted({token for dataset in datasets for token in dataset.record.placeholders.values()}))


# What is checked before a run


def check_objective(datasets: Sequence[PackedDataset], objective: Objective | None) -> None:
    """Refuse datasets that hold other rows than the objective learns from.

    Raises:
        OmniprepError: Preference rows without an objective for them, or rows that it has no loss for.
    """
    for dataset in datasets:
        uri, counts = dataset.uri, dict(dataset.record.counts.preference) if dataset.record.counts else {}
        held = ", ".join(f"{count:,} {kind}" for kind, count in counts.items() if count)
        if not dataset.layout.preferences:
            if objective is not None:
                raise OmniprepError(
                    f"{uri}: built of rows without preferences: a preference objective needs rows with "
                    "rejected_response (or chosen and rejected), or label for kto; answers alone are for "
                    "omniprep train --objective sft"
                )
            continue
        if objective is None:
            raise OmniprepError(
                f"{uri}: holds preference rows ({held}): train with --objective dpo, orpo or kto; or build with "
                "--preference ignore to learn the preferred answers alone"
            )
        if dataset.layout.weighted:
            raise OmniprepError(
                f"{uri}: built with weights of the loss (--loss-scale), and a log-probability of an answer has none: "
                "build it with --loss-scale last_round"
            )
        single = counts.get("desirable", 0) + counts.get("undesirable", 0)
        if counts.get("ordinary"):
            raise OmniprepError(
                f"{uri}: holds rows without a verdict ({held}), for which --objective {objective.name} has no loss: "
                "build with --preference pairs or kto"
            )
        if single and objective.name != "kto":
            raise OmniprepError(
                f"{uri}: holds single verdicts ({held}), and --objective {objective.name} is of pairs: train with "
                "--objective kto"
            )


def check_references(
    datasets: Sequence[PackedDataset], objective: Objective, model: str, weights: str, dtype: str, *, other: bool
) -> list[str]:
    """Refuse datasets whose reference log-probabilities are missing, or of another model than training begins with.

    Args:
        datasets: Those trained and evaluated on.
        objective: One that needs a reference.
        model: Where training begins, for messages.
        weights: `weights_hash` of it.
        dtype: Type of the weights that will train, such as bfloat16.
        other: Whether another model may have made them.

    Returns:
        What to say about them.
    """
    told = []
    for dataset in datasets:
        uri, stored = dataset.uri, dataset.references
        command = f"omniprep score {uri} --model {model}" + (" --objective kto" if objective.needs_divergence else "")
        if stored is None:
            why = "there are none"
            if read_references(uri, len(dataset)) is not None:
                why = "those that are there were computed before the dataset changed"
            raise OmniprepError(
                f"{uri}: --objective {objective.name} needs log-probabilities of a reference model, and {why}: run "
                f"{command}"
            )
        if objective.needs_divergence and stored.kl_logps is None:
            raise OmniprepError(
                f"{uri}: its reference log-probabilities are without those of mismatched answers, which --objective "
                f"kto needs: run {command} --overwrite"
            )
        maker = stored.made_by
        if (maker.weights, maker.adapter) != (weights, ""):
            text = f"{uri}: its reference log-probabilities are of {described(maker)}, training begins with {model}"
            if not other:
                raise OmniprepError(
                    f"{text}, which has other weights: run {command} --overwrite, or give --other-reference"
                )
            told.append(text)
        if maker.dtype != dtype:
            told.append(
                f"{uri}: its reference log-probabilities were computed in {maker.dtype}, training is in {dtype}: "
                "margins begin at the difference of rounding, not at 0"
            )
    return told


def described(maker: ReferenceModel) -> str:
    """A reference model, for messages."""
    return f"{maker.model!r:.200}" + (" with an adapter" if maker.adapter else "")


def mismatch_shares(datasets: Sequence[PackedDataset]) -> tuple[int, int]:
    """Bins of at least two rows, in which an answer can go to another prompt, and all bins."""
    rows = np.concatenate([dataset.index["rows"] for dataset in datasets])
    return int((rows > 1).sum()), len(rows)


def check_mismatches(datasets: Sequence[PackedDataset]) -> list[str]:
    """Refuse a dataset in which every bin has one row, so that KTO's divergence cannot be estimated."""
    usable, bins = mismatch_shares(datasets)
    if not usable:
        raise OmniprepError(
            "--objective kto estimates the divergence on answers of other rows of the bin, and every bin has one row: "
            "omniprep repack --bin-length to longer bins, or --loss-type apo_zero_unpaired, which needs no estimate"
        )
    if usable < bins:
        return [f"{bins - usable:,} of {bins:,} bins have one row: they add nothing to the estimate of the divergence"]
    return []
