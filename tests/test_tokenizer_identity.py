"""Risk: a dataset refused for a tokenizer that is the same, or taken for one that is not."""

import json

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from omniprep.template.identity import tokenizer_sha256

DIGITS = r"\p{N}| ?[^\s\p{L}\p{N}]+|\s+|[^\r\n\p{L}\p{N}]?\p{L}+"


def small(**change) -> Tokenizer:
    """A byte-level BPE in the way of Qwen's."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = change.get("merges", [("h", "e"), ("l", "l"), ("he", "ll"), ("3", ".")])
    vocabulary = {token: number for number, token in enumerate([*alphabet, *("".join(m) for m in merges)])}
    vocabulary |= change.get("vocabulary", {})
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.normalizer = change.get("normalizer", normalizers.NFC())
    split = pre_tokenizers.Split(Regex(change.get("pattern", DIGITS)), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    tokenizer.add_tokens([AddedToken(t, normalized=False) for t in change.get("added", ["<|im_start|>", "<|im_end|>"])])
    return tokenizer


def test_another_way_of_writing_the_same_tokenizer_is_the_same():
    plain, written = small(), small()
    written.decoder = decoders.ByteLevel()
    written.post_processor = processors.ByteLevel(trim_offsets=False)
    written.enable_truncation(100)
    written.enable_padding()
    assert plain.to_str() != written.to_str()
    expected = tokenizer_sha256(plain)
    assert tokenizer_sha256(written) == expected
    content = json.loads(plain.to_str())
    content["model"].pop("ignore_merges")  # a field that came with a later version
    content["model"]["dropout"] = None
    assert tokenizer_sha256(Tokenizer.from_str(json.dumps(content, indent=2))) == expected


@pytest.mark.parametrize(
    "change",
    [
        {"vocabulary": {"he": 257, "ll": 256}},
        {"merges": [("l", "l"), ("h", "e"), ("he", "ll"), ("3", ".")], "vocabulary": {"he": 256, "ll": 257}},
        {"added": ["<|im_end|>", "<|im_start|>"]},
        {"added": ["<|im_start|>", "<|im_end|>", "<think>"]},
        {"normalizer": normalizers.NFKC()},
        {"normalizer": normalizers.Sequence([])},
        {"pattern": DIGITS.replace(r"\p{N}|", r"\p{N}{1,3}|", 1)},
        {"pattern": r"[\s\S]+"},
    ],
)
def test_a_tokenizer_that_gives_other_ids_is_another(change):
    assert tokenizer_sha256(small(**change)) != tokenizer_sha256(small())


def test_a_tokenizer_saved_again_is_the_same(model_dir, tmp_path):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer_sha256(tokenizer.backend_tokenizer) == tokenizer_sha256(again.backend_tokenizer)
