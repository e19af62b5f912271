"""Replaces tags in pieces of text: media tags by placeholders, references and boxes by their text.

Neighboring pieces of equal weight are joined before tokenization, so text is cut only where the weight changes
(ms-swift: base.py _split_special_tokens, _pre_tokenize, _simplify_context_list). As there, images are replaced in a
first pass; videos, audios, references and boxes in a second.
"""

import re
from collections.abc import Callable, Iterator

from omniprep.template.loss import Pieces

_TAGS = re.compile("(<image>|<video>|<audio>|<bbox>|<ref-object>|<cot-process>|<start-image>)")


def _split(pieces: Pieces) -> Pieces:
    result: Pieces = []
    for text, weight in pieces:
        if "<" in text:
            result += [(part, weight) for part in _TAGS.split(text) if part]
        elif text:
            result.append((text, weight))
    return result


def replace_tags(
    pieces: Pieces,
    *,
    counts: dict[str, int],
    placeholder_text: Callable[[str, int], str],
    references: list[str],
    box_texts: Callable[[], list[str]],
) -> Pieces:
    """Replace tags, then join neighbors of equal weight.

    Args:
        pieces: From `template.chat.contexts`.
        counts: Items of each modality ("image", "audio", "video").
        placeholder_text: What replaces the tag of an item, by modality and number; called in reading order within its
            pass.
        references: What replaces each `<ref-object>`.
        box_texts: Called after the images, whose sizes are then known; gives what replaces each `<bbox>`.
    """
    split = _split(pieces)
    if len(split) == len(pieces) and not any(_TAGS.fullmatch(text) for text, _ in split):
        return _join(split)
    images: Iterator[int] = iter(range(counts["image"]))
    first: Pieces = []
    for text, weight in split:
        item = next(images, None) if text == "<image>" else None
        first.append((text, weight) if item is None else (placeholder_text("image", item), 0.0))
    streams = {f"<{m}>": (m, iter(range(counts[m]))) for m in ("video", "audio")}
    written = {"<ref-object>": iter(references), "<bbox>": iter(box_texts())}
    second: Pieces = []
    for text, weight in first:
        if text in streams and (item := next(streams[text][1], None)) is not None:
            second.append((placeholder_text(streams[text][0], item), 0.0))
        elif text in written and (written_text := next(written[text], None)) is not None:
            second.append((written_text, weight))
        else:
            second.append((text, weight))
    return _join(second)


def _join(pieces: Pieces) -> Pieces:
    result: list[tuple[list[str], float]] = []
    for text, weight in pieces:
        if result and result[-1][1] == weight:
            result[-1][0].append(text)
        else:
            result.append(([text], weight))
    return [("".join(texts), weight) for texts, weight in result]
