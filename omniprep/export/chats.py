"""`--prompts chats`: the rows of the inputs without their last answers, with media that any program can open."""

import base64
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from omniprep.compiler.encode.single_row import last_answer, prompt_row
from omniprep.config import BuildConfig, Trust, build_config
from omniprep.errors import OmniprepError, Reject
from omniprep.inspect.trust import input_refusal, located_input
from omniprep.media.fetch import MediaRoots
from omniprep.modalities import MODALITIES
from omniprep.rows.columns import parse_columns
from omniprep.rows.preference import Verdict, split_answers
from omniprep.shards.dataset import StoredDataset
from omniprep.template.chat import TAGS
from omniprep.verify.deep import read_lines


@dataclass(frozen=True, slots=True)
class SkippedChat:
    """A packed row of which no prompt is made, and why."""

    source: str
    line: int
    reason: str


def chat_lines(dataset: StoredDataset, trust: Trust, inputs: Sequence[str]) -> Iterator[dict[str, Any] | SkippedChat]:
    """A chat and its answer for each packed row, in the order of the inputs.

    Raises:
        OmniprepError: An input changed since the build, is not there, or has not all of its rows; media of a row are
            not where they were, or need a flag that `trust` lacks.
    """
    record = dataset.record
    config = build_config(record.config, trust, model=record.model)
    packed = dataset.rows.filter(dataset.rows["bin"].is_valid())
    wanted: dict[str, set[int]] = {}
    for row in packed.select(["source", "line"]).to_pylist():
        wanted.setdefault(row["source"], set()).add(row["line"])
    for source, lines in wanted.items():
        if refusal := input_refusal(source, record, dataset.uri, inputs):
            raise OmniprepError(f"{source}: not read: {refusal}")
        path = located_input(source, record, dataset.uri, inputs)
        missing = set(lines)
        for number, split, raw in read_lines(path, lines, config):
            missing.discard(number)
            if isinstance(raw.content, Reject):
                raise OmniprepError(f"{source}:{number}: cannot be read any more: {raw.content}")
            try:
                yield _chat(source, number, raw.content, config, split.base)
            except Reject as reject:
                raise OmniprepError(f"{source}:{number}: {reject}; the dataset was built with it") from reject
        if missing:
            raise OmniprepError(f"{source}: line {min(missing)} is not there any more")


def _chat(source: str, line: int, row: Any, config: BuildConfig, base: str) -> dict[str, Any] | SkippedChat:
    columns = parse_columns(config.columns)
    if split_answers(row, config.preference, columns).verdict == Verdict.UNDESIRABLE:
        return SkippedChat(source, line, "its answer is labeled as undesirable")
    chat = prompt_row(row, columns, preference=config.preference)
    answer = last_answer(row, columns, config.preference)
    if reason := _refusal(chat, answer):
        return SkippedChat(source, line, reason)
    messages = [{name: message[name] for name in ("role", "content")} for message in chat["messages"]]
    if config.system and messages[0]["role"] != "system":  # --system, which rows with a text of their own overrule
        messages = [{"role": "system", "content": config.system}, *messages]
    first = messages[messages[0]["role"] == "system"]
    prompt: dict[str, Any] = {"source": source, "line": line, "prompt": messages}
    roots = MediaRoots(base, config.media_root, config.allow_http)
    for modality, items in _media(chat).items():
        # Items without a tag stand before the first message, as in a build.
        missing = len(items) - _tag_count(messages, modality)
        first["content"] = TAGS[modality] * missing + first["content"]
        prompt[MODALITIES[modality].column] = [_reachable(item, roots) for item in items]
    return prompt | {"answer": answer}


def _refusal(chat: Mapping[str, Any], answer: str | None) -> str:
    """Why a row's prompt is no chat that other programs read as a build does; empty if it is one."""
    messages, media = chat["messages"], _media(chat)
    if not answer:
        return "no answer"
    if not any(message["role"] != "system" for message in messages):
        return "no prompt before the last answer"
    if chat.get("tools") or any(message["role"] not in ("system", "user", "assistant") for message in messages):
        return "tools, whose text is the build's; use --prompts tokens"
    if chat.get("objects"):
        return "boxes and names of objects, whose text is the build's; use --prompts tokens"
    if chat.get("chat_template_kwargs") or any(not isinstance(message["content"], str) for message in messages):
        return "options of its own, which a chat has no place for; use --prompts tokens"
    if "image" not in media and any("<img>" in message["content"] for message in messages):
        return "images named in <img> tags of the text; use --prompts tokens"
    for modality, tag in TAGS.items():
        if modality in media and tag in answer:
            return "media in the answer"
        if _tag_count(messages, modality) > len(media.get(modality, ())):
            return f"more {tag} tags than media; use --prompts tokens"
    return ""


def _media(chat: Mapping[str, Any]) -> dict[str, list[Any]]:
    """The items of a row by modality, of those that it has."""
    return {name: chat[entry.column] for name, entry in MODALITIES.items() if chat.get(entry.column)}


def _tag_count(messages: Sequence[Mapping[str, Any]], modality: str) -> int:
    return sum(message["content"].count(TAGS[modality]) for message in messages)


def _reachable(item: Any, roots: MediaRoots) -> Any:
    """A media item as an absolute path, a URI, or its bytes as data:...;base64, where it has neither."""
    if isinstance(item, list | tuple):
        return [_reachable(frame, roots) for frame in item]
    if isinstance(item, str) and item.startswith(("http://", "https://")):
        return item
    source = roots.locate(item)
    if source.member is None and source.data is None:
        return os.path.abspath(source.path) if source.path is not None else source.uri
    return f"data:application/octet-stream;base64,{base64.b64encode(source.read()).decode()}"
