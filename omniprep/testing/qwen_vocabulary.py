"""The real Qwen2.5-Omni tokenizer, written as a checkpoint holds it, from the vocabulary that dashscope ships.

`qwen.tiktoken` lists each token's bytes with its rank. A byte-pair tokenizer of `tokenizers` wants merges instead: the
pair that makes each token is what byte-pair encoding that token with only the lower ranks leaves over, which is how
the real merges.txt came to be (151,387 lines). Takes about 3 s; needs neither the network nor an import of dashscope.
"""

import base64
import importlib.util
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from omniprep.errors import OmniprepError

# transformers: models/qwen2/tokenization_qwen2.py PRETOKENIZE_REGEX
PRETOKENIZE = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
FIRST_ADDED = 151643
SPECIAL_TOKENS = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>", "<|box_end|>"),
    *("<|quad_start|>", "<|quad_end|>", "<|vision_bos|>", "<|vision_eos|>", "<|vision_pad|>", "<|IMAGE|>", "<|VIDEO|>"),
)
# In the vocabulary like the special ones, but decoded as text.
PLAIN_TOKENS = (
    *("<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>"),
    *("<|repo_name|>", "<|file_sep|>"),
)
# Names under which transformers' Qwen2_5OmniProcessor asks the tokenizer for its media tokens.
MEDIA_TOKENS = {
    "image_token": "<|IMAGE|>",
    "audio_token": "<|AUDIO|>",
    "video_token": "<|VIDEO|>",
    "vision_bos_token": "<|vision_bos|>",
    "vision_eos_token": "<|vision_eos|>",
    "audio_bos_token": "<|audio_bos|>",
    "audio_eos_token": "<|audio_eos|>",
}


def find_vocabulary() -> Path:
    """Where dashscope keeps `qwen.tiktoken`; the package itself is not imported."""
    hint = "the Qwen vocabulary comes with dashscope: pip install 'omniprep[demo]'"
    spec = importlib.util.find_spec("dashscope")
    if spec is None or not spec.submodule_search_locations:
        raise OmniprepError(f"dashscope is not installed; {hint}")
    path = Path(spec.submodule_search_locations[0]) / "resources" / "qwen.tiktoken"
    if not path.is_file():
        raise OmniprepError(f"{path} is missing; {hint}")
    return path


def byte_alphabet() -> dict[int, str]:
    """GPT-2's printable character for each byte (transformers: bytes_to_unicode)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(others)}


def split_token(ranks: dict[bytes, int], token: bytes, rank: int) -> tuple[bytes, bytes] | None:
    """The two parts whose merge is `token`: byte-pair encode it with the ranks below its own.

    Returns None for a token that the merges cannot reach (three parts or more stay).
    """
    parts = [token[index : index + 1] for index in range(len(token))]
    while len(parts) > 2:
        pairs = [ranks.get(left + right, rank) for left, right in pairwise(parts)]
        lowest = pairs.index(min(pairs))
        if pairs[lowest] >= rank:
            return None
        parts[lowest : lowest + 2] = [parts[lowest] + parts[lowest + 1]]
    return parts[0], parts[1]


@lru_cache(maxsize=1)
def read_vocabulary(path: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges, in GPT-2's alphabet, of a tiktoken file (a line a token: base64 bytes, rank)."""
    lines = path.read_bytes().splitlines()
    ranks = {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in lines if line)}
    if len(ranks) != FIRST_ADDED:
        raise OmniprepError(f"{path}: {len(ranks)} tokens, where the Qwen vocabulary has {FIRST_ADDED}")
    alphabet = byte_alphabet()
    text = {token: "".join(alphabet[byte] for byte in token) for token in ranks}
    pairs = [
        split_token(ranks, token, rank) for token, rank in sorted(ranks.items(), key=lambda kv: kv[1]) if len(token) > 1
    ]
    merges = [(text[pair[0]], text[pair[1]]) for pair in pairs if pair is not None]
    return {text[token]: rank for token, rank in ranks.items()}, merges


@dataclass(frozen=True, kw_only=True, slots=True)
class AddedTokens:
    """Tokens after the vocabulary, in the order of their ids from `FIRST_ADDED`."""

    special: tuple[str, ...] = SPECIAL_TOKENS
    plain: tuple[str, ...] = PLAIN_TOKENS
    last: tuple[str, ...] = ()
    """Special ones after the plain ones."""
    names: Mapping[str, str] = field(default_factory=lambda: MEDIA_TOKENS)
    """Names under which transformers' processor asks for its media tokens."""
    processor: str = "Qwen2_5OmniProcessor"

    def __iter__(self) -> Iterator[tuple[str, bool]]:
        """Each token, and whether it is special."""
        for tokens, special in ((self.special, True), (self.plain, False), (self.last, True)):
            yield from ((token, special) for token in tokens)


def make_tokenizer(vocabulary: dict[str, int], merges: list[tuple[str, str]], tokens: AddedTokens) -> Tokenizer:
    """The tokenizer that tokenizer.json of the real checkpoint describes."""
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, byte_fallback=False, fuse_unk=False))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKENIZE), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in tokens.special])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in tokens.plain])
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in tokens.last])
    return tokenizer


def tokenizer_config(chat_template: str, tokens: AddedTokens) -> dict[str, Any]:
    """tokenizer_config.json in the real checkpoint's form (read alike by transformers 4.57 and 5)."""
    added = {}
    for n, (token, special) in enumerate(tokens):
        flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
        added[str(FIRST_ADDED + n)] = {"content": token, **flags, "special": special}
    return {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": added,
        "additional_special_tokens": [token for token, special in tokens if special][1:],
        "bos_token": None,
        "chat_template": chat_template,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "extra_special_tokens": dict(tokens.names),
        "model_max_length": 32768,
        "pad_token": "<|endoftext|>",
        "processor_class": tokens.processor,
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
        **tokens.names,
    }


def write_tokenizer(path: Path, chat_template: str, tokens: AddedTokens) -> None:
    """Write tokenizer.json, vocab.json, merges.txt and their settings into the checkpoint folder `path`."""
    vocabulary, merges = read_vocabulary(find_vocabulary())
    make_tokenizer(vocabulary, merges, tokens).save(str(path / "tokenizer.json"), pretty=False)
    (path / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    lines = ["#version: 0.2", *(f"{left} {right}" for left, right in merges)]
    (path / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    added = {token: FIRST_ADDED + n for n, (token, _) in enumerate(tokens)}
    (path / "added_tokens.json").write_text(json.dumps(added, indent=2) + "\n", encoding="utf-8")
    (path / "tokenizer_config.json").write_text(
        json.dumps(tokenizer_config(chat_template, tokens), indent=2) + "\n", encoding="utf-8"
    )
