"""Finds the answers in a rendered chat: the characters that a chat template made of each assistant message.

A template without {% generation %} does not say where its answers are, and it may trim them, drop thoughts or write
calls of tools in its own form. So the chat is rendered a second time with marks, characters of a private-use area that
the row does not hold, around the texts of assistants. Where the second text without its marks equals the first, the
marks stand at the places of the answers, whatever the template does. Where it differs, the marks are put further
inside, where trimming and splitting at tags do not meet them; a row for which no marks work is rejected.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice, pairwise

from omniprep.errors import Reject, RejectCode
from omniprep.template.jinja import ChatTemplate
from omniprep.template.messages import ChatMessage, Write

_AREAS = (range(0xF0000, 0xFFFFE), range(0x100000, 0x10FFFE), range(0xE000, 0xF900))
"""Private-use areas, from the least used on."""
_MARKUP = re.compile(r"(<[^<>\s]{1,64}>|\[[A-Z_/]{2,32}\])")
"""Tags at which templates split answers, such as </think>."""


@dataclass(slots=True)
class AnswerSpan:
    """Where an assistant message is in the text: characters start .. end, and up to `suffix_end` what ends it.

    start and end are equal where the template wrote nothing of the message.
    """

    start: int
    end: int
    suffix_end: int


@dataclass(slots=True)
class _Leaf:
    """A text of an assistant message with the marks put into it: pairs around some of its pieces."""

    message: int
    kind: str
    pieces: list[str]
    """The text, cut at the marks: unmarked, marked, unmarked, marked, ..., unmarked."""
    marks: list[str] = field(default_factory=list)


Cut = Callable[[str], list[str]]


def _whole(text: str) -> list[str]:
    return ["", text, ""]


def _core(text: str) -> list[str]:
    """Without the white space around it, which a template may trim."""
    start = len(text) - len(text.lstrip())
    end = max(start, len(text.rstrip()))
    return [text[:start], text[start:end], text[end:]]


def _between_tags(text: str) -> list[str]:
    """The core of each run of text between tags."""
    pieces = [""]
    for number, run in enumerate(_MARKUP.split(text)):
        if number % 2 or not run.strip():
            pieces[-1] += run
            continue
        before, core, after = _core(run)
        pieces[-1] += before
        pieces += [core, after]
    return pieces


def _unless_empty(cut: Cut) -> Cut:
    """An empty text stays without marks: a template may leave out what is empty."""
    return lambda text: cut(text) if text else [text]


_CUTS: tuple[Cut, ...] = (
    _whole,
    _core,
    _between_tags,
    *(_unless_empty(cut) for cut in (_whole, _core, _between_tags)),
)


def find_answers(
    text: str,
    messages: Sequence[ChatMessage],
    template: ChatTemplate,
    render: Callable[[Write], str],
) -> list[AnswerSpan]:
    """Where each assistant message is in a rendered chat, in the order of the messages.

    Args:
        text: The chat as rendered.
        messages: What it was rendered from.
        template: Of the checkpoint.
        render: Renders the chat again, with the texts that a function of (message, kind, text) gives for those of
            assistants (`as_template_input`).

    Raises:
        Reject: answer_not_found.
    """
    assistants = [number for number, message in enumerate(messages) if message.role == "assistant"]
    if not assistants:
        return []
    refusal: Reject | None = None
    tried: set[tuple[str, ...]] = set()
    for cut in _CUTS:
        leaves: list[_Leaf] = []
        marks = _free_marks(messages)

        def write(
            message: int,
            kind: str,
            content: str,
            cut: Cut = cut,
            leaves: list[_Leaf] = leaves,
            marks: Iterator[str] = marks,
        ) -> str:
            leaf = _Leaf(message, kind, (_whole if kind == "call" else cut)(content))  # names of calls are identifiers
            leaf.marks = list(islice(marks, len(leaf.pieces) - 1))
            if len(leaf.marks) < len(leaf.pieces) - 1:
                raise Reject(RejectCode.ANSWER_NOT_FOUND, "the row has more answers than there are marks for")
            leaves.append(leaf)
            return leaf.pieces[0] + "".join(map("".join, zip(leaf.marks, leaf.pieces[1:], strict=True)))

        try:
            marked = render(write)
        except Reject as reject:
            refusal = reject
            continue
        signature = tuple(piece for leaf in leaves for piece in (*leaf.pieces, ""))
        if signature in tried:
            continue
        tried.add(signature)
        spans = _locate(text, marked, leaves)
        if spans is not None:
            return _complete(text, spans, leaves, messages, assistants, template)
    why = f" (with marks around the answers {refusal.message})" if refusal else ""
    raise Reject(
        RejectCode.ANSWER_NOT_FOUND,
        f"the chat template rewrites an answer so that its place in the text cannot be told{why}",
    )


def _free_marks(messages: Sequence[ChatMessage]) -> Iterator[str]:
    """The private-use characters that the row does not hold."""
    used = {character for text in _texts(messages) if not text.isascii() for character in text if character >= "\ue000"}
    return (mark for area in _AREAS for mark in map(chr, area) if mark not in used)


def _texts(messages: Sequence[ChatMessage]) -> Iterator[str]:
    for message in messages:
        yield message.text
        yield message.thought or ""
        yield from (repr(call) for call in message.calls)


_MARKS = re.compile("([\U000f0000-\U000ffffd\U00100000-\U0010fffd\ue000-\uf8ff])")


def _locate(text: str, marked: str, leaves: list[_Leaf]) -> list[tuple[int, int] | None] | None:
    """The characters of `text` that each leaf became (None: it is not in the text), or None where marks fail."""
    expected = {mark for leaf in leaves for mark in leaf.marks}
    offsets: dict[str, int] = {}
    pieces, length = [], 0
    for piece in _MARKS.split(marked):
        if piece in expected:
            if piece in offsets:
                return None  # written twice
            offsets[piece] = length
        else:
            pieces.append(piece)
            length += len(piece)
    if "".join(pieces) != text:
        return None
    spans: list[tuple[int, int] | None] = []
    for leaf in leaves:
        found = [(number, offsets[mark]) for number, mark in enumerate(leaf.marks) if mark in offsets]
        if not found:
            spans.append(None)
            continue
        (first, start), (last, end) = found[0], found[-1]
        kept = [number for number, _ in found]
        in_order = all(a <= b for (_, a), (_, b) in pairwise(found))
        if first % 2 or not last % 2 or kept != list(range(first, last + 1)) or not in_order:
            return None  # a part of a marked piece, or pieces out of order
        # Tags at the ends of the text have no mark outside them, and templates trim the white space inside them.
        before, after = leaf.pieces[0].strip(), leaf.pieces[-1].strip()
        if first == 0 and before:
            head = text[:start].rstrip()
            start = len(head) - len(before) if head.endswith(before) else start
        if last == len(leaf.marks) - 1 and after:
            tail = len(text) - len(text[end:].lstrip())
            end = tail + len(after) if text.startswith(after, tail) else end
        spans.append((start, end))
    return spans


def _complete(
    text: str,
    spans: list[tuple[int, int] | None],
    leaves: list[_Leaf],
    messages: Sequence[ChatMessage],
    assistants: list[int],
    template: ChatTemplate,
) -> list[AnswerSpan]:
    """Spans of whole messages: from the first to the last of their texts, with what the template writes around them."""
    result: list[AnswerSpan] = []
    previous_end = 0
    for position, number in enumerate(assistants):
        own = [(leaf, span) for leaf, span in zip(leaves, spans, strict=True) if leaf.message == number and span]
        if not own:
            result.append(AnswerSpan(previous_end, previous_end, previous_end))
            continue
        start, end = min(span[0] for _, span in own), max(span[1] for _, span in own)
        if start < previous_end:
            raise Reject(RejectCode.ANSWER_NOT_FOUND, "the chat template writes the answers in another order")
        if any(leaf.kind != "content" for leaf, _ in own):  # thoughts and calls stand in the template's own markup
            turn = text.rfind(template.turn, previous_end, start) if template.turn else -1
            if turn >= 0:
                start = turn + len(template.turn)
            elif own[0][0].kind != "content":
                raise Reject(
                    RejectCode.ANSWER_NOT_FOUND,
                    f"message {number + 1}: where the chat template begins its thought or tool call cannot be told",
                )
        if any(leaf.kind == "call" for leaf, _ in own):
            is_last = position == len(assistants) - 1 and number == len(messages) - 1
            ends = [(at, len(suffix)) for suffix in template.ends if (at := text.find(suffix, end)) >= 0]
            if not ends and not is_last:
                raise Reject(
                    RejectCode.ANSWER_NOT_FOUND, f"message {number + 1}: where its tool call ends cannot be told"
                )
            end, length = min(ends, key=lambda found: (found[0], -found[1])) if ends else (len(text), 0)
            result.append(AnswerSpan(start, end, end + length))
        else:
            suffix = next((suffix for suffix in template.ends if text.startswith(suffix, end)), "")
            result.append(AnswerSpan(start, end, end + len(suffix)))
        previous_end = result[-1].suffix_end
    return result
