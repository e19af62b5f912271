"""Small fast tokenizers, learned offline from a few sentences, with the two pipelines that chat models use.

They split text as the tokenizers of real checkpoints do, only into shorter tokens: what matters to a row, which is
where tokens may merge across the borders of its parts (newlines, leading spaces), is as in the real ones.
"""

import json
from collections.abc import Iterable
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from omniprep.testing.qwen_vocabulary import PRETOKENIZE

WORDS = 700
"""Tokens learned, beside the special ones: enough for most words of `SENTENCES` to be one token."""

SENTENCES = (
    "You are a helpful assistant.\n\nsystem\nuser\nassistant\nmodel\nUser: Assistant:\n",
    "Hello, who are you? I am a small model that answers questions about images, sounds and videos.\n\n",
    "What is in this picture? There are two red circles on a white wall, and a blue square below them.\n",
    "Describe the image in detail. Compare the first image with the second one.\n\n\nHow many are there?\n",
    "What do you hear? A voice says hello; then there is music, and at last silence.\nTranscribe the audio.\n",
    "What happens in the video? A ball moves from left to right. First, second, third frame.\n  Done.\n",
    "Answer briefly: yes, no, or I do not know. Because of that, the answer is 42, not 17 or 2024.\n",
    'def main():\n    show("one two three")\n    return {"key": [1, 2, 3]}\n\n# Title\n\n- item\n- item\n',
)


def byte_level(special: Iterable[str], plain: Iterable[str] = ()) -> Tokenizer:
    """Byte-level byte-pair encoding, split as Qwen's (and much as Llama 3's): words with their leading space."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKENIZE), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=256 + WORDS, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return with_added(tokenizer, special, plain)


def spaces_as_letters(special: Iterable[str], plain: Iterable[str] = ()) -> Tokenizer:
    """Byte-pair encoding with byte fallback, spaces as "▁", as Gemma's: newlines merge with newlines."""
    learner = Tokenizer(models.BPE())
    learner.normalizer = normalizers.Replace(" ", "▁")
    learner.pre_tokenizer = pre_tokenizers.Split(Regex("▁?[^▁\n]+|\n+|▁+"), behavior="isolated")
    learner.train_from_iterator(SENTENCES, trainers.BpeTrainer(vocab_size=WORDS, show_progress=False))
    model = model_part(learner)
    fallback = {f"<0x{byte:02X}>": byte for byte in range(256)}
    vocabulary = fallback | {token: 256 + n for n, token in enumerate(sorted(model["vocab"], key=model["vocab"].get))}
    merges = [tuple(pair) for pair in model["merges"]]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", behavior="merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return with_added(tokenizer, special, plain)


def model_part(tokenizer: Tokenizer) -> dict[str, Any]:
    """The model's part of tokenizer.json: its vocabulary and merges."""
    model: dict[str, Any] = json.loads(tokenizer.to_str())["model"]
    return model


def with_added(tokenizer: Tokenizer, special: Iterable[str], plain: Iterable[str]) -> Tokenizer:
    """Add whole tokens after the vocabulary: special ones, and those that are decoded as text."""
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in plain])
    return tokenizer


PIPELINES = {"byte_level": byte_level, "spaces_as_letters": spaces_as_letters}
