"""What the text of a row may not hold: tokens of the model typed by people, and characters that UTF-8 cannot write."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from omniprep.config import BuildConfig
from omniprep.errors import Reject, RejectCode
from omniprep.families.context import FamilyContext
from omniprep.rows.literal import json_text, parse_json
from omniprep.rows.normalize import Row
from omniprep.template.agent import parse_tools
from omniprep.template.loss import Pieces

__all__ = ["check_text", "check_unicode"]


@dataclass(frozen=True, slots=True)
class _TypedTokens:
    """How to find tokens that people typed: a text without any of their first characters holds none."""

    first: re.Pattern[str]
    media: re.Pattern[str]
    control: re.Pattern[str]


@lru_cache(maxsize=8)
def _typed_tokens(ctx: FamilyContext) -> _TypedTokens:
    def any_of(words: Iterable[str]) -> re.Pattern[str]:
        return re.compile("|".join(map(re.escape, sorted(words, key=len, reverse=True))) or r"(?!)")

    control = ctx.encoder.special_tokens - set(ctx.media_tokens)
    first = {token[0] for token in (*control, *ctx.media_tokens) if token}
    return _TypedTokens(any_of(first), any_of(filter(None, ctx.media_tokens)), any_of(filter(None, control)))


def check_text(row: Row, ctx: FamilyContext, config: BuildConfig) -> bool:
    """Whether control tokens are typed in the text; media tokens reject the row.

    Tools and calls are looked at as they will be written: their JSON text may spell a token with escapes.

    Raises:
        Reject: special_token_in_text, bad_message or bad_tools.
    """
    typed = _typed_tokens(ctx)
    texts = [text for text in (row.system, *row.objects.get("ref", ())) if isinstance(text, str)]
    for message in row.messages:
        content = message["content"]
        if content and message["role"] == "tool_call":
            content = json_text(parse_json(content), RejectCode.BAD_TOOLS, "a tool call")
        if content:
            texts.append(content)
    if row.tools:
        texts.append(json_text(parse_tools(row.tools), RejectCode.BAD_TOOLS, "a tool"))
    found = False
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise Reject(RejectCode.BAD_MESSAGE, f"the text is not valid Unicode: {error.reason}") from error
        text = ctx.encoder.as_matched(text)
        if not typed.first.search(text):
            continue
        if match := typed.media.search(text):
            raise Reject(
                RejectCode.SPECIAL_TOKEN_IN_TEXT,
                f"the text contains {match.group()!r}, which the model takes for media; remove or escape it",
            )
        if match := typed.control.search(text):
            if config.special_tokens_in_text == "reject":
                raise Reject(RejectCode.SPECIAL_TOKEN_IN_TEXT, f"the text contains the control token {match.group()!r}")
            found = True
    return found


def check_unicode(runs: Pieces) -> None:
    """Refuse text that UTF-8 cannot write, since the tokenizer takes no other.

    The reader of JSON refuses half characters that stand in the row itself; text that is parsed once more (tools,
    arguments of calls, messages given as text) may bring them too.

    Raises:
        Reject: bad_message.
    """
    try:
        for text, _ in runs:
            text.encode()
    except UnicodeEncodeError as error:
        raise Reject(RejectCode.BAD_MESSAGE, f"the text is not valid Unicode: {error.reason}") from error
