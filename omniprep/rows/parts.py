"""--split-by rows: whether a row belongs to the dataset that is trained on, or to the one for evaluation.

A row's part follows from its text, the names of its media and the seed alone, not from its place: appended rows, other
machines and other orders of files come to the same, and copies of a row (with another id, say) are in one part.
"""

import hashlib
import json
from typing import Any

from omniprep.errors import Reject
from omniprep.io.tar import MemberName
from omniprep.rows.columns import Columns, Preference
from omniprep.rows.normalize import Row, normalize
from omniprep.rows.preference import preferred_row


def is_for_eval(raw: Any, columns: Columns, fraction: float, seed: int, preference: Preference = "auto") -> bool:
    """Whether a raw row is among the share `fraction` for evaluation; one that cannot be read is not.

    `columns` are the pairs of --columns. Of a pair the preferred answer counts, so that a chat is in the same part with
    and without a rejected one.
    """
    if isinstance(raw, Reject):
        return False
    try:
        # A key of items that only chat templates read counts too: the part must not depend on the model.
        raw, columns = preferred_row(raw, preference, columns)
        row = normalize(raw, columns, template_keys=True)
        text = json.dumps(_content(row), sort_keys=True, default=_as_text)
    except (Reject, RecursionError, TypeError, ValueError):
        return False  # planning, which reads it next, says what is wrong with it
    digest = hashlib.blake2b(f"{seed} {text}".encode(errors="surrogatepass"), digest_size=8)
    return int.from_bytes(digest.digest(), "big") < fraction * 2**64


def _content(row: Row) -> list[Any]:
    messages = [{name: value for name, value in message.items() if name != "loss"} for message in row.messages]
    media = {modality: [_reference(item) for item in items] for modality, items in row.media.items()}
    return [row.system, messages, row.tools, row.objects, media]


def _reference(item: Any) -> Any:
    """What names an item, wherever the row lies: the path in the row, the name within a tar, or a hash of the bytes."""
    if isinstance(item, MemberName):
        return item.member.name
    if isinstance(item, bytes):
        return hashlib.blake2b(item, digest_size=16).hexdigest()
    if isinstance(item, dict):
        data = item.get("bytes")
        return _reference(data) if data is not None else item.get("path")
    return [_reference(part) for part in item] if isinstance(item, list | tuple) else item


def _as_text(value: Any) -> str:
    """Values that JSON has no form for: dates and the like of tables."""
    return value.hex() if isinstance(value, bytes) else str(value)
