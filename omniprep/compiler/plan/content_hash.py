"""The hash of a row for --dedup exact: of all that its tensors follow from.

Tokens and loss weights stand for the text, as the template writes it; then come the bytes of each media file, and the
limits that the row sets for it. Names of files are left out, so that copies of a file are equal.
"""

import dataclasses
import hashlib
import json
from typing import Any

import numpy as np

from omniprep.compiler.isolate.deadline import row_deadline
from omniprep.compiler.plan.planned import PlannedRow
from omniprep.errors import Reject
from omniprep.lru import BoundedCache
from omniprep.media.source import Source
from omniprep.rows.preference import Verdict

HASH_BYTES = 16
"""At 10,000,000 rows, two different ones have the same hash with a probability of 1e-25."""
_BLOCK = 1 << 20
_KEPT_FILES = 1 << 16
"""Files of which a task remembers the hash: a picture that many rows show is read once."""
_NOT_OF_THE_CONTENT = ("reader",)
"""Facts of an item that depend on the machine: who decodes the video."""


class ContentHashes:
    """Hashes rows; remembers the files that it read."""

    def __init__(self) -> None:
        self._files: BoundedCache[str, bytes] = BoundedCache(_KEPT_FILES)

    def of_row(self, row: PlannedRow) -> bytes | Reject:
        """The 16 bytes of a row; the reject of a row whose media cannot be read."""
        digest = hashlib.blake2b(digest_size=HASH_BYTES)
        for array in (array for part in row.sequences for array in (part.ids, part.run_lengths, part.run_weights)):
            values = np.ascontiguousarray(array)
            digest.update(len(values).to_bytes(8, "little"))
            digest.update(values.tobytes())
        if row.verdict != Verdict.NONE:  # an answer that is wanted here and unwanted there is no duplicate
            digest.update(json.dumps(row.verdict).encode())
        # All items of both answers, shared or not: whether they share a file depends on its name, not on its bytes.
        items = [(name, item) for part in row.sequences for name, found in part.items.items() for item in found]
        try:
            for modality, item in items:
                facts = {n: v for n, v in dataclasses.asdict(item.meta).items() if n not in _NOT_OF_THE_CONTENT}
                shown: Any = [modality, item.tokens, item.audio, len(item.sources), facts]
                digest.update(json.dumps(shown, sort_keys=True, default=str).encode())
                for source in item.sources:
                    digest.update(self._of_file(source))
        except Reject as reject:
            return Reject(reject.code, reject.message)
        return digest.digest()

    def _of_file(self, source: Source) -> bytes:
        if (known := self._files.get(source.key)) is not None:
            return known
        digest = hashlib.blake2b(digest_size=32)
        with row_deadline("a row's media"), source.open() as file:
            while block := file.read(_BLOCK):
                digest.update(block)
        return self._files.put(source.key, digest.digest())
