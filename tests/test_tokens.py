"""Tokenizing piece by piece equals tokenizing each run whole, whatever people write."""

import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omniprep.template.tokens import Encoder
from omniprep.template.words import cut_words, is_supported_tokenizer, stable_characters

SPECIAL = [
    "<|im_start|>",
    "<|im_end|>",
    "<|endoftext|>",
    "<|AUDIO|>",
    "<|vision_bos|>",
    "<tool_call>",
    "</tool_call>",
    "<|fim_pad|>",
]
PIECE = st.one_of(
    st.sampled_from(SPECIAL),
    st.text(max_size=30),
    st.sampled_from(
        ["\n", "\n\n", " ", "user\n", "é", "é", "\u0301", "한국어", "👩‍👩‍👧", "１２", "<|", "|>", "<|im_", "end|>"]
    ),
)


@pytest.fixture(scope="module")
def tokenizer(model_dir: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model_dir)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.lists(PIECE, max_size=8).map("".join), min_size=1, max_size=6))
def test_pieces_equal_whole(tokenizer: Any, texts: list[str]) -> None:
    encoder = Encoder(tokenizer.backend_tokenizer)
    expected = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    assert encoder.encode(texts) == expected
    assert encoder.encode(texts) == expected  # remembered pieces too


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.text(
            st.one_of(st.sampled_from("abSt'lvre 1\n\r\t.,-_é한字\u00a0😀"), st.characters(codec="utf-8")), max_size=60
        ),
        min_size=1,
        max_size=6,
    )
)
def test_any_text_equals_whole(tokenizer: Any, texts: list[str]) -> None:
    expected = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    assert Encoder(tokenizer.backend_tokenizer).encode(texts) == expected


def test_words_are_cut_as_the_tokenizer_cuts_them(tokenizer: Any) -> None:
    assert is_supported_tokenizer(tokenizer.backend_tokenizer)
    cutter = tokenizer.backend_tokenizer.pre_tokenizer
    codes = [code for kind in stable_characters().values() for code in kind]
    assert len(codes) > 50_000
    # Each character beside a letter, a number, a sign, spaces, line ends, an apostrophe, and twice.
    samples = [f"a{c}b 1{c}2 .{c}, {c} {c}\n{c}\r\n '{c}e's{c}  {c}{c}\t{c}" for c in map(chr, codes)]
    samples = [text for text in samples if unicodedata.is_normalized("NFC", text)]
    assert len(samples) > 0.95 * len(codes)
    for first in range(0, len(samples), 64):
        text = "".join(samples[first : first + 64])
        if not unicodedata.is_normalized("NFC", text):
            continue
        assert cut_words(text) == [text[start:end] for _, (start, end) in cutter.pre_tokenize_str(text)]


def test_padding_and_limits_that_other_calls_left_on_change_nothing(tokenizer: Any) -> None:
    texts = ["<|im_end|><|im_end|>a long text", "b", "<|im_end|>"]
    expected = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    tokenizer(texts, padding=True, truncation=True, max_length=2)
    encoder = Encoder(tokenizer.backend_tokenizer)
    assert encoder.encode(texts[:1]) == expected[:1]
    tokenizer(texts, padding=True, truncation=True, max_length=2)
    assert encoder.encode([*texts[1:], "c d e f g"])[:2] == expected[1:]


@pytest.mark.parametrize("kind", ["bytes", "metaspace", "prepend"])
def test_tokenizers_that_put_a_space_before_the_first_word_are_not_cut_there(tmp_path: Path, kind: str) -> None:
    import jinja_chat
    from transformers import AutoTokenizer

    jinja_chat.write_tokenizer(tmp_path, kind)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    texts = ["<img><row>\nb<img>", "\n", "a b", "<|user|>a\n<row>", "x<row>\n<img>"]
    expected = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    assert Encoder(tokenizer.backend_tokenizer).encode(texts) == expected
