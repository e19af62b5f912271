"""What the text of a row may not hold: tokens of the model typed by people, and characters that UTF-8 cannot encode."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from omniprep.config import BuildConfig
from omniprep.errors import Reject, RejectCode
from omniprep.families.context import FamilyContext
from omniprep.rows.literal import json_text, parse_json
from omniprep.rows.mend import tag_meant
from omniprep.rows.normalize import Row
from omniprep.template.agent import parse_tools
from omniprep.template.chat import TAGS


@dataclass(frozen=True, slots=True)
class _TypedTokens:
    """Patterns of tokens that people may have typed.

    A text without any of the first characters holds none: most texts are done after that one search.
    """

    first_characters: re.Pattern[str]
    media: re.Pattern[str]
    control: re.Pattern[str]


@lru_cache(maxsize=8)
def _typed_tokens(ctx: FamilyContext) -> _TypedTokens:
    def any_of(words: Iterable[str]) -> re.Pattern[str]:
        longest_first = sorted(filter(None, words), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    # A renderer counts what its template writes, and the tokenizer's ids are looked through once more, so a token
    # that is written like a tag (<image>) may stand in the rows' text as a tag.
    tags = set(TAGS.values()) if ctx.renderer is not None else set()
    reserved = [token for token in ctx.reserved_tokens if token not in tags]
    control = ctx.encoder.special_tokens - set(reserved) - tags
    first_characters = {token[:1] for token in (*control, *reserved)}
    return _TypedTokens(any_of(first_characters), any_of(reserved), any_of(control))


def check_text(row: Row, ctx: FamilyContext, config: BuildConfig) -> bool:
    """Whether control tokens are typed in the text; media tokens reject the row.

    Tools and tool calls are checked as they will be written, since their JSON text may spell a token with escapes.
    """
    typed = _typed_tokens(ctx)
    texts = [text for text in (row.system, *row.objects.get("ref", ())) if isinstance(text, str)]
    for message in row.messages:
        content = message["content"]
        if content and message["role"] == "tool_call":
            content = json_text(parse_json(content), RejectCode.BAD_TOOLS, "a tool call")
        if content:
            texts.append(content)
        if ctx.renderer is not None:
            texts += _texts_for_renderers(message)
    if row.tools:
        texts.append(json_text(parse_tools(row.tools), RejectCode.BAD_TOOLS, "a tool"))
    has_control = False
    for text in texts:
        check_unicode((text,))
        text = ctx.encoder.as_matched(text)
        if not typed.first_characters.search(text):
            continue
        if match := typed.media.search(text):
            meant = tag_meant(match.group())
            hint = f"write {meant} for a medium of the row, or " if meant else ""
            raise Reject(
                RejectCode.SPECIAL_TOKEN_IN_TEXT,
                f"the text contains {match.group()!r}, which the model takes for media; {hint}remove or escape it",
            )
        if match := typed.control.search(text):
            if config.special_tokens_in_text == "reject":
                raise Reject(RejectCode.SPECIAL_TOKEN_IN_TEXT, f"the text contains the control token {match.group()!r}")
            has_control = True
    return has_control


def _texts_for_renderers(message: Mapping[str, Any]) -> Iterator[str]:
    """The texts of a message that only a renderer writes."""
    for name, value in message.items():
        if name == "tool_calls":
            yield json_text(value, RejectCode.BAD_TOOLS, "tool_calls")
        elif name not in ("role", "content", "loss"):
            yield value


def check_unicode(texts: Iterable[str]) -> None:
    """Reject text that UTF-8 cannot encode (bad_message), since the tokenizer takes no other.

    The JSON reader rejects half characters (lone surrogates) in the row itself; text that is parsed a second time
    (tools, arguments of calls, messages given as text) may bring them too.
    """
    try:
        for text in texts:
            text.encode()
    except UnicodeEncodeError as error:
        raise Reject(RejectCode.BAD_MESSAGE, f"the text is not valid Unicode: {error.reason}") from error
