"""Truncates a row to its limit from the left or the right without cutting into media.

The reference expands media first, then keeps all media tokens and as many others as fit (ms-swift 3.9.3 base.py
_truncate). Its result is well formed only if no item loses the tokens that open and close it. Such rows are cut in the
same way here; the others are rejected (media_truncated).

Some items expand to more than media tokens: a video of Qwen3-VL has a time stamp and two framing tokens for each pair
of frames. The reference treats those as text, so they count against the room that is left, and a row that would lose
one of them is rejected.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from omniprep.errors import Reject, RejectCode
from omniprep.template.expand import Expansion


class Placeholder(NamedTuple):
    """The token of a row that stands for a media item before expansion."""

    token_index: int
    size: int
    """Tokens that it expands to."""
    before: int
    """Tokens in front of it that belong to the item (vision_start and the like)."""
    after: int


def kept_tokens(
    length: int,
    placeholders: Sequence[Placeholder],
    texts: NDArray[np.int64],
    limit: int,
    side: Literal["left", "right"],
) -> NDArray[np.bool_]:
    """Which tokens of a row stay, bool (length,), so that `limit` remain after expansion; rejects media_truncated.

    `texts` says how many of the tokens of each expansion are no media tokens.
    """
    indices = np.array([placeholder.token_index for placeholder in placeholders], np.int64)
    protected = sum(placeholder.size for placeholder in placeholders) - int(texts.sum())
    free = np.ones(length, np.int64)
    free[indices] = texts
    used = np.cumsum(free[::-1])[::-1] if side == "left" else np.cumsum(free)
    keep = used <= max(limit - protected, 0)
    keep[indices[texts == 0]] = True
    whole = all(keep[max(index - before, 0) : index + after + 1].all() for index, _, before, after in placeholders)
    if protected > limit or not whole:
        raise Reject(
            RejectCode.MEDIA_TRUNCATED, f"cutting the row to {limit} tokens from the {side} would cut into its media"
        )
    return keep


def text_tokens(ids: NDArray[np.int32], expansions: Sequence[Expansion]) -> NDArray[np.int64]:
    """(len(ids),): of each placeholder, how many tokens of its expansion are no media tokens (`is_embed`); else 0."""
    result = np.zeros(len(ids), np.int64)
    placeholders = {int(e.target[0]): iter(np.flatnonzero(ids == e.target[0]).tolist()) for e in expansions}
    for expansion in expansions:
        index = next(placeholders[int(expansion.target[0])])
        if expansion.is_embed is not None:
            result[index] = np.count_nonzero(~np.asarray(expansion.is_embed, bool))
    return result
