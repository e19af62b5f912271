"""The renderer of families whose checkpoint brings its own chat template: a row → text, loss weights, media items."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from omniprep.errors import Reject, RejectCode
from omniprep.modalities import MODALITIES
from omniprep.rows.normalize import Row
from omniprep.template.answers import AnswerSpan, find_answers
from omniprep.template.chat import contexts, without_roles
from omniprep.template.jinja import ChatTemplate, Spans
from omniprep.template.loss import RESPONSE, SUFFIX, Strategy, weigh
from omniprep.template.messages import ChatMessage, Write, as_template_input, as_written, chat_messages
from omniprep.template.meta import TemplateMeta
from omniprep.template.rendered import ItemSpan, Rendered, WeightSpan
from omniprep.template.tags import replace_tags


class HasChatTemplate(Protocol):
    """What the renderer needs of a family."""

    @property
    def chat(self) -> ChatTemplate:
        """The checkpoint's chat template."""

    def tag(self, modality: str, number: int = 1, *, plain: bool = False) -> str:
        """What the template writes for an item, and the processor replaces."""


def render_chat(family: HasChatTemplate, row: Row, strategy: Strategy, *, generate: bool = False) -> Rendered:
    """A row as `apply_chat_template` of the checkpoint's processor writes it.

    Args:
        family: With its `chat`.
        row: `media` say how many items there are; tool calls are messages of their own (role tool_call).
        strategy: Of --loss-scale.
        generate: End with the generation prompt (inference).

    Raises:
        Reject: template_refused, answer_not_found, placeholder_mismatch, bad_tools.
    """
    chat = family.chat
    counts = {modality: len(items) for modality, items in row.media.items()}
    messages = chat_messages(row, counts, row.references, row.boxes)

    def render(write: Write = as_written) -> tuple[str, Spans]:
        entries = as_template_input(messages, chat.forms, write)
        return chat.render(entries, tools=row.tools, generate=generate, variables=row.variables, today=row.today)

    text, generated = render()
    items = find_items(text, counts, family)
    if generate:
        weights: list[WeightSpan] = []
    elif chat.marks_generation(row.tools):
        weights = _generation_weights(text, generated, messages, strategy)
    else:
        answers = find_answers(text, messages, chat, lambda write: render(write)[0])
        weights = _answer_weights(text, answers, messages, strategy)
    if strategy.base == "all" and not generate:
        weights = _fill(weights, len(text))
    return Rendered(
        text,
        tuple(_without_items(weights, items)),
        tuple(items),
        special_tokens=chat.adds_special_tokens(text),
        spaces_count=not chat.marks_generation(row.tools),
    )


def render_plain(family: Any, row: Row, meta: TemplateMeta, strategy: Strategy, *, generate: bool = False) -> Rendered:
    """A row as text without roles and with an end token (--no-use-chat-template)."""
    plain = without_roles(meta, family.special_tokens.eos_token)
    pieces = contexts(row, plain, strategy, default_system=None, generate=generate)
    counts = {modality: len(items) for modality, items in row.media.items()}
    pieces = replace_tags(
        pieces,
        counts=counts,
        placeholder_text=lambda modality, number: family.tag(modality, number + 1, plain=True),
        references=list(row.references),
        box_texts=lambda: list(row.boxes),
    )
    weights, start = [], 0
    for piece, weight in pieces:
        weights.append(WeightSpan(start, start + len(piece), weight))
        start += len(piece)
    text = "".join(piece for piece, _ in pieces)
    items = find_items(text, counts, family)
    return Rendered(text, tuple(_without_items(weights, items)), tuple(items))


def find_items(text: str, counts: Mapping[str, int], family: HasChatTemplate) -> list[ItemSpan]:
    """The places of the media items in a text, found by their tags; rejects placeholder_mismatch.

    The processor replaces whatever equals a tag, so a number other than that of the items is what it would refuse, or
    worse: give an item's embeddings to a text that someone typed.
    """
    items: list[ItemSpan] = []
    for modality in MODALITIES:
        if not counts.get(modality):
            continue
        tags = [family.tag(modality, number + 1) for number in range(counts[modality])]
        pattern = re.compile("|".join(map(re.escape, sorted(set(tags), key=len, reverse=True))))
        found = list(pattern.finditer(text))
        if len(found) != len(tags):
            raise Reject(
                RejectCode.PLACEHOLDER_MISMATCH,
                f"{len(tags)} {modality} items, but the chat template writes {len(found)} {tags[0]!r}",
            )
        in_order = [match.group() for match in found] == tags
        if not in_order and sorted(match.group() for match in found) != sorted(tags):
            raise Reject(RejectCode.PLACEHOLDER_MISMATCH, f"the chat template does not write each {modality} item once")
        numbers = range(len(tags)) if in_order else [tags.index(match.group()) for match in found]
        items += [ItemSpan(*match.span(), modality, number) for match, number in zip(found, numbers, strict=True)]
    return sorted(items)


