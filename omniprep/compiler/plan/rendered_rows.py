"""Rows of families with a renderer: the text of a whole chat → token ids with one sentinel an item, and loss weights.

The text with each item's own text put in is tokenized as a whole, since a tokenizer may merge characters across the
borders of answers. Only the borders of an item's text take part (template/item_text.py), so that a picture of a
thousand tokens costs no more than one of ten.
"""

from collections.abc import Iterator, Sequence
from datetime import date
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from omniprep.compiler.isolate.deadline import row_deadline
from omniprep.compiler.plan.text_checks import check_unicode
from omniprep.config import BuildConfig
from omniprep.errors import Reject, RejectCode, UsageError
from omniprep.families.context import FamilyContext
from omniprep.families.kinds import Item
from omniprep.modalities import MODALITIES
from omniprep.rows.normalize import Row
from omniprep.template.chat_renderer import render_plain
from omniprep.template.item_text import ItemText
from omniprep.template.loss import Strategy
from omniprep.template.rendered import Rendered, WeightSpan

Ids = NDArray[np.int32]
Items = dict[str, list[Item]]


class TokenizedRow(NamedTuple):
    """A row after the tokenizer."""

    ids: Ids
    """With the sentinel of its modality for each item."""
    weights: NDArray[np.float32]
    borders: tuple[tuple[int, int], ...] = ()
    """Of each sentinel, in order: tokens before and after it that are of its item's text."""


class WholeText(NamedTuple):
    """A rendered row before the tokenizer: each item's text put in, but for what lies between its borders."""

    text: str
    weights: tuple[WeightSpan, ...]
    stand_ins: tuple[tuple[int, str, ItemText], ...]
    """Of each item: the character at which its stand-in begins, its modality, its text."""
    special_tokens: bool
    spaces_count: bool


def render_row(
    row: Row, ctx: FamilyContext, config: BuildConfig, strategy: Strategy, items: Items, *, generate: bool
) -> WholeText:
    """The text of a row by its family's renderer; sets the tokens of its items."""
    if any(item.audio is not None or item.meta.in_video for own in items.values() for item in own):
        raise UsageError(f"--use-audio-in-video: the chat template of family {ctx.name!r} has no place for the sound")
    if row.system is None and config.system:
        row.system = config.system
    row.today = date.fromisoformat(config.template_date) if config.template_date else None
    if config.use_chat_template:
        assert ctx.renderer is not None
        ctx.chat  # noqa: B018  # is read and learned before the row's time runs
        with row_deadline("a row's chat template"):
            rendered: Rendered = ctx.renderer(row, strategy, generate=generate)
    else:
        rendered = render_plain(ctx, row, ctx.template, strategy, generate=generate)
    check_unicode([rendered.text])
    return _with_item_texts(rendered, ctx, items)


def _with_item_texts(rendered: Rendered, ctx: FamilyContext, items: Items) -> WholeText:
    present = {modality: own for modality, own in items.items() if own}
    if not present:
        return WholeText(rendered.text, rendered.weights, (), rendered.special_tokens, rendered.spaces_count)
    texts = ctx.item_texts({modality: [item.meta for item in own] for modality, own in present.items()})
    pieces: list[str] = []
    stand_ins = []
    shifts: list[tuple[int, int]] = []  # (end of an item's tag, characters that the text has grown up to there)
    length = start = 0
    for item in rendered.items:
        cut = ctx.item_text_tokens.cut(texts[item.modality][item.number])
        items[item.modality][item.number].tokens = len(cut.ids)
        before = rendered.text[start : item.start] + cut.before
        stand_ins.append((length + len(before), item.modality, cut))
        pieces += [before, cut.stand_in, cut.after]
        length += len(before) + len(cut.stand_in) + len(cut.after)
        start = item.end
        shifts.append((item.end, length - item.end))
    pieces.append(rendered.text[start:])
    ends, grown = [end for end, _ in shifts], [0, *(shift for _, shift in shifts)]
    # Spans do not overlap items, so both ends of one are shifted alike.
    weights = [
        WeightSpan(span.start + shift, span.end + shift, span.weight)
        for span in rendered.weights
        for shift in [grown[int(np.searchsorted(ends, span.start, side="right"))]]
    ]
    text = "".join(pieces)
    return WholeText(text, tuple(weights), tuple(stand_ins), rendered.special_tokens, rendered.spaces_count)


