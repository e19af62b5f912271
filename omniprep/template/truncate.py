"""Cut a row to its limit from the left or right, keeping media whole.

The reference keeps every placeholder token and as many others as fit (ms-swift 3.9.3 base.py _truncate); its result is
well formed only while no media item loses the tokens that open and close it. Those rows are cut exactly like that; the
others are rejected (media_truncated).
"""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from omniprep.errors import Reject, RejectCode


def kept_tokens(
    length: int,
    placeholders: NDArray[np.int64],
    sizes: NDArray[np.int64],
    limit: int,
    side: Literal["left", "right"],
    frames: list[tuple[int, int]],
) -> NDArray[np.bool_]:
    """Which tokens of a row stay.

    Args:
        length: Tokens of the row before expansion.
        placeholders: Index of each placeholder, ascending.
        sizes: Tokens that each placeholder becomes.
        limit: Most tokens after expansion.
        side: The side that is cut away.
        frames: For each placeholder, how many tokens before and after it belong to the item.

    Returns:
        bool (length,).

    Raises:
        Reject: media_truncated.
    """  # fmt: skip
    keep = np.zeros(length, bool)
    keep[placeholders] = True
    room = limit - int(sizes.sum())
    if room > 0:
        free = np.flatnonzero(~keep)
        keep[free[-room:] if side == "left" else free[:room]] = True
    for at, (before, after) in zip(placeholders.tolist(), frames, strict=True):
        if not keep[max(at - before, 0) : at + after + 1].all():
            raise Reject(
                RejectCode.MEDIA_TRUNCATED,
                f"cutting the row to {limit} tokens from the {side} would cut into its media",
            )
    return keep
