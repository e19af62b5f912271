"""Placeholders → the tokens of their items: ids grow, labels there are -100, weights are the placeholder's own.

Source: ms-swift 3.9.3 base.py _extend_tokens. One numpy pass over the row.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int32]
Weights = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Expansion:
    """Replace the next occurrence of `target` in a row by `ids` (labels -100).

    Expansions with the same target apply to its occurrences in order. `is_embed` (a bool for each of `ids`) marks the
    tokens that the model replaces by the item's embeddings, where not all are: truncation counts the others as text.
    """

    modality: str
    item: int
    target: list[int]
    ids: Any
    is_embed: Any = None


def expand(ids: Ids, weights: Weights, expansions: Sequence[Expansion]) -> tuple[Ids, Weights, NDArray[np.bool_]]:
    """Replace placeholders by their expansions: (ids, weights, is_media) of the grown row."""
    if not expansions:
        return ids, weights, np.zeros(len(ids), bool)
    by_target: dict[int, list[Expansion]] = {}
    for expansion in expansions:
        by_target.setdefault(int(expansion.target[0]), []).append(expansion)
    repeats = np.ones(len(ids), np.int64)
    expanded: list[tuple[int, Ids]] = []
    for target, group in by_target.items():
        placeholders = np.flatnonzero(ids == target)
        assert len(placeholders) == len(group), (target, len(placeholders), len(group))
        for index, expansion in zip(placeholders.tolist(), group, strict=True):
            tokens = np.asarray(expansion.ids, np.int32)
            repeats[index] = len(tokens)
            expanded.append((index, tokens))
    starts = np.cumsum(repeats) - repeats
    grown, grown_weights = np.repeat(ids, repeats), np.repeat(weights, repeats)
    is_media = np.zeros(len(grown), bool)
    for index, tokens in expanded:
        span = slice(starts[index], starts[index] + len(tokens))
        grown[span] = tokens
        is_media[span] = True
    return grown, grown_weights, is_media
