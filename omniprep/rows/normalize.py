"""Normalizes a raw chat row of any known form to a `Row`.

The result is that of ms-swift 3.9.3's AutoPreprocessor (swift/llm/dataset/preprocessor/core.py) followed by
StdTemplateInputs.from_dict (swift/llm/template/template_inputs.py). Each row is judged by its own columns, since rows
of one file may differ. Rows with `messages` in the standard form do not pass AutoPreprocessor, as if they were given to
template.encode (typed content lists, boxes unchanged); all others do. A `system` column counts in both.
"""

import math
from dataclasses import dataclass, field
from datetime import date
from typing import Any

from omniprep.errors import Reject, RejectCode
from omniprep.modalities import MODALITIES
from omniprep.rows.chat import read_chat
from omniprep.rows.columns import (
    Columns,
    Note,
    rename_columns,
    renamed_item_value,
    unread_columns,
    unread_item_keys,
)

ITEM_OPTIONS = frozenset(
    {
        *("min_pixels", "max_pixels", "total_pixels", "resized_height", "resized_width"),
        *("fps", "nframes", "min_frames", "max_frames", "video_start", "video_end"),
    }
)
"""Keys of typed items that qwen_vl_utils reads; the reference ignores them."""

_LIMIT_COLUMNS = ITEM_OPTIONS - {"fps", "nframes"} | {"mm_processor_kwargs", "media_io_kwargs"}
"""Columns that set a row's limits in other programs. Not fps and nframes, which mostly describe the video."""


@dataclass(slots=True)
class Row:
    """One chat, in the reference's standard form.

    `messages` hold role (user, assistant, tool_call, tool), content (str, or None of an answer that is missing or calls
    tools only) and, where the row set them, loss and what renderers alone read: reasoning_content, tool_calls, name,
    tool_call_id. `media` holds, by modality, what names each item: a path, URI, base64 string, bytes, a dict
    {bytes, path}, or (videos) a list of frames. `kwargs` are the row's own media limits (chat_template_kwargs).
    `notes` and `unread` are what the build reports about the row; `unread` names columns and items with media that
    nothing reads, each with the --columns option that reads it ("" where none does). `control_tokens`: its text holds
    control tokens of the model that people typed. For renderers: `references` and `boxes` are what replaces each
    `<ref-object>` and `<bbox>`, `variables` what the row's chat_template_kwargs set in the chat template, `today` the
    day that it takes for today (None: the present day).
    """

    messages: list[dict[str, Any]]
    system: str | None = None
    tools: Any = None
    media: dict[str, list[Any]] = field(default_factory=lambda: {modality: [] for modality in MODALITIES})
    objects: dict[str, Any] = field(default_factory=dict)
    kwargs: dict[str, Any] = field(default_factory=dict)
    notes: Note = field(default_factory=lambda: Note(0))
    unread: dict[str, str] = field(default_factory=dict)
    control_tokens: bool = False
    references: list[str] = field(default_factory=list)
    boxes: list[str] = field(default_factory=list)
    variables: dict[str, Any] = field(default_factory=dict)
    today: date | None = None


def normalize(
    raw: Any, columns: Columns = (), *, template_keys: bool = False, dataset_path: bool = False
) -> Row:  # fmt: skip
    """Normalize a raw row, which is not changed; `columns` are the (new, old) names of --columns.

    `template_keys`: a typed item's medium is also read from the other keys that `apply_chat_template` reads.
    `dataset_path`: the row passes AutoPreprocessor whatever its messages look like (a part of a row that does).
    """
    if not isinstance(raw, dict):
        raise Reject(RejectCode.BAD_ROW, f"a row must be a JSON object, not {type(raw).__name__}")
    if columns:
        raw = rename_columns(raw, columns)
    chat = read_chat(raw)
    row, messages, unread = chat.row, chat.messages, chat.unread
    direct = chat.direct and not dataset_path
    inline = _lift_inline_media(messages, columns, template_keys=template_keys)
    unread |= inline.unread
    system = None
    if messages[0]["role"] == "system":
        system = messages.pop(0)["content"]
        if not isinstance(system, str | None):
            raise Reject(RejectCode.BAD_MESSAGE, "the system message's content must be text")
    if not messages:
        raise Reject(RejectCode.EMPTY_ROW, "the row has only a system message")
    media = {m: _media_column(row.get(f"{m}s"), m) for m in MODALITIES}
    for modality, items in inline.media.items():
        if items and media[modality]:
            raise Reject(RejectCode.BAD_COLUMN, f"{modality}s stand both in the messages and in the column {modality}s")
        media[modality] = items or media[modality]
    unread |= unread_columns(row, {f"{m}s" for m, items in media.items() if items})
    notes = Note.UNREAD_COLUMNS if unread else Note(0)
    if inline.options or row.get("chat_template_kwargs") or not _LIMIT_COLUMNS.isdisjoint(row):
        notes |= Note.IGNORED_OPTIONS
    if not direct:
        row["tools"] = _as_arrow(row.get("tools"))
    return Row(
        messages=messages,
        system=system,
        tools=row.get("tools"),
        media=media,
        objects=_objects(row.get("objects"), dataset_path=not direct),
        kwargs=row.get("chat_template_kwargs") or {},
        notes=notes,
        unread=unread,
    )


_TEMPLATE_KEYS = ("url", "path", "base64")
"""Beside the type's own name, where apply_chat_template finds a medium (processing_utils.py of transformers)."""


