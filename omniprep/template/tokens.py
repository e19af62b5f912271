r"""Runs of text → token ids, in batches, with the fast tokenizer.

Control tokens cut the text before byte-pair merging starts, so the text between two of them can be tokenized alone: the
template's own pieces ("user\n", "\n", a system prompt) are then tokenized once and remembered, and only what people
wrote goes on, word by word where omniprep/template/words.py knows how the tokenizer cuts words, else whole to the
tokenizer. tests/test_tokens.py holds this equal to tokenizing each run whole.
"""

import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omniprep.template.words import Words, suits

Ids = NDArray[np.int32]
_REMEMBER = 65_536  # pieces; at most 256 characters each, so some 20 MB


class Encoder:
    """Tokenizes texts; keeps the ids of short pieces and of words it has seen."""

    def __init__(self, tokenizer: Any) -> None:
        """Take a transformers fast tokenizer."""
        self.tokenizer = tokenizer
        self._backend = tokenizer.backend_tokenizer
        added = tokenizer.added_tokens_decoder
        # Only tokens that are matched on the raw text, exactly, may cut it; and normalization must not see the cut.
        plain = [t for t in added.values() if not (t.normalized or t.lstrip or t.rstrip or t.single_word)]
        cutters = sorted((t.content for t in plain), key=len, reverse=True)
        self._known: dict[str, bytes] = {t.content: np.int32(i).tobytes() for i, t in added.items() if t in plain}
        special = [token for token in added.values() if token.special]
        self.special_tokens = frozenset(token.content for token in special)
        # Such tokens are looked for after normalization, so a wide "＜s＞" may be one.
        self._normalizer = self._backend.normalizer if any(token.normalized for token in special) else None
        self._cut = re.compile("(" + "|".join(map(re.escape, cutters)) + ")") if cutters else None
        by_word = len(plain) == len(added) and suits(self._backend)
        self._words = Words(self._whole) if by_word else None

    @property
    def by_words(self) -> bool:
        """Whether words are remembered (omniprep/template/words.py), which is five times as fast."""
        return self._words is not None

    def as_matched(self, text: str) -> str:
        """The text that control tokens are looked for in: as it stands, and as the tokenizer normalizes it."""
        return text if self._normalizer is None else f"{text}\n{self._normalizer.normalize_str(text)}"

    def encode(self, texts: list[str]) -> list[list[int]]:
        """The ids of each text, equal to `tokenizer(text, add_special_tokens=False)["input_ids"]`."""
        return [ids.tolist() for ids in self.arrays(texts)]

    def arrays(self, texts: list[str]) -> list[Ids]:
        """As `encode`, as arrays that may not be written to."""
        cut, known = self._cut, self._known
        split = [[part for part in cut.split(text) if part] if cut else [text] for text in texts]
        fresh = list(dict.fromkeys(part for parts in split for part in parts if part not in known))
        new = dict(zip(fresh, self._fresh(fresh), strict=True))
        if len(known) < _REMEMBER:
            known.update((part, ids) for part, ids in new.items() if len(part) <= 256)
        found = (b"".join([known[part] if part in known else new[part] for part in parts]) for parts in split)
        return [np.frombuffer(ids, np.int32) for ids in found]

    def _fresh(self, parts: list[str]) -> list[bytes]:
        if self._words is None:
            return self._whole(parts)
        ids = self._words.ids(parts)
        left = [at for at, found in enumerate(ids) if found is None]
        for at, found in zip(left, self._whole([parts[at] for at in left]), strict=True):
            ids[at] = found
        return [found for found in ids if found is not None]

    def _whole(self, texts: list[str]) -> list[bytes]:
        if not texts:
            return []
        batch = self._backend.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array(encoding.ids, np.int32).tobytes() for encoding in batch]
