"""How long planning takes, guessed before anything is planned: --workers auto decides by it who plans."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from omniprep.errors import OmniprepError
from omniprep.rows.opening import open_text
from omniprep.rows.split import Split

BYTE_SECONDS = 3e-7
"""A byte of text: parsed, rendered and tokenized. Measured as CPU time on chats of 1 kB."""
ITEM_SECONDS = 1e-3
"""A media item, whose header is read; a video takes some times as long."""
ROW_SECONDS = 1e-3
"""A row of an input that tells neither its bytes nor its text."""
SAMPLE_BYTES = 64 << 10
"""Read of an input to see how many of its rows name media: chats with a picture each have some 200 rows in it."""
SAMPLED_INPUTS = 8
"""Inputs that are sampled, each by one request; the others are taken to be as these."""
_COMPRESSION = 4
"""Bytes of text in a byte of compressed text."""
_MEDIA_KEY = re.compile(r'"(?:image|audio|video)(?:s|_url|_path)?"\s*[:,}]')


def plan_seconds(splits: Sequence[Split], inputs: Sequence[Mapping[str, Any]]) -> list[float]:
    """Seconds that a core takes to plan each split, about.

    Args:
        splits: What is planned.
        inputs: Facts of each input, with its `source` and, where they are known, its `bytes`.
    """
    sizes = {entry["source"]: entry.get("bytes") for entry in inputs}
    parts = Counter(split.source for split in splits)
    first = {split.source: split for split in reversed(splits) if split.kind in ("lines", "values")}
    sampled = [_items_per_byte(split) for split in list(first.values())[:SAMPLED_INPUTS]]
    items_per_byte = sum(sampled) / len(sampled) if sampled else 0.0
    text_seconds = BYTE_SECONDS + ITEM_SECONDS * items_per_byte
    seconds = []
    for split in splits:
        total = sizes.get(split.source)
        if split.in_ranges:
            seconds.append(text_seconds * (split.end - split.start))
        elif isinstance(total, int):
            factor = text_seconds if split.source in first else BYTE_SECONDS
            seconds.append(factor * total * (_COMPRESSION if split.codec else 1) / parts[split.source])
        else:
            seconds.append(ROW_SECONDS * max(split.end - split.start, 1))
    return seconds


def _items_per_byte(split: Split) -> float:
    """Media items that the beginning of an input names, for each byte of it."""
    try:
        with open_text(split.uri, split.codec, split.encoding) as file:
            text = file.read(SAMPLE_BYTES)
    except (OSError, OmniprepError):  # planning will say what is wrong with it
        return 0.0
    sample = text.decode(errors="replace") if isinstance(text, bytes) else text
    return len(_MEDIA_KEY.findall(sample)) / max(len(sample), 1)