@dataclass(slots=True)
class _Inline:
    """What the typed content lists of a row hold beside text."""

    media: dict[str, list[Any]] = field(default_factory=lambda: {m: [] for m in MODALITIES})
    unread: dict[str, str] = field(default_factory=dict)
    options: bool = False
    template_keys: bool = False


def _lift_inline_media(messages: list[dict[str, Any]], columns: Columns, *, template_keys: bool) -> _Inline:
    """Replace typed content lists by text with tags, and return their media in reading order (template_inputs.py
    remove_messages_media).
    """
    inline = _Inline(template_keys=template_keys)
    for position, message in enumerate(messages, 1):
        content = message["content"]
        if content is None or isinstance(content, str):
            continue
        if not isinstance(content, list):
            raise Reject(RejectCode.BAD_MESSAGE, f"message {position}: content must be text or a list of typed items")
        message["content"] = "".join(_lift_item(item, position, columns, inline) for item in content)
    return inline


def _lift_item(item: Any, position: int, columns: Columns, inline: _Inline) -> str:
    """The text of a typed item; its media are added to `inline`."""
    kind = item.get("type") if isinstance(item, dict) else None
    if not isinstance(kind, str):
        raise Reject(RejectCode.BAD_MESSAGE, f"message {position}: each item of a content list needs a type")
    value = item.get(kind)
    if kind == "text":
        if not isinstance(value, str):
            raise Reject(RejectCode.BAD_MESSAGE, f"message {position}: a text item has no text")
        return value
    kind = kind.removesuffix("_url")
    if columns and (renamed := renamed_item_value(item, kind, columns)) is not None:
        value = renamed
    if kind not in inline.media and value:
        raise Reject(RejectCode.UNSUPPORTED_MODALITY, f"message {position}: items of type {kind!r} are not known")
    if isinstance(value, dict) and "url" in value:
        value = value["url"]
    if not value and inline.template_keys and len(keys := [key for key in _TEMPLATE_KEYS if item.get(key)]) == 1:
        value = item[keys[0]]
    if value:
        inline.media[kind].append(value)
        inline.options |= not ITEM_OPTIONS.isdisjoint(item)
    elif kind in inline.media:
        inline.unread |= unread_item_keys(item, kind)
    elif len(item) > 1:
        inline.unread[f"content.{kind}"] = ""
    return f"<{kind}>"


def _media_column(value: Any, modality: str) -> list[Any]:
    if value is None:
        return []
    items = value if isinstance(value, list | tuple) else [value]
    for number, item in enumerate(items, 1):
        frames = modality == "video" and isinstance(item, list | tuple) and item
        parts = list(item) if frames else [item]
        if not all(isinstance(part, str | bytes | dict) for part in parts):
            raise Reject(
                RejectCode.BAD_COLUMN,
                f"{modality}s must name files, URIs, base64 text or {{bytes, path}}; item {number} is of type "
                f"{type(item).__name__}",
            )
    return list(items)


def _objects(value: Any, *, dataset_path: bool) -> dict[str, Any]:
    """Keep ref, bbox, bbox_type, image_id; the reference's dataset path makes numbers floats and puts corners in order.

    Source: core.py _check_objects.
    """
    if not value:
        return {}
    if not isinstance(value, dict):
        raise Reject(RejectCode.BAD_OBJECTS, "objects must be an object with ref and bbox")
    result = {key: value[key] for key in ("ref", "bbox", "bbox_type", "image_id") if value.get(key) is not None}
    for key in ("ref", "bbox", "image_id"):
        if not isinstance(result.get(key, []), list):
            raise Reject(RejectCode.BAD_OBJECTS, f"objects: {key} must be a list, not {type(result[key]).__name__}")
    for position, name in enumerate(result.get("ref", []), 1):
        if not isinstance(name, str | int | float):
            raise Reject(RejectCode.BAD_OBJECTS, f"reference {position} must be text, not {type(name).__name__}")
    if "bbox" in result:
        result["bbox"] = [_box(box, position, dataset_path) for position, box in enumerate(result["bbox"], 1)]
    elif dataset_path:
        raise Reject(RejectCode.BAD_OBJECTS, "objects have no bbox")
    return result


def _box(box: Any, position: int, dataset_path: bool) -> list[Any]:
    if not isinstance(box, list | tuple) or len(box) not in (2, 4) or not all(map(_is_number, box)):
        raise Reject(RejectCode.BAD_OBJECTS, f"box {position} must be 2 or 4 finite numbers")
    if not dataset_path:
        return list(box)
    box = list(map(float, box))
    if len(box) == 4:
        box = [min(box[0], box[2]), min(box[1], box[3]), max(box[0], box[2]), max(box[1], box[3])]
    return box


def _is_number(value: Any) -> bool:
    """Whether a coordinate is a number that is finite as a float; true and false are none."""
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # an integer beyond the largest float
        return False


def _as_arrow(tools: Any) -> Any:
    """Pass tools through Arrow like the reference's dataset path: objects of one list get the same keys, some null."""
    if not isinstance(tools, list) or not tools or not isinstance(tools[0], dict):
        return tools
    import pyarrow as pa

    try:
        return pa.array([tools]).to_pylist()[0]
    except (pa.ArrowException, OverflowError, TypeError, ValueError) as error:
        raise Reject(RejectCode.BAD_TOOLS, f"tools mix types that one Arrow column cannot hold: {error}") from error
