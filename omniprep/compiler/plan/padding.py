"""Rows that end in pad tokens (--pad-rows-to), for context and sequence parallelism.

A row is padded before it is counted, packed and encoded: to all that follows, verify and repack among them, its pad
tokens are text at its end that is not learned. Their positions go on from those of the row.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from omniprep.config import BuildConfig
from omniprep.errors import UsageError
from omniprep.families.context import FamilyContext
from omniprep.template.tokens import Ids


def with_pad_tokens(
    ids: Ids, weights: NDArray[np.float32], length: int, ctx: FamilyContext, config: BuildConfig
) -> tuple[Ids, NDArray[np.float32], int]:
    """Ids, loss weights and expanded length of a row, and of its pad tokens behind it."""
    missing = -length % config.pad_rows_to if config.pad_rows_to else 0
    if not missing:
        return ids, weights, length
    token = pad_token(ctx)
    if token is None:
        raise UsageError(f"--pad-rows-to: the tokenizer of {ctx.spec.model} has no pad_token and no eos_token")
    padding = np.full(missing, token, ids.dtype)
    return np.concatenate([ids, padding]), np.concatenate([weights, np.zeros(missing, weights.dtype)]), length + missing


@lru_cache(maxsize=8)
def pad_token(ctx: FamilyContext) -> int | None:
    """Id of the tokenizer's pad token, else of the one that ends a text, if any; never one that stands for media."""
    media = {ctx.placeholder_id(modality) for modality in ctx.modalities}
    for token in (ctx.special_tokens.pad_token_id, ctx.special_tokens.eos_token_id):
        if isinstance(token, int) and token not in media:
            return token
    return None
