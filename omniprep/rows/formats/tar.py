"""Tars of WebDataset: members whose names are equal up to the first dot are one row; a tar is a split.

`000123.json` holds the row (any form that a line of JSON may have), `000123.txt` the answer where no JSON says one, and
the other members are its media, in their order. A row that names its media (`"images": ["000123.jpg"]`, or `"jpg"`)
gets those; one that names none gets all. Media are not read here: a row holds references to ranges of bytes of the tar.

Source: webdataset tariterators.py base_plus_ext and group_by_keys (names of keys, members that begin with "__").
"""

import posixpath
import re
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from omniprep import io
from omniprep.errors import Reject, RejectCode
from omniprep.io.tar import Member, MemberName, read_members
from omniprep.modalities import MEDIA_COLUMNS
from omniprep.rows.choosing import Chooser, picked
from omniprep.rows.columns import MESSAGE_ALIASES, REJECTED_ALIASES, RESPONSE_ALIASES, kind_of_file
from omniprep.rows.inputs import Input
from omniprep.rows.jsontext import parse_row
from omniprep.rows.split import Split

_KEY = re.compile(r"(?P<key>(?:.*/)?[^/.]+)\.(?P<extension>[^/]+)", re.DOTALL)
_CHAT_COLUMNS = frozenset(
    {*MESSAGE_ALIASES, *RESPONSE_ALIASES, "chosen", "rejected"} - {"system", "system_prompt", *MEDIA_COLUMNS}
)
_Texts = dict[str, bytes | Reject]
"""Contents of the members json and txt of a row."""


def splits(entry: Input) -> Iterator[Split]:
    """As `Format.splits`."""
    yield Split(entry.source, "tar", 0, 0, entry.uri or entry.source, entry.base)


def count_rows(split: Split) -> int:
    """As `Format.count_rows`."""
    return sum(1 for _ in _groups(split.uri, lambda member, file: b""))


def fingerprint(split: Split) -> dict[str, Any]:
    """As `Format.fingerprint`."""
    return io.fingerprint(split.uri)


def read_rows(split: Split, max_row_bytes: int, chooser: Chooser | None = None) -> Iterator[Any]:
    """As `Format.read_rows`."""

    def text(member: Member, file: BinaryIO) -> bytes | Reject:
        if member.size > max_row_bytes:
            message = f"{member.name}: {member.size:,} bytes, the limit is {max_row_bytes:,} (--max-line-bytes)"
            return Reject(RejectCode.LINE_TOO_LONG, message)
        file.seek(member.offset)
        return file.read(member.size)

    seen = set[str]()
    for key, members, texts in _groups(split.uri, text):
        try:
            if key in seen:
                raise Reject(RejectCode.BAD_ROW, f"{key}: an earlier row of the tar has the same key")
            yield picked(chooser, _row(split.uri, key, members, texts))
        except Reject as reject:
            yield Reject(reject.code, reject.message)
        seen.add(key)


def _groups(
    uri: str, text: Callable[[Member, BinaryIO], bytes | Reject]
) -> Iterator[tuple[str, dict[str, Member], _Texts]]:
    """(key, members by extension, texts) of each row; members of a row lie beside each other."""
    key, members, texts = "", dict[str, Member](), _Texts()
    for member, file in read_members(uri):
        match = _KEY.fullmatch(member.name)
        if match is None or any(part.startswith((".", "__")) for part in member.name.split("/")):
            continue  # no extension; hidden files, and what webdataset keeps for itself
        extension = match["extension"].lower()
        # A second member of that name begins a new row, which has a key that was seen before and is rejected for it.
        if match["key"] != key or extension in members:
            if members:
                yield key, members, texts
            key, members, texts = match["key"], {}, {}
        members[extension] = member
        if extension in ("json", "txt"):
            texts[extension] = text(member, file)
    if members:
        yield key, members, texts


