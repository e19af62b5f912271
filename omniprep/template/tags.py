"""Replaces tags in pieces of text: media tags by placeholders, references and boxes by their text.

Neighboring pieces of equal weight are joined before tokenization, so text is cut only where the weight changes
(ms-swift: base.py _split_special_tokens, _pre_tokenize, _simplify_context_list). As there, images are replaced in a
first pass; videos, audios, references and boxes in a second.
"""

import re
from collections.abc import Callable, Iterator
from typing import Any

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
    place: Callable[[str, int], str],
    references: list[str],
    boxes: Callable[[], list[Any]],
    write_reference: Callable[[str], str],
    write_box: Callable[[Any], str],
) -> Pieces:
    """Replace tags, then join neighbors of equal weight.

    Args:
        pieces: From `template.chat.contexts`.
        counts: Items of each modality ("image", "audio", "video").
        place: Called with modality and item number, in reading order within its pass; gives the placeholder text.
        references: Texts for `<ref-object>`.
        boxes: Called after images are placed (their sizes are then known); gives the boxes for `<bbox>`.
        write_reference: Text of a reference.
        write_box: Text of a box.
    """
    split = _split(pieces)
    if len(split) == len(pieces) and not any(_TAGS.fullmatch(text) for text, _ in split):
        return _join(split)
    images: Iterator[int] = iter(range(counts["image"]))
    first: Pieces = []
    for text, weight in split:
        item = next(images, None) if text == "<image>" else None
        first.append((text, weight) if item is None else (place("image", item), 0.0))
    streams = {f"<{m}>": (m, iter(range(counts[m]))) for m in ("video", "audio")}
    reference, box = iter(references), iter(boxes())
    second: Pieces = []
    for text, weight in first:
        if text in streams and (item := next(streams[text][1], None)) is not None:
            second.append((place(streams[text][0], item), 0.0))
        elif text == "<ref-object>" and (name := next(reference, None)) is not None:
            second.append((write_reference(name), weight))
        elif text == "<bbox>" and (corners := next(box, None)) is not None:
            second.append((write_box(corners), weight))
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
