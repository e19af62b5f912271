"""Hints for rows whose columns or tags look like others that are read: what was meant, and how to say it.

A hint stands in the message of a reject, or in what a build says of columns that nobody reads. Nothing is guessed and
then done: a row is read as the reference reads it, or rejected.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from omniprep.errors import did_you_mean
from omniprep.modalities import MODALITIES
from omniprep.rows.columns import MESSAGE_ALIASES, RESPONSE_ALIASES

_MESSAGE_KEYS = frozenset({"role", "content", "from", "value", "user", "assistant", "human", "gpt", "bot"})
_SYNONYMS = {
    **dict.fromkeys(("user", "human", "q", "ask", "request", "user_message"), "query"),
    **dict.fromkeys(("assistant", "gpt", "bot", "a", "reply", "caption", "label", "assistant_message"), "response"),
}
"""Names that other programs give to the two sides of a chat, and that the reference does not know."""


def chat_columns_hint(row: Mapping[str, Any]) -> str:
    """For a row without a column that a chat is read from: its columns, and the --columns that would read a chat."""
    names = f" (columns: {', '.join(map(str, row)) or 'none'})"
    lists = [name for name, value in row.items() if isinstance(name, str) and _is_chat(value)]
    if lists:
        return names + _columns(f"messages={name}" for name in lists[:1])
    pairs: dict[str, str] = {}
    for name, value in row.items():
        if not isinstance(name, str) or not isinstance(value, str):
            continue
        known = {**MESSAGE_ALIASES, **RESPONSE_ALIASES}
        close = did_you_mean(name, (alias for alias, new in known.items() if new in ("query", "response")))
        target = _SYNONYMS.get(name.lower()) or (known[close.split("'")[1]] if close else "")
        if target and target not in pairs:
            pairs[target] = name
    return names + _columns(f"{new}={old}" for new, old in pairs.items())


def _is_chat(value: Any) -> bool:
    """Whether a value is a list of messages, judging by the keys of the first."""
    first = value[0] if isinstance(value, list | tuple) and value else None
    return isinstance(first, dict) and not _MESSAGE_KEYS.isdisjoint(first)


def _columns(pairs: Iterable[str]) -> str:
    """A hint that names pairs NEW=OLD."""
    options = " ".join(f"--columns {pair}" for pair in pairs)
    return f"; did you mean {options}?" if options else ""


def keys_hint(message: Mapping[str, Any]) -> str:
    """For a message without known keys: which keys are known."""
    keys = ", ".join(map(repr, list(message)[:6])) or "none"
    return f" (its keys: {keys}; known are role and content, from and value, user and assistant)"


def unread_hint(unread: Mapping[str, str], modality: str) -> str:
    """For a row that lacks media of a modality: the --columns that read a column with such media, or ""."""
    options = [option for option in unread.values() if option.startswith(f"{modality}s=")]
    return _columns(options[:1])


_WORDS = {
    "image": ("image", "images", "img", "imgs", "picture", "pic", "photo"),
    "audio": ("audio", "audios", "sound", "speech", "voice", "wav"),
    "video": ("video", "videos", "vid", "clip", "movie"),
}
assert _WORDS.keys() == MODALITIES.keys()
_MODALITY_OF = {word: modality for modality, words in _WORDS.items() for word in words}
_BRACKETS = (("<|", "|>"), ("<", ">"), ("[", "]"), ("{{", "}}"), ("{", "}"))
_NAME = rf"(?:{'|'.join(_MODALITY_OF)})(?:[ _-]?(?:placeholder|token|pad|here|tag|\d{{1,3}}))?"
_TAG = re.compile("|".join(f"{re.escape(left)}/?{_NAME}/?{re.escape(right)}" for left, right in _BRACKETS), re.I)
_EXACT = frozenset(f"<{modality}>" for modality in MODALITIES)


def tag_meant(text: str) -> str:
    """The tag of the medium that a text such as <|image_pad|> names, or "" where it names none."""
    word = next((word for word in re.findall(r"[a-z]+", text.lower()) if word in _MODALITY_OF), "")
    return f"<{_MODALITY_OF[word]}>" if word else ""


def odd_tags(texts: Sequence[str], media: Mapping[str, Sequence[Any]]) -> dict[str, str]:
    """What looks like the tag of a medium that the row has, and is none, with the tag that it was perhaps meant as.

    Only of a modality with fewer tags than items: the others stand before the text then, as in the reference.
    """
    found: dict[str, str] = {}
    for text in texts:
        if not any(mark in text for mark in "<[{"):
            continue
        for match in _TAG.findall(text):
            meant = tag_meant(match)
            modality = meant[1:-1]
            if match not in _EXACT and len(media[modality]) > sum(other.count(meant) for other in texts):
                found[match] = meant
    return found
