"""Tokenizing piece by piece equals tokenizing each run whole, whatever people write."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omniprep.template.tokens import Encoder

SPECIAL = ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|AUDIO|>", "<|vision_bos|>", "<tool_call>", "</tool_call>", "<|fim_pad|>"]
PIECE = st.one_of(
    st.sampled_from(SPECIAL),
    st.text(max_size=30),
    st.sampled_from(["\n", "\n\n", " ", "user\n", "é", "é", "\u0301", "한국어", "👩‍👩‍👧", "１２", "<|", "|>", "<|im_", "end|>"]),
)


@pytest.fixture(scope="module")
def tokenizer(model_dir: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model_dir)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.lists(PIECE, max_size=8).map("".join), min_size=1, max_size=6))
def test_pieces_equal_whole(tokenizer: Any, texts: list[str]) -> None:
    encoder = Encoder(tokenizer)
    expected = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    assert encoder.encode(texts) == expected
    assert encoder.encode(texts) == expected  # remembered pieces too
