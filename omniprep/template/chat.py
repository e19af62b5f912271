"""Renders a row with a chat template into pieces of text, each with a loss weight.

Source: ms-swift 3.9.3 swift/llm/template/base.py (_preprocess_function_call, _swift_prepare_inputs, _swift_encode,
_concat_context_list, _add_default_tags).
"""

import re
from typing import Any

from omniprep.errors import Reject, RejectCode, UsageError
from omniprep.modalities import MODALITIES
from omniprep.rows.columns import Note
from omniprep.rows.mend import odd_tags, unread_hint
from omniprep.rows.normalize import Row
from omniprep.template.agent import format_tool_calls, format_tool_responses, format_tools, parse_tools
from omniprep.template.loss import OTHER, RESPONSE, SUFFIX, Pieces, Strategy, parse_strategy, weigh
from omniprep.template.meta import TemplateMeta

# Strategies under which ms-swift 3.9.3 drops the thoughts of earlier answers.
_LAST_ROUND_STRATEGIES = tuple(map(parse_strategy, ("last_round", "last_round_with_ignore_empty_think")))
TAGS = {modality: f"<{modality}>" for modality in MODALITIES}


CHATML_MESSAGE = re.compile(r"<\|im_start\|>([^\n]*)\n(.*?)(?:<\|im_end\|>|\Z)", re.DOTALL)
"""Role and content of a message that the default template (ChatML) wrote."""


def without_roles(meta: TemplateMeta, end_of_text: str | None) -> TemplateMeta:
    """The template of --no-use-chat-template: only the text and an end token (ms-swift: to_generate_template_meta).

    Raises:
        UsageError: The tokenizer has no end token.
    """
    if end_of_text is None:
        raise UsageError("--no-use-chat-template ends each row with the tokenizer's eos_token, and it has none")
    return TemplateMeta(
        system_prefix=(),
        prompt=("{{QUERY}}",),
        chat_sep=None,
        suffix=(end_of_text,),
        stop_words=meta.stop_words,
        norm_bbox=meta.norm_bbox,
        agent_template="react_en",
        box_tokens=meta.box_tokens,
        reference_tokens=meta.reference_tokens,
    )


def merge_tool_calls(messages: list[dict[str, Any]], style: str) -> list[dict[str, Any]]:
    """Join each run of tool_call messages into one assistant message."""
    result: list[dict[str, Any]] = []
    calls: list[str] = []
    for message in [*messages, None]:
        if message is not None and message["role"] == "tool_call":
            calls.append(message["content"])
            continue
        if calls:
            result.append({"role": "assistant", "content": format_tool_calls(calls, style)})
            calls = []
        if message is not None:
            result.append(message)
    return result


def add_missing_tags(row: Row) -> None:
    """Put the tags that are missing before the first message (base.py _add_default_tags)."""
    if not any(row.media.values()):
        return
    text = "\n".join(message["content"] or "" for message in row.messages)
    if row.system:
        text = f"{row.system}\n{text}"
    first = row.messages[0]
    for modality in MODALITIES:
        missing = len(row.media[modality]) - text.count(TAGS[modality])
        if missing > 0:
            first["content"] = TAGS[modality] * missing + (first["content"] or "")


def surplus_tags(row: Row) -> str:
    """A warning for a row with more tags than media, else ""; called after `add_missing_tags`.

    Like the reference, omniprep replaces the first tags and leaves the surplus as text (base.py _add_default_tags).
    """
    texts = [row.system or "", *(message["content"] or "" for message in row.messages)]
    texts = [text for text in texts if "<" in text]
    if not texts:
        return ""
    for modality in MODALITIES:
        tags, items = sum(text.count(TAGS[modality]) for text in texts), len(row.media[modality])
        if tags > items:
            return f"{tags} {TAGS[modality]} tags, but {items} {modality} items{unread_hint(row.unread, modality)}"
    return ""


def _merge(messages: list[dict[str, Any]], meta: TemplateMeta) -> list[dict[str, Any]]:
    """Join the tool messages after an answer into one tool round, and consecutive user or assistant messages."""
    result = [messages[0]]
    number = 1
    while number < len(messages):
        previous, message = result[-1], messages[number]
        roles = (previous["role"], message["role"])
        if roles == ("assistant", "tool"):
            end = number
            while end < len(messages) and messages[end]["role"] == "tool":
                end += 1
            contents = [response["content"] for response in messages[number:end]]
            previous["content"], contexts = format_tool_responses(
                previous["content"], contents, meta.prompt, meta.chat_sep or (), meta.agent_template
            )
            result.append({"role": "tool", "content": contexts})
            number = end
            continue
        if roles in (("assistant", "assistant"), ("user", "user")):
            if previous["content"] is None or message["content"] is None:
                raise Reject(RejectCode.BAD_MESSAGE, "two assistant messages in a row, one of them without content")
            previous["content"] += message["content"]
        else:
            result.append(message)
        number += 1
    return result


def _without_thoughts(messages: list[dict[str, Any]]) -> None:
    for message in messages[:-1]:
        if message["role"] == "assistant" and isinstance(message["content"], str):
            message["content"] = message["content"].split("</think>")[-1].strip()


