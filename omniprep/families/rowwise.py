"""What a family may say of a row as a whole: counts and tensors of items that depend on their neighbors, its text.

Most families need none of it: an item's tokens follow from its own header, and its tensors from its own pixels. Where
that does not hold (tiles only where a row has one image, rows of tiles written as text, a template of Jinja), a family
overrides methods of `Rowwise`. The defaults ask the item-wise methods.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from omniprep.families.checks import check_mapped, no_stop_iteration
from omniprep.families.errors import CallbackError, TokenCountMismatchError
from omniprep.families.kinds import Array, Decoded, Expansion, Field, MediaMeta, Sample
from omniprep.media.image import decode_image
from omniprep.media.source import Source
from omniprep.modalities import MODALITIES
from omniprep.template.item_text import ItemTexts
from omniprep.template.jinja import ChatTemplate
from omniprep.template.meta import TemplateMeta
from omniprep.template.tokens import Encoder

Metas = Mapping[str, Sequence[MediaMeta]]
"""Header facts of a row's items, by modality and in order."""
FROM_CHECKPOINT = (
    *("limits", "placeholders", "tags", "plain_tags", "fields", "media_tokens", "most_tokens", "row_options"),
    *("chat_template", "model_arch", "by_row", "exif"),
)
"""Attributes of a family that may be a function of the family on its checkpoint (`ctx`) that gives the value."""


class Rowwise:
    """The row-aware half of a family.

    Attributes of the class:
        by_row: Whether items of a row depend on each other: they are then counted and mapped together, and nothing that
            was made of an item in one row is used in another.
        exif: Whether the family's reference rotates images as their EXIF orientation says ("ignore" or "apply").
        renderer: None (the family's `TemplateMeta` writes the text), or a function of (family, row, strategy, *,
            generate) that gives the text of a whole row, its weights and its items.
    """

    name: str
    fields: Mapping[str, Field]
    placeholders: Mapping[str, str]
    by_row: bool = False
    exif: str = "ignore"
    renderer: ClassVar[Callable[..., Any] | None] = None

    if TYPE_CHECKING:
        template: TemplateMeta

        @cached_property
        def encoder(self) -> Encoder:
            """`Checkpoint.encoder`."""
            raise NotImplementedError

        def count(self, modality: str, meta: MediaMeta) -> int:
            """`Family.count`."""
            raise NotImplementedError

        def map_item(self, modality: str, decoded: Decoded) -> dict[str, Array]:
            """`Family.map_item`."""
            raise NotImplementedError

    # What a family overrides.

    def count_row(self, items: Metas) -> dict[str, list[int]]:
        """Exact tokens of each item of a row; may raise Reject(code, message)."""
        return {modality: [self.count(modality, meta) for meta in metas] for modality, metas in items.items()}

    def map_row(self, modality: str, items: list[Decoded]) -> list[dict[str, Array]]:
        """The decoded items of one modality of a row → forward arguments of each, as `map_items` gives them of one."""
        return [self.map_item(modality, item) for item in items]

    def item_texts(self, items: Metas) -> dict[str, list[str]]:
        """The text that stands for each item before tokenization; the default: its placeholder, once a token."""
        counts = self.count_row(items)
        return {modality: [self.placeholders[modality] * tokens for tokens in counts[modality]] for modality in items}

    def token_fields(self, sample: Sample) -> dict[str, Array]:
        """Arrays of one value a token of a row with expanded ids, for fields of modality "text" (token_type_ids)."""
        return {}

    def load_image(self, source: Source, *, exif: str, alpha: str) -> Any:
        """An image as the mapper takes it: a PIL image in RGB; rejects what cannot be decoded."""
        return decode_image(source, exif=exif, alpha=alpha)

    # The renderer's side.

    @cached_property
    def item_text_tokens(self) -> ItemTexts:
        """The tokens of texts of items (`item_texts`)."""
        return ItemTexts(self.encoder)

    def expand_texts(self, sample: Sample) -> list[Expansion]:
        """The sentinels of a row become the tokens of their items' texts."""
        present = {modality: items for modality, items in sample.items.items() if items}
        texts = self.item_texts({modality: [item.meta for item in items] for modality, items in present.items()})
        return [
            Expansion(modality, number, [MODALITIES[modality].sentinel], self.item_text_tokens.cut(text).ids)
            for modality in present
            for number, text in enumerate(texts[modality])
        ]

    @property
    def chat(self) -> ChatTemplate | None:
        """The checkpoint's own chat template, where the renderer is `render_chat`, which needs it."""
        return None

    @property
    def template_variables(self) -> frozenset[str]:
        """Names that a row's chat_template_kwargs may set in the chat template."""
        return self.chat.variables if self.chat else frozenset()

    @property
    def reads_date(self) -> bool:
        """Whether the chat template writes the present day."""
        return self.chat is not None and self.chat.reads_date

    @property
    def stop_texts(self) -> frozenset[str]:
        """Tokens at which an answer ends, beside the tokenizer's own."""
        return self.chat.stop_texts if self.chat else frozenset({*self.template.suffix, *self.template.stop_words})

    # What the compiler calls.

    def row_counts(self, items: Metas) -> dict[str, list[int]]:
        """`count_row`, held against the items.

        Raises:
            CallbackError: It does not give one whole number for each item.
        """
        with no_stop_iteration(self.name, "row counter"):
            counts = self.count_row(items)
        for modality, metas in items.items():
            tokens = counts.get(modality, [])
            if len(tokens) != len(metas) or not all(isinstance(number, int | np.integer) for number in tokens):
                raise CallbackError(
                    f"family {self.name!r}: the row counter gives {tokens!r} for {len(metas)} {modality} items; it "
                    "must give one whole number for each"
                )
        return {modality: [int(number) for number in counts[modality]] for modality in items}

    def mapped_row(self, modality: str, items: list[Decoded]) -> list[dict[str, Array]]:
        """`map_row`, each item held against the declared fields.

        Raises:
            TokenCountMismatchError: It gives another number of items.
        """
        with no_stop_iteration(self.name, f"row mapper of {modality}"):
            mapped = list(self.map_row(modality, items))
        if len(mapped) != len(items):
            raise TokenCountMismatchError(
                f"family {self.name!r}: the row mapper of {modality} gives {len(mapped)} items for {len(items)}"
            )
        return [check_mapped(self.name, self.fields, modality, arguments) for arguments in mapped]