def tokenize_rows(rows: Sequence[WholeText], ctx: FamilyContext) -> Iterator[TokenizedRow | Reject]:
    """The tokens of rendered rows, in order; the tokenizer gets them in at most two calls."""
    encoded: dict[int, tuple[Ids, Ids]] = {}
    for special_tokens in (False, True):
        numbers = [number for number, row in enumerate(rows) if row.special_tokens == special_tokens]
        if numbers:
            texts = [rows[number].text for number in numbers]
            results = ctx.encoder.with_offsets(texts, special_tokens=special_tokens)
            encoded.update(zip(numbers, results, strict=True))
    for number, row in enumerate(rows):
        try:
            yield _with_sentinels(row, *encoded[number], ctx)
        except Reject as reject:
            yield Reject(reject.code, reject.message)


def _with_sentinels(row: WholeText, ids: Ids, offsets: Ids, ctx: FamilyContext) -> TokenizedRow:
    own = ctx.encoder.own_characters(row.text, ids, offsets)
    weights = token_weights(row.weights, with_spaces(own) if row.spaces_count else offsets)
    offsets = own
    keep = np.ones(len(ids), bool)
    result = ids.copy()
    starts, borders = offsets[:, 0], []
    for start, modality, item in row.stand_ins:
        index = int(np.searchsorted(starts, start))
        while index < len(ids) and starts[index] == start and offsets[index, 1] == start:
            index += 1  # a token without characters in front of it
        middle, end = start + len(item.first), start + len(item.stand_in)
        edges = [int(item.ids[0]), int(item.ids[-1])]
        apart = offsets[index : index + 2].tolist() == [[start, middle], [middle, end]]
        if not apart or ids[index : index + 2].tolist() != edges:
            raise Reject(
                RejectCode.PLACEHOLDER_MISMATCH,
                f"the tokenizer does not keep the special tokens around the {modality} apart from the text beside them",
            )
        result[index] = MODALITIES[modality].sentinel
        keep[index + 1] = False
        weights[index] = 0.0
        before = int(np.count_nonzero(offsets[:index, 1] > start - len(item.before)))
        borders.append((before, int(np.count_nonzero(starts[index + 2 :] < end + len(item.after)))))
    result, weights = result[keep], weights[keep]
    if any((result == token).any() for token in _media_ids(ctx)):
        raise Reject(
            RejectCode.SPECIAL_TOKEN_IN_TEXT,
            "the text contains a token that the model takes for media; remove or escape it",
        )
    return TokenizedRow(result, weights, tuple(borders))


def with_spaces(offsets: Ids) -> Ids:
    """Offsets in which a token without characters has those between it and the token before: white space alone."""
    result = offsets.copy()
    empty = np.flatnonzero(offsets[1:, 0] == offsets[1:, 1]) + 1
    result[empty, 0] = np.minimum(offsets[empty, 0], offsets[empty - 1, 1])
    return result


def token_weights(spans: Sequence[WeightSpan], offsets: Ids) -> NDArray[np.float32]:
    """The weight of each token: that of the first span that it has a character of, else 0.

    A token may begin before an answer and reach into it (a space that the template writes, and the first word). It is
    trained, as in transformers' assistant mask.
    """
    if not spans:
        return np.zeros(len(offsets), np.float32)
    starts, ends = (np.array([span[side] for span in spans], np.int64) for side in (0, 1))
    values = np.array([span.weight for span in spans], np.float32)
    index = np.searchsorted(ends, offsets[:, 0], side="right")
    inside = index < len(spans)
    index[~inside] = 0
    return np.where(inside & (starts[index] < offsets[:, 1]), values[index], np.float32(0.0))


@lru_cache(maxsize=8)
def _media_ids(ctx: FamilyContext) -> tuple[int, ...]:
    """Tokens at which the model puts items: those of placeholders, and those that its config names."""
    named = (ctx.config.get(f"{m}_token_{key}") for m in ctx.modalities for key in ("id", "index"))
    alone = ctx.encoder.encode([ctx.placeholders[modality] for modality in ctx.modalities])
    ids = {token for token in named if isinstance(token, int)} | {ids[0] for ids in alone if len(ids) == 1}
    return tuple(sorted(ids))