def _system_text(row: Row, meta: TemplateMeta, default: str | None) -> str | None:
    """The system text with tools; rejected where the template has none (base.py check_system)."""
    if not meta.system_prefix and row.system:
        raise Reject(RejectCode.BAD_MESSAGE, "the chat template has no place for the row's system text")
    if not meta.system_prefix and row.tools:
        raise Reject(RejectCode.BAD_TOOLS, "the chat template has no system text that the row's tools could stand in")
    system = row.system if row.system is not None else default
    system = meta.default_system if system is None else system
    return system if row.tools is None else format_tools(row.tools, system, meta.agent_template)


def _fill(context: str, values: tuple[tuple[str, str | None], ...]) -> str:
    if "{{" not in context:
        return context
    for mark, value in values:
        if value is not None and mark in context:
            context = context.replace(mark, value)
    return context


def contexts(
    row: Row, meta: TemplateMeta, strategy: Strategy, *, default_system: str | None, generate: bool = False
) -> Pieces:
    """Render a chat into (text, loss weight) pieces, in which media tags are still text; messages are rewritten.

    `default_system` is the system prompt of rows without one (None: the template's; "": no system block). `generate`
    leaves the last answer open. Rejects bad_role, bad_message and bad_tools.
    """
    messages = _merge(row.messages, meta)
    if not meta.keeps_thoughts and (generate or strategy in _LAST_ROUND_STRATEGIES):
        _without_thoughts(messages)
    system = _system_text(row, meta, default_system)
    if messages[0]["role"] == "assistant":
        messages.insert(0, {"role": "user", "content": ""})
    if len(messages) % 2 == 1:
        messages.append({"role": "assistant", "content": None})
    if meta.chat_sep is None and len(messages) > 2:
        messages = messages[-2:]
    rounds = len(messages) // 2
    pieces: Pieces = []

    def add(text: str, kind: str, *, last_round: bool = False, query: Any = None, loss: float | None = None) -> None:
        pieces.extend(weigh(strategy, text, kind, last_round=last_round, query=query, loss=loss))

    for context in meta.system_prefix if system else meta.prefix:
        if text := _fill(context, (("{{SYSTEM}}", system),)):
            add(text, OTHER)
    for number, (question, answer) in enumerate(zip(messages[::2], messages[1::2], strict=True)):
        if question["role"] not in ("user", "tool") or answer["role"] != "assistant":
            raise Reject(
                RejectCode.BAD_ROLE,
                f"turn {number + 1} goes {question['role']} → {answer['role']}; users and assistants must take turns",
            )
        is_tool = question["role"] == "tool"
        if is_tool and isinstance(question["content"], str):
            raise Reject(
                RejectCode.BAD_ROLE, f"turn {number + 1} begins with a tool's answer, but nothing was called before it"
            )
        query: str = "" if is_tool else question["content"]
        values = (
            ("{{SYSTEM}}", system),
            ("{{QUERY}}", query),
            ("{{ROUND0}}", str(number)),
            ("{{ROUND1}}", str(number + 1)),
        )
        for context in question["content"] if is_tool else meta.prompt:
            if text := _fill(context, values):
                add(text, OTHER)
        response, last = answer["content"], number == rounds - 1
        if response is None:
            continue
        add(response, RESPONSE, last_round=last, query=question["content"], loss=answer.get("loss"))
        if not last:
            if messages[2 * (number + 1)]["role"] != "tool":
                for text in meta.chat_sep or ():
                    add(text, OTHER)
        elif not generate and not response.endswith(meta.stop_words):
            for text in meta.suffix:
                add(text, SUFFIX)
    return pieces


_LEGACY_IMAGE = re.compile(r"<img>(.+?)</img>")


def prepare(row: Row, is_file: Any, agent_template: str | None = "hermes") -> Row:
    """Prepare a row in place: parse tools, render tool calls, lift legacy image tags, add missing tags.

    Without an `agent_template`, a renderer writes the tool calls.
    """
    row.tools = parse_tools(row.tools)
    if agent_template is not None:
        for number, message in enumerate(row.messages, 1 + (row.system is not None)):
            if message["role"] == "assistant" and message["content"] is None:
                raise Reject(RejectCode.BAD_MESSAGE, f"message {number} (assistant) has no content")
        row.messages = merge_tool_calls(row.messages, agent_template)
    if not row.media["image"]:
        for message in row.messages:
            if message["content"] and "<img>" in message["content"]:
                paths = _LEGACY_IMAGE.findall(message["content"])
                row.media["image"] += [path for path in paths if is_file(path)]
                message["content"] = _LEGACY_IMAGE.sub("<image>", message["content"])
    last = row.messages[-1]
    if last["role"] == "user" and last["content"].endswith("<start-image>"):
        last["content"] = last["content"].removesuffix("<start-image>")
    if any(row.media.values()):
        texts = [row.system or "", *(message["content"] or "" for message in row.messages)]
        if odd := odd_tags(texts, row.media):
            row.unread |= {f"tag {tag} (did you mean {meant}?)": "" for tag, meant in odd.items()}
            row.notes |= Note.UNREAD_COLUMNS
    add_missing_tags(row)
    return row
