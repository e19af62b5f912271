"""The placeholders of a planned row: where they stand, how far they expand, and which tokens of a long row stay."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from omniprep.compiler.plan.planned import Ids, Items
from omniprep.config import BuildConfig
from omniprep.errors import Reject, RejectCode
from omniprep.families.context import FamilyContext
from omniprep.families.kinds import Sample
from omniprep.template.truncate import Placeholder, kept_tokens, text_tokens


@lru_cache(maxsize=8)
def _wrapping(ctx: FamilyContext) -> dict[str, tuple[int, int]]:
    """How many tokens of each tag stand before and after its placeholder: vision_start and vision_end, and the like."""
    tags = {modality: ctx.tag(modality) for modality in ctx.modalities}
    if "video" in tags and "video_audio" in ctx.tags:
        tags["video_audio"] = ctx.tag("video_audio")
    wrapping = {}
    for name, text in tags.items():
        tokens = ctx.encoder.encode([text])[0]
        before = tokens.index(ctx.placeholder_id("video" if name == "video_audio" else name))
        wrapping[name] = (before, len(tokens) - before - 1)
    return wrapping


def find_placeholders(ids: Ids, items: Items, ctx: FamilyContext) -> list[Placeholder]:
    """The placeholders of a row, in its order."""
    wrapping = {} if ctx.renderer else _wrapping(ctx)
    result = []
    for modality in ctx.modalities:
        indices = np.flatnonzero(ids == ctx.stand_in_id(modality)).tolist()
        own = [item for item in items[modality] if not item.meta.in_video]
        if len(indices) != len(own):
            raise Reject(
                RejectCode.PLACEHOLDER_MISMATCH,
                f"{len(own)} {modality} items, but {len(indices)} placeholders in the tokens",
            )
        for index, item in zip(indices, own, strict=True):
            if ctx.renderer is not None:
                result.append(Placeholder(index, item.tokens, 0, 0))
            elif item.audio is None:
                result.append(Placeholder(index, item.tokens, *wrapping[modality]))
            else:
                size = item.tokens + items["audio"][item.audio].tokens
                result.append(Placeholder(index, size, *wrapping["video_audio"]))
    return sorted(result)


def with_borders(
    placeholders: list[Placeholder], borders: Sequence[tuple[int, int]], ids: Ids, ctx: FamilyContext
) -> list[Placeholder]:
    """The sentinels of a row with the text of their items, and a special token on each side of it (of the template)."""
    result = []
    for (index, size, _, _), (before, after) in zip(placeholders, borders, strict=True):
        left, right = index - before - 1, index + after + 1
        before += left >= 0 and int(ids[left]) in ctx.encoder.special_ids
        after += right < len(ids) and int(ids[right]) in ctx.encoder.special_ids
        result.append(Placeholder(index, size, before, after))
    return result


def fit(
    ids: Ids, placeholders: list[Placeholder], items: Items, ctx: FamilyContext, config: BuildConfig
) -> NDArray[np.bool_]:
    """Which tokens of a row longer than the limit stay (--truncation)."""
    if config.truncation == "raise":
        length = len(ids) + sum(placeholder.size - 1 for placeholder in placeholders)
        raise Reject(RejectCode.ROW_TOO_LONG, f"{length} tokens, the limit is {config.row_limit}")
    texts = text_tokens(ids, ctx.expand_row(Sample(ids, items)) if placeholders else [])
    texts = texts[[placeholder.token_index for placeholder in placeholders]]
    return kept_tokens(len(ids), placeholders, texts, config.row_limit, config.truncation)