def _last_round(messages: Sequence[ChatMessage]) -> int:
    """The number of the first message of the last round: what follows the last message that is no answer."""
    return next((n for n in range(len(messages), 0, -1) if messages[n - 1].role != "assistant"), 0)


def _query(messages: Sequence[ChatMessage], number: int) -> str:
    """The text of the last message before an answer that is no answer."""
    return next((message.text for message in reversed(messages[:number]) if message.role != "assistant"), "")


def _weigh_answer(
    text: str, start: int, end: int, messages: Sequence[ChatMessage], number: int, strategy: Strategy
) -> list[WeightSpan]:
    pieces = weigh(
        strategy,
        text[start:end],
        RESPONSE,
        last_round=number >= _last_round(messages),
        query=_query(messages, number),
        loss=messages[number].loss,
    )
    spans = []
    for piece, weight in pieces:
        spans.append(WeightSpan(start, start + len(piece), weight))
        start += len(piece)
    return spans


def _answer_weights(
    text: str, answers: list[AnswerSpan], messages: Sequence[ChatMessage], strategy: Strategy
) -> list[WeightSpan]:
    """Weights of the answers and of what ends them.

    As in the reference of the other families, the end of the last answer is trained whatever the answer's own weight
    (ms-swift: the suffix), that of an earlier one where the answer itself is (_add_dynamic_eos).
    """
    weights: list[WeightSpan] = []
    assistants = [number for number, message in enumerate(messages) if message.role == "assistant"]
    for number, answer in zip(assistants, answers, strict=True):
        spans = _weigh_answer(text, answer.start, answer.end, messages, number, strategy)
        weights += spans
        if answer.suffix_end == answer.end:
            continue
        if number == len(messages) - 1 or (spans and spans[-1].weight > 0):
            suffix = text[answer.end : answer.suffix_end]
            ((_, weight),) = weigh(strategy, suffix, SUFFIX, last_round=True, query="", loss=None)
            weights.append(WeightSpan(answer.end, answer.suffix_end, weight))
    return [span for span in weights if span.end > span.start]


def _generation_weights(
    text: str, generated: Sequence[tuple[int, int]], messages: Sequence[ChatMessage], strategy: Strategy
) -> list[WeightSpan]:
    """Weights of what the template itself marks; with the default strategy exactly transformers' assistant mask."""
    assistants = [number for number, message in enumerate(messages) if message.role == "assistant"]
    plain = strategy.base == "default" and not strategy.maps and all(messages[n].loss is None for n in assistants)
    if plain:
        return [WeightSpan(start, end, 1.0) for start, end in generated if end > start]
    if len(generated) != len(assistants):
        raise Reject(
            RejectCode.ANSWER_NOT_FOUND,
            f"the chat template marks {len(generated)} generations for {len(assistants)} answers, so that a weight of "
            "one answer has no place; use the default --loss-scale and no loss of messages",
        )
    weights: list[WeightSpan] = []
    for number, (start, end) in zip(assistants, generated, strict=True):
        weights += _weigh_answer(text, start, end, messages, number, strategy)
    return [span for span in weights if span.end > span.start]


def _fill(weights: list[WeightSpan], length: int) -> list[WeightSpan]:
    """The text between the spans with weight 1 (the strategy all)."""
    filled, start = [], 0
    for span in [*weights, WeightSpan(length, length, 0.0)]:
        if span.start > start:
            filled.append(WeightSpan(start, span.start, 1.0))
        if span.end > span.start:
            filled.append(span)
        start = max(start, span.end)
    return filled


def _without_items(weights: Sequence[WeightSpan], items: Sequence[ItemSpan]) -> list[WeightSpan]:
    """The spans cut at the media items, which are never trained."""
    result: list[WeightSpan] = []
    for span in weights:
        start = span.start
        for item in items:
            if item.end <= start or item.start >= span.end:
                continue
            if item.start > start:
                result.append(WeightSpan(start, item.start, span.weight))
            start = max(start, item.end)
        if span.end > start:
            result.append(WeightSpan(start, span.end, span.weight))
    return result
