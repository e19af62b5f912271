"""Normalizes a raw chat row of any known form to a `Row`.

The result is that of ms-swift 3.9.3's AutoPreprocessor (swift/llm/dataset/preprocessor/core.py) followed by
StdTemplateInputs.from_dict (swift/llm/template/template_inputs.py). Each row is judged by its own columns, since rows
of one file may differ. Rows with `messages` in the standard form do not pass AutoPreprocessor, as if they were given to
template.encode (typed content lists, boxes unchanged); all others do. A `system` column counts in both.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Any

import numpy as np

from omniprep.errors import Reject, RejectCode, did_you_mean
from omniprep.modalities import MEDIA_COLUMNS, MODALITIES
from omniprep.rows.columns import (
    MESSAGE_ALIASES,
    MESSAGE_KEYS,
    RESPONSE_ALIASES,
    Columns,
    Note,
    rename_columns,
    renamed_item_value,
    standard_names,
    unread_columns,
    unread_item_keys,
    unread_message_keys,
)
from omniprep.rows.literal import json_text, read_literal
from omniprep.rows.mend import chat_columns_hint, keys_hint

ROLES = frozenset({"system", "user", "assistant", "tool_call", "tool_response", "tool"})
_TOOL_ROLES = frozenset({"tool_call", "tool_response", "tool"})
ITEM_OPTIONS = frozenset(
    {
        *("min_pixels", "max_pixels", "total_pixels", "resized_height", "resized_width"),
        *("fps", "nframes", "min_frames", "max_frames", "video_start", "video_end"),
    }
)
"""Keys of typed items that qwen_vl_utils reads; the reference ignores them."""

_LIMIT_COLUMNS = ITEM_OPTIONS - {"fps", "nframes"} | {"mm_processor_kwargs", "media_io_kwargs"}
"""Columns that set a row's limits in other programs. Not fps and nframes, which mostly describe the video."""

THOUGHTS = ("reasoning_content", "reasoning", "thinking")
"""Keys of messages that hold an assistant's thoughts, the first where there are several."""

_ROLE_ALIASES = {
    "human": "user",
    "gpt": "assistant",
    "bot": "assistant",
    "function_call": "tool_call",
    "function_response": "tool_response",
    "observation": "tool_response",
    "observations": "tool_response",
}


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


def normalize(raw: Any, columns: Columns = (), *, template_keys: bool = False) -> Row:
    """Normalize a raw row, which is not changed; `columns` are the (new, old) names of --columns.

    `template_keys`: a typed item's medium is also read from the other keys that `apply_chat_template` reads.
    """
    if not isinstance(raw, dict):
        raise Reject(RejectCode.BAD_ROW, f"a row must be a JSON object, not {type(raw).__name__}")
    if columns:
        raw = rename_columns(raw, columns)
    direct = _is_standard(raw.get("messages"))
    unread: dict[str, str] = {}
    if any(key in raw for key in ("conversation", "conversations", "messages")):
        row, clashes = standard_names(raw, MESSAGE_ALIASES)
        if "messages" not in row and (names := clashes.get("messages")):
            raise Reject(
                RejectCode.BAD_COLUMN,
                f"the columns {' and '.join(names)} both mean messages; --columns messages={names[0]} chooses one",
            )
        messages = _chat(row.get("messages"), row.get("system"), direct=direct)
        if isinstance(row["messages"], list):
            unread |= unread_message_keys(row["messages"])
    else:
        row, clashes = standard_names(raw, RESPONSE_ALIASES)
        alpaca = "instruction" in raw and "input" in raw
        messages = _single_turn(row, alpaca=alpaca)
        if alpaca:  # reads instruction and input itself, and output before any other answer, so these do not clash
            resolved = ("query",) if row.get("output") is None else ("query", "response")
            clashes = {target: names for target, names in clashes.items() if target not in resolved}
    if not messages:
        raise Reject(RejectCode.EMPTY_ROW, "the row has no messages")
    for target, names in clashes.items():
        if target not in names and target not in MEDIA_COLUMNS:
            unread |= {name: f"{target}={name}" for name in names}
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


def _is_standard(messages: Any) -> bool:
    """Whether messages have the form that template.encode accepts: standard keys and roles, not text of a list."""
    return isinstance(messages, list) and all(
        isinstance(message, dict)
        and isinstance(message.get("role"), str)
        and message["role"] in ROLES
        and "content" in message
        for message in messages
    )


