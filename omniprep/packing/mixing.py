"""How much of each dataset an epoch of a mixture takes: what the trainer draws by, and what a plan tells of it."""

from collections.abc import Sequence

import numpy as np

from omniprep.errors import UsageError


def bin_shares(weights: Sequence[float | None], mean_tokens: Sequence[float] | None) -> list[float] | None:
    """Share of the bins of an epoch that each dataset gives; None where no dataset has a weight: each bin once.

    Args:
        weights: Of the datasets, all of them or none.
        mean_tokens: Tokens of a bin of each, where weights are shares of tokens; None where they are shares of bins.
    """
    if all(weight is None for weight in weights):
        return None
    if any(weight is None for weight in weights):
        raise UsageError("give every dataset a weight (DIR:WEIGHT), or none")
    given = np.array(weights, dtype=np.float64)
    if mean_tokens is not None:
        given /= np.array(mean_tokens, dtype=np.float64)
    return [float(share) for share in given / given.sum()]
