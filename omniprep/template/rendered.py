"""A row as a renderer writes it: the whole chat as one text, with loss weights and media items by character offsets.

A family whose text is written by `TemplateMeta` has no renderer and never makes one of these. A renderer (the
checkpoint's own Jinja template, or a plug-in's function) gives the text before the tokenizer sees it, since a tokenizer
may merge characters across the borders of answers.
"""

from dataclasses import dataclass
from typing import NamedTuple


class WeightSpan(NamedTuple):
    """Characters start .. end of the text and their loss weight."""

    start: int
    end: int
    weight: float


class ItemSpan(NamedTuple):
    """Characters start .. end of the text that stand for a media item."""

    start: int
    end: int
    modality: str
    number: int
    """Which item of its modality it is, from 0."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """A chat as text.

    Attributes:
        text: The whole chat; a media item is written as its family's tag (`Family.tag`).
        weights: Spans with a loss weight, in order and apart; what is in none of them is not trained.
        items: The media items, in the order of the text.
        special_tokens: Whether the tokenizer adds its own tokens around the text (bos), as the reference has it do.
        spaces_count: Whether a token has the white space that the tokenizer leaves out of its characters (trim_offsets
            of byte-level tokenizers). transformers' assistant mask does not have it.
    """

    text: str
    weights: tuple[WeightSpan, ...] = ()
    items: tuple[ItemSpan, ...] = ()
    special_tokens: bool = False
    spaces_count: bool = True
