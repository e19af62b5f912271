r"""Tokenizes runs of text in batches with the fast tokenizer.

Control tokens cut the text before byte-pair merging starts, so the text between two of them can be tokenized alone. The
template's own pieces ("user\n", "\n", a system prompt) are thus tokenized once and cached. What people wrote is
tokenized word by word where omniprep/template/words.py supports the tokenizer, else by the tokenizer itself. The ids
equal those of tokenizing each run whole: tests/test_tokens.py.
"""

import re
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from omniprep.template.words import Words, is_supported_tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Ids = NDArray[np.int32]
_MAX_CACHED_PIECES = 65_536
_MAX_CACHED_LENGTH = 256
"""Characters of a cached piece; with the number of pieces this bounds the cache to about 20 MB."""


class Encoder:
    """Tokenizes texts; caches the ids of short pieces and of words."""

    def __init__(self, backend: "Tokenizer") -> None:
        """Take a tokenizer of the tokenizers library; of a transformers tokenizer its `backend_tokenizer`."""
        self.backend = backend
        added = backend.get_added_tokens_decoder()
        # Text is cut only at tokens that the tokenizer matches exactly and before normalization.
        normalizes = self.backend.normalizer is not None
        plain = {
            number: token.content
            for number, token in added.items()
            if not ((token.normalized and normalizes) or token.lstrip or token.rstrip or token.single_word)
        }
        cutters = self._cutters = sorted(plain.values(), key=len, reverse=True)
        self._known: dict[str, bytes] = {text: np.int32(number).tobytes() for number, text in plain.items()}
        special = [token for token in added.values() if token.special]
        self.special_tokens = frozenset(token.content for token in special)
        self.special_ids = frozenset(number for number, token in added.items() if token.special)
        # Normalized tokens are matched after normalization, so a full-width "＜s＞" may be one.
        self._normalizer = self.backend.normalizer if any(token.normalized for token in special) else None
        self._cut = re.compile("(" + "|".join(map(re.escape, cutters)) + ")") if cutters else None
        self._parts_alone = bool(cutters) and self._tokenizes_parts_alone(cutters[0])
        by_word = len(plain) == len(added) and is_supported_tokenizer(self.backend)
        self._words = Words(self._whole) if by_word else None

    @cached_property
    def borders(self) -> tuple[re.Pattern[str], re.Pattern[str]]:
        """Patterns of tokens at which text is cut before anything else: special ones, and any that are no white space.

        White space may be part of a longer token with that beside it (Gemma has tokens of several newlines).
        """
        cutters = [text for text in (*self._cutters, *self._loose_cutters()) if text.strip()]
        special, others = (
            sorted(filter(wanted, cutters), key=len, reverse=True)
            for wanted in (self.special_tokens.__contains__, bool)
        )
        return tuple(re.compile("|".join(map(re.escape, texts)) or "(?!)") for texts in (special, others))  # type: ignore[return-value]

    def _loose_cutters(self) -> list[str]:
        """Added tokens that take the white space beside them along or are matched after normalization, of those that
        are matched side by side: what stands between two of them is cut off as well.
        """
        added = self.backend.get_added_tokens_decoder().items()
        cutters = set(self._cutters)
        loose = [(number, t.content) for number, t in added if not t.single_word and t.content not in cutters]
        encoded = self.with_offsets([content * 2 for _, content in loose], special_tokens=False)
        return [
            content
            for (number, content), (ids, offsets) in zip(loose, encoded, strict=True)
            if ids.tolist() == [number] * 2 and offsets.reshape(-1).tolist() == _edges(content)
        ]

    @cached_property
    def _stripping(self) -> dict[int, str]:
        """Added tokens that take the white space beside them along."""
        added = self.backend.get_added_tokens_decoder().items()
        return {number: token.content for number, token in added if token.lstrip or token.rstrip}

    def own_characters(self, text: str, ids: Ids, offsets: Ids) -> Ids:
        """Offsets (n, 2) in which an added token has the characters of its name, without white space that it took."""
        if not self._stripping:
            return offsets
        result = offsets.copy()
        for index in np.flatnonzero(np.isin(ids, list(self._stripping))).tolist():
            content = self._stripping[int(ids[index])]
            start, end = offsets[index].tolist()
            if (place := text.find(content, start, end)) >= 0:
                result[index] = place, place + len(content)
        return result

    @property
    def by_words(self) -> bool:
        """Whether words are cached (omniprep/template/words.py), which is five times as fast."""
        return self._words is not None

    def as_matched(self, text: str) -> str:
        """The text in which to look for control tokens: as it is and, if some are normalized, as normalized."""
        return text if self._normalizer is None else f"{text}\n{self._normalizer.normalize_str(text)}"

    def encode(self, texts: list[str]) -> list[list[int]]:
        """The ids of each text, equal to `tokenizer(text, add_special_tokens=False)["input_ids"]`."""
        return [ids.tolist() for ids in self.arrays(texts)]

    def with_offsets(self, texts: list[str], *, special_tokens: bool) -> list[tuple[Ids, Ids]]:
        """The ids of each text (n,), and the characters (n, 2) that each token was made of.

        Each text is tokenized as a whole, as `tokenizer(text, add_special_tokens=special_tokens)` does.
        """
        self._lift_limits()
        result = []
        for encoding in self.backend.encode_batch(texts, add_special_tokens=special_tokens):
            ids = np.array(encoding.ids, np.int32)
            # Three times as fast as an array of pairs.
            offsets = np.fromiter(chain.from_iterable(encoding.offsets), np.int32, 2 * len(ids))
            result.append((ids, offsets.reshape(-1, 2)))
        return result

    def arrays(self, texts: list[str]) -> list[Ids]:
        """As `encode`, but read-only int32 arrays."""
        cut, known = self._cut if self._parts_alone else None, self._known
        split = [[part for part in cut.split(text) if part] if cut else [text] for text in texts]
        fresh = list(dict.fromkeys(part for parts in split for part in parts if part not in known))
        new = dict(zip(fresh, self._fresh(fresh), strict=True))
        if len(known) < _MAX_CACHED_PIECES:
            known.update((part, ids) for part, ids in new.items() if len(part) <= _MAX_CACHED_LENGTH)
        joined = (b"".join([known[part] if part in known else new[part] for part in parts]) for parts in split)
        return [np.frombuffer(ids, np.int32) for ids in joined]

    def _tokenizes_parts_alone(self, token: str) -> bool:
        """Whether text behind a token has the ids that it has alone: not so where the first word of a text gets a space
        (Metaspace, prepend_scheme "first").
        """
        self._lift_limits()
        together, first, second = self.backend.encode_batch_fast([f"{token}a", token, "a"], add_special_tokens=False)
        return bool(together.ids == first.ids + second.ids)

    def _fresh(self, parts: list[str]) -> list[bytes]:
        if self._words is None or not self._parts_alone:
            return self._whole(parts)  # words are cut from texts without added tokens alone
        ids = self._words.ids(parts)
        unknown = iter(self._whole([part for part, part_ids in zip(parts, ids, strict=True) if part_ids is None]))
        return [next(unknown) if part_ids is None else part_ids for part_ids in ids]

    def _whole(self, texts: list[str]) -> list[bytes]:
        if not texts:
            return []
        self._lift_limits()
        batch = self.backend.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array(encoding.ids, np.int32).tobytes() for encoding in batch]

    def _lift_limits(self) -> None:
        """Neither cut texts nor pad them: a tokenizer.json may hold limits of its maker's, and a processor that pads
        leaves that on. transformers sets both before each call of its own.
        """
        self.backend.no_truncation()
        self.backend.no_padding()


def _any_of(texts: list[str]) -> re.Pattern[str]:
    """A pattern of texts, the longest first; it matches nothing where there are none."""
    return re.compile("|".join(map(re.escape, sorted(texts, key=len, reverse=True))) or "(?!)")


def _edges(content: str) -> list[int]:
    """Offsets of a token that stands twice in a text."""
    return [0, len(content), len(content), 2 * len(content)]
