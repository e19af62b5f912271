"""A row as the messages that `apply_chat_template` takes: content as typed parts, calls of tools, thoughts.

Nothing is merged, trimmed or put in order here: that is the chat template's part.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from omniprep.errors import Reject, RejectCode
from omniprep.modalities import MODALITIES
from omniprep.rows.literal import parse_json
from omniprep.rows.normalize import Row

Form = Literal["parts", "text"]
"""How a role's content is given to a template: a list of typed parts, or one string."""
Write = Callable[[int, str, str], str]
"""(number of a message, "content" | "thought" | "call", text of an assistant) → the text that a template gets."""
_TAGS = re.compile("(<image>|<audio>|<video>|<bbox>|<ref-object>)")
_PASSED_ON = ("name", "tool_call_id")
"""Keys of messages that some templates read, passed on as they are."""


@dataclass(frozen=True, slots=True)
class Part:
    """Text, or (without text) the place of a media item."""

    text: str = ""
    modality: str = ""


@dataclass(slots=True)
class ChatMessage:
    """A message of a row, its text cut at its media."""

    role: str
    parts: list[Part]
    """None of an assistant that calls tools without a word."""
    thought: str | None = None
    calls: list[dict[str, Any]] = field(default_factory=list)
    loss: float | None = None
    passed_on: dict[str, Any] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """All text, without media."""
        return "".join(part.text for part in self.parts)


def chat_messages(
    row: Row, counts: Mapping[str, int], references: Sequence[str] = (), boxes: Sequence[str] = ()
) -> list[ChatMessage]:
    """The messages of a row; the first tags, in reading order, are its media, references and boxes.

    Args:
        row: With its tool calls as they are (role tool_call), and the tags that were missing added.
        counts: Items of each modality. Tags beyond them stay text.
        references: What replaces each `<ref-object>`.
        boxes: What replaces each `<bbox>`.

    Raises:
        Reject: placeholder_mismatch, where an item has no tag; bad_tools.
    """
    media = {f"<{modality}>": iter(range(counts.get(modality, 0))) for modality in MODALITIES}
    written = {"<ref-object>": iter(references), "<bbox>": iter(boxes)}
    messages: list[ChatMessage] = []
    if row.system is not None:
        messages.append(ChatMessage("system", _parts(row.system, media, written)))
    called_before = False
    for message in row.messages:
        role, content = message["role"], message["content"]
        if role == "tool_call":
            call = tool_call(content)
            if messages and messages[-1].role == "assistant" and (called_before or not messages[-1].calls):
                messages[-1].calls.append(call)
            else:
                messages.append(ChatMessage("assistant", [], calls=[call]))
            called_before = True
            continue
        called_before = False
        messages.append(
            ChatMessage(
                role,
                [] if content is None else _parts(content, media, written),
                thought=message.get("reasoning_content"),
                calls=[_standard_call(call) for call in message.get("tool_calls") or ()],
                loss=message.get("loss"),
                passed_on={name: message[name] for name in _PASSED_ON if message.get(name) is not None},
            )
        )
    for tag, left in media.items():
        if (missing := sum(1 for _ in left)) > 0:
            raise Reject(RejectCode.PLACEHOLDER_MISMATCH, f"{missing} {tag} items have no place in the chat")
    return messages


def _parts(text: str, media: Mapping[str, Iterator[int]], written: Mapping[str, Iterator[str]]) -> list[Part]:
    """Text and media in reading order; neighboring texts are one."""
    parts: list[Part] = []
    texts: list[str] = []

    def end_text() -> None:
        if joined := "".join(texts):
            parts.append(Part(joined))
        texts.clear()

    for piece in _TAGS.split(text):
        if piece in media and next(media[piece], None) is not None:
            end_text()
            parts.append(Part(modality=piece[1:-1]))
        else:
            texts.append(next(written[piece], piece) if piece in written else piece)
    end_text()
    return parts or [Part()]


def tool_call(content: str) -> dict[str, Any]:
    """The JSON text of a tool_call message as an entry of `tool_calls`; rejects bad_tools."""
    call = parse_json(content)
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        raise Reject(RejectCode.BAD_TOOLS, "a tool call must be JSON with name and arguments")
    arguments = call.get("arguments")
    arguments = parse_json(call.get("parameters") if arguments is None else arguments)
    if arguments is None:
        raise Reject(RejectCode.BAD_TOOLS, f"tool call {call['name']!r} has no arguments that can be parsed")
    return {"type": "function", "function": {"name": call["name"], "arguments": arguments}}


def _standard_call(call: Any) -> dict[str, Any]:
    """An entry of a message's own `tool_calls`: arguments given as JSON text (OpenAI) become an object."""
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise Reject(RejectCode.BAD_TOOLS, "an entry of tool_calls must be an object with a function and its name")
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        arguments = parse_json(arguments)
    known = {"name": function["name"], "arguments": {} if arguments is None else arguments}
    return {**{k: v for k, v in call.items() if k == "id" and v}, "type": "function", "function": known}


def as_written(message: int, kind: str, text: str) -> str:
    """The text itself."""
    return text


def as_template_input(
    messages: Sequence[ChatMessage],
    forms: Mapping[str, Form],
    write: Write = as_written,
) -> list[dict[str, Any]]:
    """Messages as dicts, as `apply_chat_template` takes them.

    Args:
        messages: From `chat_messages`.
        forms: How each role's content is given; of a message with media always as parts.
        write: Called for the texts of assistants, in order; the place for marks.
    """
    result = []
    for number, message in enumerate(messages):
        entry: dict[str, Any] = {"role": message.role}
        own = message.role == "assistant"
        if message.thought is not None:
            entry["reasoning_content"] = write(number, "thought", message.thought)
        texts = [
            part.text if part.modality or not own else write(number, "content", part.text) for part in message.parts
        ]
        has_media = any(part.modality for part in message.parts)
        if has_media or (message.parts and forms.get(message.role, "parts") == "parts"):
            entry["content"] = [
                # A template may ask for the type, or whether the key of the medium is there.
                {"type": part.modality, part.modality: f"<{part.modality}>"}
                if part.modality
                else {"type": "text", "text": text}
                for part, text in zip(message.parts, texts, strict=True)
            ]
        elif message.parts:
            entry["content"] = "".join(texts)
        if message.calls:
            entry["tool_calls"] = [
                {**call, "function": {**call["function"], "name": write(number, "call", call["function"]["name"])}}
                for call in message.calls
            ]
        result.append({**entry, **message.passed_on})
    return result
