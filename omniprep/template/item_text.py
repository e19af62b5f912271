"""The tokens of a media item whose text stands in the chat before tokenization: tiles, time stamps, sentences.

A tokenizer cuts text at its added tokens before anything else, so what lies between the first and the last of them in
an item's text has the same ids wherever it stands. A plan keeps one sentinel for these ids; what an item's text has
outside them (the sentence before a tile) is tokenized with the chat around it.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from omniprep.errors import Reject, RejectCode
from omniprep.lru import BoundedCache
from omniprep.template.tokens import Encoder

_KEPT_IDS = 4 << 20
"""Ids in the cache: 16 MB, some thousand images of different sizes."""


class ItemText(NamedTuple):
    """The text of an item, cut at its first and last added token."""

    before: str
    first: str
    last: str
    """The first and the last added token, the same one where there is only one."""
    after: str
    ids: NDArray[np.int32]
    """From the first to the last added token."""

    @property
    def stand_in(self) -> str:
        """What stands for the ids while the chat is tokenized: the same borders, and nothing between."""
        return self.first + self.last


class ItemTexts:
    """Cuts and tokenizes the texts of items; texts met lately are remembered."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self._known: BoundedCache[str, ItemText] = BoundedCache(_KEPT_IDS, lambda item: len(item.ids) + 64)

    def cut(self, text: str) -> ItemText:
        """The text of an item; rejects placeholder_mismatch where no added token is in it."""
        if (known := self._known.get(text)) is not None:
            return known
        if not text:
            raise Reject(RejectCode.PLACEHOLDER_MISMATCH, "the processor writes no text, so no token, for an item")
        special, any_added = ([match.span() for match in pattern.finditer(text)] for pattern in self._encoder.borders)
        borders: list[tuple[int, int]] = special
        # Tokens of an item need not be special ones: none of them may be left outside.
        if any_added and (not special or any_added[0] < special[0] or any_added[-1] > special[-1]):
            borders = any_added
        if not borders:
            raise Reject(
                RejectCode.PLACEHOLDER_MISMATCH,
                f"the text of an item holds no special token of the tokenizer: {text[:80]!r}",
            )
        (start, first_end), (last_start, end) = borders[0], borders[-1]
        ((ids, _),) = self._encoder.with_offsets([text[start:end]], special_tokens=False)
        return self._known.put(
            text, ItemText(text[:start], text[start:first_end], text[last_start:end], text[end:], ids)
        )
