"""The chat of a raw row of any known form, as messages with standard roles.

The forms are those of ms-swift 3.9.3 (swift/llm/dataset/preprocessor/core.py): messages, ShareGPT's conversations of
both forms, Alpaca's columns, and a question with its answer.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from omniprep.errors import Reject, RejectCode, did_you_mean
from omniprep.modalities import MEDIA_COLUMNS
from omniprep.rows.columns import (
    MESSAGE_ALIASES,
    MESSAGE_KEYS,
    RESPONSE_ALIASES,
    standard_names,
    unread_message_keys,
)
from omniprep.rows.literal import json_text, read_literal
from omniprep.rows.mend import chat_columns_hint, keys_hint

ROLES = frozenset({"system", "user", "assistant", "tool_call", "tool_response", "tool"})
_TOOL_ROLES = frozenset({"tool_call", "tool_response", "tool"})
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


@dataclass(frozen=True, slots=True)
class Chat:
    """The chat of a raw row before its typed content and media are read."""

    row: dict[str, Any]
    """Its columns by their standard names, without null ones."""
    messages: list[dict[str, Any]]
    """A system text is the first of them."""
    direct: bool
    """Whether the row does not pass ms-swift's AutoPreprocessor (omniprep/rows/normalize.py)."""
    unread: dict[str, str]
    """As in `omniprep.rows.normalize.Row`."""


def read_chat(raw: dict[str, Any]) -> Chat:
    """The messages of a raw row, of any form that is read."""
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
    return Chat(row, messages, direct, unread)


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
            raise Reject(
                RejectCode.BAD_MESSAGE,
                f"message {position} is a {type(message).__name__} and not an object with role and content",
            )
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
            keys = "" if {"content", "value"} & message.keys() else f" (its keys: {', '.join(map(str, message))[:100]})"
            raise Reject(RejectCode.BAD_MESSAGE, f"message {position} ({role}) has no content{keys}")
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
