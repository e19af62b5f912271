"""Bins whose prompts have the answers of other rows, by which KTO estimates how far a model is from its reference."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from omniprep.errors import OmniprepError

IGNORED = -100


def mismatched(item: Mapping[str, Any], placeholders: Sequence[int] = ()) -> tuple[dict[str, Any], np.ndarray]:
    """A bin whose prompts have the answers of other rows, by which KTO estimates the divergence from the reference.

    The prompt of a sequence is what stands before its first labeled token, the answer all from there on. Each sequence
    gets the answer of the one before it in the bin, the first that of the last (TRL cycles a batch likewise); of pairs
    each side gets that of the same side of the pair before it, so that an answer never meets its own prompt. The bin
    keeps its length and its media.

    Args:
        item: A bin of a PackedDataset.
        placeholders: Ids of the tokens that stand for media (`ds.record.placeholders.values()`).

    Returns:
        The bin, its `reference_logps` those of the mismatched answers (`reference_kl_logps`); and int64: its sequences
        that have an answer of another row (none where the bin has one row alone).

    Raises:
        OmniprepError: An answer has media in it, which cannot go to another prompt.
    """
    borders, labels = np.asarray(item["cu_seqlens"]), np.asarray(item["labels"])
    spans = list(zip(borders[:-1].tolist(), borders[1:].tolist(), strict=True))
    begins = [start + int(np.argmax(np.append(labels[start:end], 0) != IGNORED)) for start, end in spans]
    donors = np.arange(len(spans))
    answered = np.array([begin < end for begin, (_, end) in zip(begins, spans, strict=True)], bool)
    paired = np.asarray(item["pair_ids"]) >= 0
    sides = [paired & (np.asarray(item["chosen"]) == side) for side in (1, 0)]
    for group in (*sides, ~paired):
        members = np.flatnonzero(group & answered)
        donors[members] = np.roll(members, 1)
    parts = [
        (np.arange(start, begin), np.arange(begins[donor], spans[donor][1]))
        for (start, _), begin, donor in zip(spans, begins, donors.tolist(), strict=True)
    ]
    taken = np.concatenate([answer for _, answer in parts])
    if len(placeholders) and np.isin(np.asarray(item["input_ids"])[taken], list(placeholders)).any():
        raise OmniprepError(
            "objective kto: an answer has media behind its first labeled token, which another prompt cannot get; "
            "build with --loss-scale last_round, or take --loss-type apo_zero_unpaired"
        )
    source = np.concatenate([tokens for part in parts for tokens in part])
    moved = dict(item)
    names = [c.name for c in item["columns"] if c.kind == "tokens" and c.name in item]
    for name in ("input_ids", "labels", "loss_scale", *names):
        if name in item:
            moved[name] = np.asarray(item[name])[source]
    lengths = [len(prompt) + len(answer) for prompt, answer in parts]
    moved["cu_seqlens"] = np.concatenate([[0], np.cumsum(lengths)]).astype(borders.dtype)
    if "position_ids" in item:
        positions = np.asarray(item["position_ids"])
        shifts = [
            np.repeat(positions[:, begin : begin + 1] - positions[:, [begins[donor]]], len(answer), 1)
            if len(answer)
            else positions[:, :0]
            for begin, donor, (_, answer) in zip(begins, donors.tolist(), parts, strict=True)
        ]
        still = [np.zeros((len(positions), len(prompt)), positions.dtype) for prompt, _ in parts]
        moved["position_ids"] = positions[:, source] + np.concatenate(
            [block for pair in zip(still, shifts, strict=True) for block in pair], 1
        ).astype(positions.dtype)
    moved.pop("reference_logps", None)
    if (stored := moved.pop("reference_kl_logps", None)) is not None:
        moved["reference_logps"] = stored
    return moved, np.flatnonzero(donors != np.arange(len(spans)))
