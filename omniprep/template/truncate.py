"""Truncates a row to its limit from the left or the right without cutting into media.

The reference expands media first, then keeps all media tokens and as many others as fit (ms-swift 3.9.3 base.py
_truncate). Its result is well formed only if no item loses the tokens that open and close it. Such rows are cut in the
same way here; the others are rejected (media_truncated).

Some items expand to more than media tokens: a video of Qwen3-VL has a time stamp and two framing tokens for each pair
of frames. The reference treats those as text, so they count against the room that is left, and a row that would lose
one of them is rejected.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from omniprep.errors import Reject, RejectCode
from omniprep.template.expand import Expansion


def kept_tokens(
    length: int,
    placeholders: NDArray[np.int64],
    sizes: NDArray[np.int64],
    texts: NDArray[np.int64],
    limit: int,
    side: Literal["left", "right"],
    wrapping: list[tuple[int, int]],
) -> NDArray[np.bool_]:
    """Which tokens of a row stay.

    Args:
        length: Tokens of the row before expansion.
        placeholders: Index of each placeholder, ascending.
        sizes: Tokens that each placeholder expands to.
        texts: How many of those are no media tokens.
        limit: Most tokens after expansion.
        side: The side that is cut away.
        wrapping: For each placeholder, how many tokens before and after it belong to the item.

    Returns:
        bool (length,).

    Raises:
        Reject: media_truncated.
    """  # fmt: skip
    protected = int((sizes - texts).sum())
    free = np.ones(length, np.int64)
    free[placeholders] = texts
    used = np.cumsum(free[::-1])[::-1] if side == "left" else np.cumsum(free)
    keep = used <= max(limit - protected, 0)
    keep[placeholders[texts == 0]] = True
    whole = all(
        keep[max(index - before, 0) : index + after + 1].all()
        for index, (before, after) in zip(placeholders.tolist(), wrapping, strict=True)
    )
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