def _chat(messages: Any, system: Any, *, direct: bool) -> list[dict[str, Any]]:
    """Messages, or ShareGPT conversations of either form (core.py MessagesPreprocessor)."""
    if isinstance(messages, str):
        messages = read_literal(messages, "messages")
    if not messages:
        raise Reject(RejectCode.EMPTY_ROW, "the row has no messages")
    if not isinstance(messages, list | tuple):
        raise Reject(RejectCode.BAD_ROW, f"messages must be a list, not {type(messages).__name__}")
    for position, message in enumerate(messages, 1):
        if not isinstance(message, dict):
            raise Reject(RejectCode.BAD_MESSAGE, f"message {position} is not an object")
    if not ({"role", "content", "from", "value"} & messages[0].keys()):
        return _pairs(messages, system)
    result = []
    for position, message in enumerate(messages, 1):
        role = message.get("role", message.get("from"))
        if not isinstance(role, str):
            raise Reject(RejectCode.BAD_MESSAGE, f"message {position} has no role")
        role = _ROLE_ALIASES.get(role.replace("-", "_"), role)
        if role not in ROLES or (role == "system" and position > 1):
            known = "system (first message only)" if role == "system" else ", ".join(sorted(ROLES))
            hint = "" if role == "system" else did_you_mean(role, (*ROLES, *_ROLE_ALIASES))
            raise Reject(RejectCode.BAD_ROLE, f"message {position} has role {role!r}; known: {known}{hint}")
        content = message.get("content", message.get("value"))
        # template.encode writes the content of tool messages as JSON, null too; the dataset path refuses any null.
        calls = message.get("tool_calls") if role == "assistant" else None
        if content is None and not calls and not (direct and (role == "system" or role in _TOOL_ROLES)):
            raise Reject(RejectCode.BAD_MESSAGE, f"message {position} ({role}) has no content")
        role = "tool" if role == "tool_response" else role
        if role in _TOOL_ROLES and not isinstance(content, str):
            content = json_text(content, RejectCode.BAD_MESSAGE, f"message {position} ({role})")
        standard = {"role": role, "content": content}
        if role == "assistant" and message.get("loss") is not None:  # the reference ignores the loss of other messages
            standard["loss"] = _loss(message["loss"], position)
        if not message.keys() <= MESSAGE_KEYS:
            standard |= _for_renderers(message, role, calls, position)
        result.append(standard)
    if system is not None and result[0]["role"] != "system":
        result.insert(0, {"role": "system", "content": system})
    return result


def _for_renderers(message: dict[str, Any], role: str, calls: Any, position: int) -> dict[str, Any]:
    """What chat templates read of a message beside its content; the reference drops it."""
    read = {name: message[name] for name in ("name", "tool_call_id") if isinstance(message.get(name), str)}
    if calls:
        if not isinstance(calls, list | tuple):
            raise Reject(RejectCode.BAD_TOOLS, f"message {position}: tool_calls must be a list")
        read["tool_calls"] = list(calls)
    if role == "assistant":
        thought = next((message[name] for name in THOUGHTS if message.get(name) is not None), None)
        if thought is not None and not isinstance(thought, str):
            raise Reject(RejectCode.BAD_MESSAGE, f"message {position}: its {THOUGHTS[0]} must be text")
        read |= {} if thought is None else {THOUGHTS[0]: thought}
    return read


def _loss(value: Any, position: int) -> float:
    try:
        weight = float(value)
    except (TypeError, ValueError, OverflowError):
        weight = math.nan
    if not math.isfinite(weight):
        raise Reject(RejectCode.BAD_MESSAGE, f"message {position}: loss must be true, false or a finite number")
    return weight


def _pairs(messages: Sequence[dict[str, Any]], system: Any) -> list[dict[str, Any]]:
    """ShareGPT's pair form: each element holds both sides of a turn."""
    result: list[dict[str, Any]] = [] if system is None else [{"role": "system", "content": system}]
    for position, message in enumerate(messages, 1):
        for role, names in (("user", ("user", "human")), ("assistant", ("assistant", "gpt", "bot"))):
            content = next((message[name] for name in reversed(names) if name in message), None)
            if content is None:
                raise Reject(RejectCode.BAD_MESSAGE, f"turn {position} has no {role} side{keys_hint(message)}")
            result.append({"role": role, "content": content})
    return result


def _single_turn(row: dict[str, Any], *, alpaca: bool) -> list[dict[str, Any]]:
    """Alpaca, and query/response with history (core.py AlpacaPreprocessor, ResponsePreprocessor)."""
    if alpaca:
        instruction, extra = row.get("instruction"), row.get("input")
        row["query"] = f"{instruction}\n{extra}" if instruction and extra else instruction or extra
        if not isinstance(row["query"], str):
            raise Reject(RejectCode.BAD_MESSAGE, "instruction and input are both empty or not text")
        row["response"] = row.get("output", row.get("response"))
    if not any(row.get(name) is not None for name in ("query", "response", "history")):
        raise Reject(RejectCode.BAD_ROW, f"no column that a chat can be read from{chat_columns_hint(row)}")
    response = row.get("response")
    if isinstance(response, list | tuple):
        # The reference draws one at random with seed 42 (RANDOM_DATASET_RESPONSE). Here each row draws from that seed
        # anew, so that a row does not depend on those before it.
        if not response:
            raise Reject(RejectCode.BAD_MESSAGE, "the list of responses is empty")
        response = response[int(np.random.RandomState(42).randint(0, len(response)))]
    history = row.get("history") or []
    if isinstance(history, str):
        history = read_literal(history, "history")
    if not isinstance(history, list) or not all(isinstance(turn, list | tuple) and len(turn) >= 2 for turn in history):
        raise Reject(RejectCode.BAD_MESSAGE, "history must be a list of [query, response]")
    messages: list[dict[str, Any]] = []
    if row.get("system") is not None:
        messages.append({"role": "system", "content": row["system"]})
    for query, answer, *_ in [*history, (row.get("query"), response)]:
        sides = (("user", query), ("assistant", answer))
        messages += [{"role": role, "content": content} for role, content in sides if content is not None]
    return messages


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
    for item in items:
        frames = modality == "video" and isinstance(item, list | tuple) and item
        parts = list(item) if frames else [item]
        if not all(isinstance(part, str | bytes | dict) for part in parts):
            raise Reject(RejectCode.BAD_COLUMN, f"{modality}s must name files, URIs, base64 text or {{bytes, path}}")
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