def _row(tar: str, key: str, members: dict[str, Member], texts: _Texts) -> dict[str, Any]:
    row: Any = {}
    if (content := texts.get("json")) is not None:
        row = content if isinstance(content, Reject) else parse_row(content)
        if isinstance(row, Reject):
            raise Reject(row.code, f"{members['json'].name}: {row.message}")
        if not isinstance(row, dict):
            raise Reject(RejectCode.BAD_ROW, f"{members['json'].name}: holds no JSON object but {type(row).__name__}")
    elif "txt" not in texts:
        names = ", ".join(members)
        raise Reject(RejectCode.BAD_ROW, f"{key}: the tar has neither {key}.json nor {key}.txt (it has {names})")
    media: dict[str, list[MemberName]] = {}
    for extension, member in members.items():
        if column := kind_of_file(member.name):
            media.setdefault(column, []).append(MemberName.of(tar, member))
        elif extension not in texts:
            # Named in the summary as a column that nobody reads, where it is one that might be media.
            row.setdefault(extension, MemberName.of(tar, member))
    if "txt" in texts and not any(name.lower() in _CHAT_COLUMNS for name in row if isinstance(name, str)):
        row["messages"] = _caption(members["txt"], texts["txt"], media)
    by_name = {
        name: reference
        for references in media.values()
        for reference in references
        for name in _names(reference.member.name, key)
    }
    used = _resolve(row, by_name)
    if not used and not any(row.get(column) for column in row if str(column).lower() in _MEDIA_NAMES):
        row.update(media)
    return dict(row)


_MEDIA_NAMES = frozenset(
    {
        *MEDIA_COLUMNS,
        *(name.removesuffix("s") for name in MEDIA_COLUMNS),
        *(name for name, target in REJECTED_ALIASES.items() if target in MEDIA_COLUMNS),
    }
)
_LISTS_OF_MESSAGES = ("messages", "rejected_messages", "chosen", "rejected", "prompt")
"""Columns whose messages may have typed content, and so name media."""


def _names(member: str, key: str) -> tuple[str, str, str]:
    """How a row may name one of its members: in full, by the file's name, by its extension."""
    return member, posixpath.basename(member), member[len(key) + 1 :]


def _caption(member: Member, content: bytes | Reject, media: dict[str, list[MemberName]]) -> list[dict[str, str]]:
    """The chat of media with a text: the text is the answer, as in captions."""
    if isinstance(content, Reject):
        raise content
    try:
        answer = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Reject(RejectCode.BAD_ROW, f"{member.name}: is not UTF-8: {error}") from error
    tags = "".join(f"<{column.removesuffix('s')}>" * len(references) for column, references in media.items())
    return [{"role": "user", "content": tags}, {"role": "assistant", "content": answer}]


def _resolve(row: dict[str, Any], by_name: dict[str, MemberName]) -> bool:
    """Put references in place of the names of members in media columns and content lists; whether there were any."""
    used = False

    def replaced(value: Any) -> Any:
        nonlocal used
        if isinstance(value, list):
            return [replaced(entry) for entry in value]
        if isinstance(value, dict):
            return {key: replaced(entry) if key in ("path", "url") else entry for key, entry in value.items()}
        if isinstance(value, str) and value in by_name:
            used = True
            return by_name[value]
        return value

    for name in [name for name in row if isinstance(name, str) and name.lower() in _MEDIA_NAMES]:
        row[name] = replaced(row[name])
    lists = [value for name, value in row.items() if str(name).lower() in _LISTS_OF_MESSAGES]
    for message in [message for messages in lists if isinstance(messages, list) for message in messages]:
        content = message.get("content") if isinstance(message, dict) else None
        for item in content if isinstance(content, list) else ():
            kind = item.get("type") if isinstance(item, dict) else None
            if isinstance(kind, str) and kind != "text" and kind in item:
                item[kind] = replaced(item[kind])
                used = True
    return used
