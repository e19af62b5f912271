"""Runs of text → token ids, in batches, with the fast tokenizer.

Control tokens cut the text before byte-pair merging starts, so the text between two of them can be tokenized alone: the
template's own pieces ("user\\n", "\\n", a system prompt) are then tokenized once and remembered, and only what people wrote
goes to the tokenizer. tests/test_tokens.py holds this equal to tokenizing each run whole.
"""

import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int32]
_REMEMBER = 65_536  # pieces; at most 256 characters each, so some 20 MB


class Encoder:
    """Tokenizes texts; keeps the ids of short pieces it has seen."""

    def __init__(self, tokenizer: Any) -> None:
        """Take a transformers fast tokenizer."""
        self.tokenizer = tokenizer
        self._backend = tokenizer.backend_tokenizer
        added = tokenizer.added_tokens_decoder
        # Only tokens that are matched on the raw text, exactly, may cut it; and normalization must not see the cut.
        plain = [t for t in added.values() if t.special and not (t.normalized or t.lstrip or t.rstrip or t.single_word)]
        cutters = sorted((t.content for t in plain), key=len, reverse=True)
        self._known: dict[str, list[int]] = {t.content: [i] for i, t in added.items() if t in plain}
        self.special_tokens = frozenset(t.content for t in added.values() if t.special)
        self._cut = re.compile("(" + "|".join(map(re.escape, cutters)) + ")") if cutters else None

    def encode(self, texts: list[str]) -> list[list[int]]:
        """The ids of each text, equal to `tokenizer(text, add_special_tokens=False)["input_ids"]`."""
        cut, known = self._cut, self._known
        split = [[part for part in cut.split(text) if part] if cut else [text] for text in texts]
        fresh = list(dict.fromkeys(part for parts in split for part in parts if part not in known))
        new: dict[str, list[int]] = {}
        if fresh:
            batch = self._backend.encode_batch_fast(fresh, add_special_tokens=False)
            for part, encoding in zip(fresh, batch, strict=True):
                new[part] = encoding.ids
            if len(known) < _REMEMBER:
                known.update((part, ids) for part, ids in new.items() if len(part) <= 256)
        result = []
        for parts in split:
            if len(parts) == 1:
                part = parts[0]
                result.append(known[part] if part in known else new[part])
                continue
            ids: list[int] = []
            for part in parts:
                ids += known[part] if part in known else new[part]
            result.append(ids)
        return result
