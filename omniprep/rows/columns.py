"""Names of columns: --columns, the aliases that the reference knows, and columns with media that are not read.

Like the reference, omniprep ignores columns whose names it does not know. A row may lose its media that way without an
error, so columns that look like media are detected here, counted, and named in the build's summary.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from enum import IntFlag
from functools import lru_cache
from typing import Any, Literal

from omniprep.errors import Reject, RejectCode, UsageError, did_you_mean
from omniprep.modalities import MEDIA_COLUMNS, MODALITIES

_MEDIA_ALIASES = {key: f"{m}s" for m in MODALITIES for key in (f"{m}s", m)}
_SYSTEM_ALIASES = dict.fromkeys(("system", "system_prompt"), "system")
MESSAGE_ALIASES = {
    **_MEDIA_ALIASES,
    **dict.fromkeys(("messages", "conversation", "conversations"), "messages"),
    **_SYSTEM_ALIASES,
}
"""Column names of rows with messages → standard names (core.py MessagesPreprocessor)."""
RESPONSE_ALIASES = {
    **_MEDIA_ALIASES,
    **_SYSTEM_ALIASES,
    **dict.fromkeys(("query", "prompt", "input", "instruction", "question", "problem"), "query"),
    **dict.fromkeys(("response", "answer", "output", "targets", "target", "answer_key", "answers"), "response"),
    **dict.fromkeys(("solution", "text", "completion", "content"), "response"),
}
"""Column names of rows with one question and one answer → standard names (core.py ResponsePreprocessor)."""
_READ = frozenset(
    {*MESSAGE_ALIASES.values(), *RESPONSE_ALIASES.values(), "history", "tools", "objects", "chat_template_kwargs"}
)
REJECTED_ALIASES = {
    **{f"rejected_{name}": name for name in ("messages", "tools", "objects", *MEDIA_COLUMNS)},
    **{f"rejected_{name}": modality.column for name, modality in MODALITIES.items()},
}
"""Columns of the rejected answer alone → standard names (core.py RowPreprocessor.standard_keys)."""
PREFERENCE_NAMES = frozenset({"rejected_response", "chosen", "rejected", "label", "margin", *REJECTED_ALIASES})
"""Columns of preference rows (omniprep/rows/preference.py)."""
TARGETS = frozenset(
    {*_READ, *MESSAGE_ALIASES, *RESPONSE_ALIASES, *PREFERENCE_NAMES, *(f"content.{m}" for m in MODALITIES)}
)
"""Names that --columns may rename to; `content.image` is the key of items of type image in content lists."""

Preference = Literal["auto", "pairs", "kto", "mixed", "ignore"]
"""--preference. auto, mixed: a row says by its columns what it is, in auto all rows the same; pairs, kto: every row
must be a pair, or have a verdict; ignore: rows are read as if these columns were not there."""

Columns = tuple[tuple[str, str], ...]
"""The (new, old) pairs of --columns."""


class Note(IntFlag):
    """Warnings about packed rows, which the build counts: nothing is wrong, but it may not be what was meant."""

    SURPLUS_TAGS = 1
    """There are more media tags than media; the surplus tags stay text."""
    UNREAD_COLUMNS = 2
    """Columns or typed items hold media, or a part of the chat, under a name that is not read."""
    IGNORED_OPTIONS = 4
    """The row sets limits of pixels or frames, which the reference ignores."""


def parse_columns(texts: Sequence[str]) -> Columns:
    """The pairs (new, old) of --columns NEW=OLD; UsageError unless each NEW is in `TARGETS`, and given once."""
    return _parse_columns(tuple(texts)) if texts else ()


@lru_cache(maxsize=64)
def _parse_columns(texts: tuple[str, ...]) -> Columns:
    pairs: list[tuple[str, str]] = []
    for text in texts:
        new, _, old = (part.strip() for part in text.partition("="))
        if not new or not old:
            raise UsageError(f"--columns {text!r}: write it as NEW=OLD, such as images=image_paths")
        if new.lower() not in TARGETS:
            hint = did_you_mean(new, TARGETS) or f"; known: {', '.join(sorted(TARGETS))}"
            raise UsageError(f"--columns {text!r}: {new!r} is no name that a chat is read from{hint}")
        pairs.append((new.lower(), old))
    # A key of typed items may have several old names (path in some, url in others), one name for several types.
    new_names = [new for new, _ in pairs if not new.startswith("content.")]
    old_names = [f"{new}: {old.lower()}" if new.startswith("content.") else old.lower() for new, old in pairs]
    for names, side in ((new_names, "NEW"), (old_names, "OLD")):
        if repeated := {name for name in names if names.count(name) > 1}:
            raise UsageError(f"--columns: {min(repeated)!r} is given twice as {side}; a column can have one name only")
    return tuple(pairs)


def rename_columns(raw: dict[str, Any], columns: Columns) -> dict[str, Any]:
    """Apply --columns to a row, without regard to case; rejects bad_column where the new name is taken."""
    names = {key.lower(): key for key in raw if isinstance(key, str) and raw[key] is not None}
    renames = {names[old.lower()]: new for new, old in columns if old.lower() in names}
    if not renames:
        return raw
    for old, new in renames.items():
        taken = names.get(new)
        if taken is not None and taken not in renames:
            raise Reject(
                RejectCode.BAD_COLUMN, f"--columns {new}={old}: the row has a column {taken!r} already; rename one only"
            )
    # A null column of the new name is dropped, or it might overwrite the renamed one.
    dropped = {name for name in raw if isinstance(name, str) and raw[name] is None and name.lower() in renames.values()}
    return {renames.get(key, key): value for key, value in raw.items() if key not in dropped}


def renamed_item_value(item: Mapping[str, Any], kind: str, columns: Columns) -> Any:
    """The value that a content item has under the OLD of --columns content.TYPE=OLD; None without one."""
    old = [old for new, old in columns if new == f"content.{kind}" and item.get(old) is not None]
    if not old:
        return None
    if len(names := [*(name for name in (kind, f"{kind}_url") if item.get(name) is not None), *old]) > 1:
        raise Reject(RejectCode.BAD_MESSAGE, f"--columns content.{kind}={old[0]}: an item has {' and '.join(names)}")
    return item[old[0]]


def columns_of_row(raw: Any, columns: Columns) -> set[int]:
    """Numbers of the pairs of --columns whose OLD the row has; the build refuses a pair that no row has."""
    if not isinstance(raw, dict):
        return set()
    names = {key.lower() for key in raw if isinstance(key, str)}
    messages = raw.get("messages")
    items = [
        item
        for message in (messages if isinstance(messages, list) else ())
        if isinstance(message, dict) and isinstance(message.get("content"), list)
        for item in message["content"]
        if isinstance(item, dict)
    ]
    return {
        number
        for number, (new, old) in enumerate(columns)
        if (any(old in item for item in items) if new.startswith("content.") else old.lower() in names)
    }


def standard_names(raw: dict[str, Any], aliases: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, list[str]]]:
    """Rename columns to their standard names, without regard to case (core.py safe_rename_columns).

    Returns the row without columns that are null, and the standard names that two columns claim, with those columns
    (the reference then renames neither). Rejects bad_column, where two columns differ in case alone.
    """
    if raw.keys() <= _READ and all(aliases.get(key, key) == key for key in raw):  # each is its own standard name
        return {key: value for key, value in raw.items() if value is not None}, {}
    names: dict[str, list[str]] = {}
    for key in raw:
        if isinstance(key, str):
            names.setdefault(key.lower(), []).append(key)
    sources: dict[str, list[str]] = {}
    for name, keys in names.items():
        if target := aliases.get(name):
            if sum(raw[key] is not None for key in keys) > 1:
                raise Reject(RejectCode.BAD_COLUMN, f"the columns {' and '.join(map(repr, keys))} differ in case alone")
            sources.setdefault(target, []).append(next((key for key in keys if raw[key] is not None), keys[-1]))
    renames = {keys[0]: target for target, keys in sources.items() if len(keys) == 1}
    clashes = {
        target: [key for key in keys if raw[key] is not None] for target, keys in sources.items() if len(keys) > 1
    }
    return {renames.get(key, key): value for key, value in raw.items() if value is not None}, clashes


_NAME = re.compile(
    r"(images?|img|picture|pic|photo|audio|wav|video|frame)s?"
    r"(_?(path|file|filename|file_name|name|url|uri|link|list|data|bytes|b64|base64|src)s?)?(_?\d+)?"
)
_KINDS = {"image": "images", "img": "images", "pic": "images", "photo": "images", "audio": "audios", "wav": "audios"}
_FILE = re.compile(
    r"\.(?:(?P<image>jpe?g|png|gif|webp|bmp|tiff?|heic|avif|jxl)|(?P<audio>wav|mp3|flac|ogg|opus|m4a|aac|amr)"
    r"|(?P<video>mp4|mov|avi|mkv|webm|m4v|mpe?g|wmv|flv))(?:[?#]\S*)?\Z",
    re.IGNORECASE,
)
_INLINE = re.compile(r"data:(?P<kind>image|audio|video)/")
_MAGIC = {b"\x89PNG": "images", b"\xff\xd8\xff": "images", b"GIF8": "images", b"RIFF": "audios", b"fLaC": "audios"}
_ITEM_KEYS = frozenset({"path", "url", "uri", "file", "src", "source", "data", "bytes", "base64"})
MESSAGE_KEYS = frozenset({"role", "content", "loss", "from", "value", "user", "human", "assistant", "gpt", "bot"})
_CHAT_KEYS = frozenset(
    {"tool_calls", "function_call", "reasoning_content", "reasoning", "thinking", "weight", "train", "loss_weight"}
)
"""Keys of messages that hold a part of the chat, or its weight, for other programs (OpenAI's tool calls and weights,
thoughts of vLLM and SGLang, axolotl's train); the reference drops them."""
_TEXT_COLUMNS = frozenset({*_READ, *MESSAGE_ALIASES, *RESPONSE_ALIASES} - {*_MEDIA_ALIASES}) | {*MEDIA_COLUMNS}
_MAX_NAME_LENGTH = 1024
"""Longer text is prose or base64, not the name of a file."""


def kind_of_file(name: str) -> str:
    """images, audios or videos, by the suffix of a file's name; "" for other files."""
    match = _FILE.search(name)
    return f"{match.lastgroup}s" if match else ""


def _kind_of_value(value: Any, depth: int = 2) -> str:
    """images, audios or videos, where a value is clearly the name or the bytes of a media file; else ""."""
    if isinstance(value, str):
        if match := _INLINE.match(value):
            return f"{match['kind']}s"
        if len(value) > _MAX_NAME_LENGTH or "\n" in value:
            return ""
        return kind_of_file(value)
    if isinstance(value, bytes):
        return next((kind for mark, kind in _MAGIC.items() if value.startswith(mark)), "")
    if isinstance(value, dict) and depth:
        parts = [value[key] for key in ("bytes", "path", "url") if key in value]
    elif isinstance(value, list | tuple) and depth:
        parts = list(value[:4])
    else:
        return ""
    return next(filter(None, (_kind_of_value(part, depth - 1) for part in parts)), "")


def _kind_of_column(name: str, value: Any) -> str:
    """images, audios or videos, where a column holds media judging by its value, else by its name; else ""."""
    if kind := _kind_of_value(value):
        return kind
    match = _NAME.fullmatch(name.lower())
    if not match or not value or not isinstance(value, str | bytes | dict | list | tuple):
        return ""
    if isinstance(value, list | tuple) and not all(isinstance(part, str | bytes | dict) for part in value):
        return ""
    return next((kind for word, kind in _KINDS.items() if match[1].startswith(word)), "videos")


def unread_columns(row: Mapping[str, Any], read: Collection[str]) -> dict[str, str]:
    """Columns with media that are not read, each with the --columns value that would read it ("" where none does)."""
    unread = {}
    for name, value in row.items():
        if not isinstance(name, str) or name.lower() in _TEXT_COLUMNS or not (kind := _kind_of_column(name, value)):
            continue
        if kind not in read:
            unread[name] = f"{kind}={name}"
        elif name.lower() in _MEDIA_ALIASES or name[-1].isdigit():
            # Beside media that are read, only `image` beside `images`, and image_2, surely hold others; file_name or
            # image_url mostly repeat the first column.
            unread[name] = ""
    return unread


def unread_message_keys(messages: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Keys of messages that hold media, a part of the chat or its weight beside the content.

    No option reads them: --columns renames columns of the row and keys of typed items.
    """
    return {
        f"messages.{name}": ""
        for message in messages
        if not message.keys() <= MESSAGE_KEYS
        for name, value in message.items()
        if name not in MESSAGE_KEYS
        and ((name in _CHAT_KEYS and value is not None and value not in ("", [])) or _kind_of_column(str(name), value))
    }


def unread_item_keys(item: Mapping[str, Any], kind: str) -> dict[str, str]:
    """Keys with media of a typed item that has none under its type, each with the --columns value that reads them."""
    return {
        f"content.{kind}.{name}": f"content.{kind}={name}"
        for name, value in item.items()
        if isinstance(name, str) and (_kind_of_column(name, value) or (name.lower() in _ITEM_KEYS and value))
    }
