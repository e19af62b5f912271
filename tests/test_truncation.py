"""Truncation against the reference's own rule on expanded tokens, on random rows; what is not whole is rejected."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omniprep.errors import Reject
from omniprep.template.expand import Expansion, expand
from omniprep.template.truncate import Placeholder, kept_tokens, text_tokens

TEXT, OPEN, CLOSE, STAMP, PAD = 1, 2, 3, 4, 9
# What a placeholder becomes, and how many tokens of its tag stand before and after it: an image; a bare video of
# Qwen3-VL (stamps and framing tokens come with the expansion); a video whose expansion ends in media tokens.
ITEMS = st.sampled_from(
    [
        ([PAD] * 4, (1, 1)),
        ([PAD], (1, 1)),
        ([PAD] * 6, (0, 0)),
        ([STAMP, STAMP, OPEN, PAD, PAD, CLOSE] * 2, (0, 0)),
        ([STAMP, OPEN, PAD, CLOSE], (0, 0)),
        ([STAMP, PAD, PAD], (1, 2)),
    ]
)
ROWS = st.lists(st.one_of(st.integers(1, 12), ITEMS), min_size=1, max_size=6)


def reference(ids: list[int], limit: int, side: str) -> list[int]:
    """Indices that ms-swift 3.9.3 keeps (base.py _truncate)."""
    protected = np.array(ids) == PAD
    n_protected = int(protected.sum())
    if n_protected < limit:
        non_protected = np.flatnonzero(~protected)
        room = limit - n_protected
        protected[non_protected[-room:] if side == "left" else non_protected[:room]] = True
    return np.flatnonzero(protected).tolist()


@settings(max_examples=400, deadline=None)
@given(parts=ROWS, limit=st.integers(1, 60), side=st.sampled_from(["left", "right"]))
def test_rows_are_cut_as_the_reference_cuts_them_or_rejected(
    parts: list[int | tuple[list[int], tuple[int, int]]], limit: int, side: str
) -> None:
    ids: list[int] = []
    expansions, at, frames = [], [], []
    for part in parts:
        if isinstance(part, int):
            ids += [TEXT] * part
            continue
        new, (before, after) = part
        ids += [OPEN] * before
        at.append(len(ids))
        ids += [PAD] + [CLOSE] * after
        frames.append((before, after))
        marked = None if set(new) == {PAD} else np.array(new) == PAD
        expansions.append(Expansion("video", len(at) - 1, [PAD], new, is_embed=marked))
    row = np.array(ids, np.int32)
    whole, numbers, _ = expand(row, np.arange(len(row), dtype=np.float32), expansions)
    expected = reference(whole.tolist(), limit, side)
    # An item is lost where the reference keeps some of its own tokens, or of those of its tag, but not all.
    needed = {
        n for place, (before, after) in zip(at, frames, strict=True) for n in range(place - before, place + after + 1)
    }
    lost = [i for i in range(len(whole)) if int(numbers[i]) in needed and i not in set(expected)]
    texts = text_tokens(row, expansions)[at].astype(np.int64)
    placeholders = [
        Placeholder(index, len(expansion.ids), *around)
        for index, expansion, around in zip(at, expansions, frames, strict=True)
    ]

    def cut() -> np.ndarray:
        return kept_tokens(len(row), placeholders, texts, limit, side)

    if lost or len(expected) > limit:
        with pytest.raises(Reject) as caught:
            cut()
        assert caught.value.code == "media_truncated"
        return
    keep = cut()
    ours = [i for i in range(len(whole)) if keep[int(numbers[i])]]
    assert ours == expected and len(ours) <= limit


def test_time_stamps_count_against_the_room() -> None:
    """10 tokens of text before a video of 12, 8 of them no media tokens: 16 tokens leave 4 for the text."""
    new = [STAMP, STAMP, OPEN, PAD, PAD, CLOSE] * 2
    row = np.array([TEXT] * 10 + [PAD], np.int32)
    texts = text_tokens(row, [Expansion("video", 0, [PAD], new, is_embed=np.array(new) == PAD)])
    assert texts.tolist() == [0] * 10 + [8]
    keep = kept_tokens(11, [Placeholder(10, 12, 0, 0)], texts[[10]], 16, "left")
    assert keep.tolist() == [False] * 6 + [True] * 5
    with pytest.raises(Reject):
        kept_tokens(11, [Placeholder(10, 12, 0, 0)], texts[[10]], 16, "right")
