"""What a model family is: facts about its models, and methods that turn the media of a row into tokens and tensors.

A family is a subclass of `Family`; an object of it is the family on one checkpoint, with tokenizer, settings and
options. Two groups of methods: those that a family overrides (`count_tokens` to `resized_image`), and those that the
compiler calls (from `count` on), which check what the first ones give. The decorators of omniprep/families/registry.py
write methods of the first group; functions given to them get the same object, there called `ctx`.

A family is cheap to make again in a worker process from a `FamilySpec`, so nothing of it travels between processes.
"""

from collections.abc import Collection, Mapping
from functools import cached_property
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omniprep.errors import did_you_mean
from omniprep.families.checkpoint import Checkpoint
from omniprep.families.checks import (
    check_declared,
    check_expansions,
    check_mapped,
    check_packages,
    check_support,
    check_token_fields,
    no_stop_iteration,
)
from omniprep.families.columns import blank_image, shard_columns
from omniprep.families.decorated import defines
from omniprep.families.errors import (
    BadMaxTokensError,
    DummyError,
    FamilyError,
    MaxTokensExceededError,
    UnknownOptionError,
)
from omniprep.families.kinds import Array, Decoded, Departure, Expansion, Field, Item, MediaMeta, ModelArch, Sample
from omniprep.families.records import FamilyRecord, FamilySpec, named, text_hash
from omniprep.families.rowwise import FROM_CHECKPOINT, Rowwise
from omniprep.media.recipe import PixelRecipe
from omniprep.modalities import MODALITIES
from omniprep.shards.schema import Column
from omniprep.template.meta import TemplateMeta

NEEDED = {
    "map_items": ("register_input_mapper", "input mapper", ("map_row",)),
    "count_tokens": ("register_token_counter", "token counter", ("count_row", "item_texts")),
    "max_tokens": ("register_max_multimodal_tokens", "maximum", ("count_row", "item_texts")),
}
"""Methods that a family must have for each modality of its `limits`: the decorator that writes each, its name, and the
row-aware methods that do its work too. What is counted by row has no maximum: one item's tokens depend on others."""


class Family(Checkpoint, Rowwise):
    """A model family; an object of it is the family on one checkpoint. The defaults are those of a text-only family.

    Attributes of the class, beside those of `Rowwise`; those of `FROM_CHECKPOINT` may be functions of the family:
        limits: Modality → most items of a row (None: no limit). A modality that is absent is not supported.
        placeholders: Modality → the one token that stands for an item until it is expanded.
        tags: Modality → the text that replaces `<image>` and so on (default: the placeholder; `{n}` is the item's
            number from 1); "video_audio" is that of a video whose sound is taken too.
        plain_tags: The same as `tags`, for text without roles (--no-use-chat-template), where it differs.
        fields: Forward arguments → `Field`.
        options: Options and their defaults; builds may set these and no others.
        row_options: Keys that a row's chat_template_kwargs may set.
        media_tokens: Tokens that may not be typed in text, beside the placeholders.
        pads_clips: The feature extractor pads the clips of a row to the longest, which shows in their features: their
            facts say how long that is (`MediaMeta.padded_to`).
        most_tokens: Modality → true upper bound of one item's tokens, where no option changes it.
        chat_template: A template, or the name of a registered one.
        model_arch: An architecture, or the name of a registered one.
        load_model: "module:function" (or a function) that loads a checkpoint for training.
        saved_files: Patterns of more files of the checkpoint that a trained one needs, beside tokenizer and processor.
        init_model: "module:function" (or a function) of (folder, seed) that writes a small random checkpoint.
        reference: What rows are held against, and what the manifest names: "ms-swift 3.9.3" for the Qwen families;
            empty: the checkpoint's own AutoProcessor.
        departures: What is meant to differ from that all the same, each with its reason.

    Attributes of an object, beside those of `Checkpoint`:
        opt: The family's options, defaults filled in, as attributes.
        template: Chat template texts.
        arch: Module prefixes of the model's parts.
        modalities: Supported modalities, in the order of `MODALITIES`, which shards use.
        maxima: Upper bound of one item's tokens, by modality; absent where rows are counted as a whole.
    """

    limits: Mapping[str, int | None] = {}
    placeholders: Mapping[str, str] = {}
    tags: Mapping[str, str] = {}
    plain_tags: Mapping[str, str] = {}
    fields: Mapping[str, Field] = {}
    options: Mapping[str, Any] = {}
    row_options: frozenset[str] = frozenset()
    media_tokens: tuple[str, ...] = ()
    pads_clips: bool = False
    most_tokens: Mapping[str, int] = {}
    chat_template: str | TemplateMeta = "chatml"
    model_arch: str | ModelArch = ""
    load_model: Any = ""
    saved_files: tuple[str, ...] = ()
    init_model: Any = ""
    reference: str = ""
    departures: tuple[Departure, ...] = ()

    def __init__(self, record: FamilyRecord, spec: FamilySpec, config: dict[str, Any]) -> None:
        """Check everything that can be checked without data."""
        check_packages(record.name, record.requires)
        super().__init__(record.name, spec.model, config, trust_remote_code=spec.trust_remote_code)
        self.record, self.spec = record, spec
        if callable(self.options):
            self.options = self.options()
        self.opt = self._options(dict(spec.options))
        for attribute in FROM_CHECKPOINT:
            if callable(value := getattr(self, attribute)):
                setattr(self, attribute, value())
        check_declared(self.name, self.limits, self.fields)
        self.modalities = tuple(modality for modality in MODALITIES if modality in self.limits)
        template, arch = self.chat_template, self.model_arch
        template = named(record.templates, "template", template) if isinstance(template, str) else template
        self.template = template.of_checkpoint(self.token_text)
        self.arch = named(record.archs, "arch", arch) if isinstance(arch, str) else arch
        for modality in self.modalities:
            missing = {
                decorator: what
                for method, (decorator, what, instead) in NEEDED.items()
                if not any(defines(self.cls, Family, name, modality) for name in (method, *instead))
                and not (method == "max_tokens" and modality in self.most_tokens)
            }
            check_support(self.name, modality, missing, self.placeholders, self.fields)
            if self.renderer is None:  # else text is tokenized with each item's own text in it
                self.placeholder_id(modality)
        self.maxima = {modality: self._maximum(modality) for modality in self.modalities if self._has_maximum(modality)}

    def _options(self, given: dict[str, Any]) -> SimpleNamespace:
        for name in given:
            if name not in self.options:
                names = ", ".join(sorted(self.options)) or "none"
                hint = did_you_mean(name, self.options) or f"; its options: {names}"
                raise UnknownOptionError(f"family {self.name!r} has no option {name!r}{hint}")
        return SimpleNamespace(**{**self.options, **given})

    # What a family overrides.

    def count_tokens(self, modality: str, meta: MediaMeta) -> int:
        """Exact tokens of an item, from the facts of its header; may raise Reject(code, message)."""
        raise NotImplementedError

    def max_tokens(self, modality: str) -> int:
        """A true upper bound of the tokens of one item, under the build's options."""
        return self.most_tokens[modality]

    def cost(self, modality: str, meta: MediaMeta) -> int | None:
        """Units that the item's tower works on: patches, or audio frames; None: as many as the item has tokens.

        Bins are limited and balanced by them (--max-bin-patches, --max-bin-audio-frames).
        """
        return None

    def map_items(self, modality: str, items: list[Decoded]) -> dict[str, Array]:
        """Decoded items → forward arguments, named as in `fields`.

        Returns:
            For a field of layout "item" an array (items, ...), one row an item; for "flat" an array (units, ...), the
            units of all items one after the other, whose number an item `Field.sizes` says.
        """
        raise NotImplementedError

    def map_by_image_processor(self, items: list[Decoded]) -> dict[str, Array]:
        """Images → forward arguments, by the checkpoint's own Hugging Face image processor, called as its processor
        calls it.
        """
        kwargs = {**self.processor_kwargs.get("images_kwargs", {}), "return_tensors": "pt"}
        batch = self.image_processor([item.image for item in items], **kwargs)
        return {key: np.asarray(value) for key, value in batch.items()}

    def expand(self, sample: Sample) -> list[Expansion]:
        """What the placeholder of each item becomes; the default: as many copies as the item has tokens.

        Args:
            sample: `ids` int32 (n,) of the row, with one placeholder an item; `items` with their token counts.

        Returns:
            One `Expansion` an item, of as many ids as `count_tokens` gave (a video with its sound: both together).
        """
        if self.renderer is not None:
            return self.expand_texts(sample)
        ids = {modality: self.placeholder_id(modality) for modality in self.modalities}
        return [
            Expansion(modality, number, [ids[modality]], np.full(item.tokens, ids[modality], np.int32))
            for modality in self.modalities
            for number, item in enumerate(sample.items[modality])
        ]

    def positions(self, sample: Sample) -> NDArray[np.int32] | None:
        """M-rope ids int32 (3, L) of a row with expanded ids; None for the plain range."""
        return None

    @property
    def mrope(self) -> bool:
        """Whether the model takes positions on three axes; else it takes the positions in the row alone."""
        return self.cls.positions is not Family.positions

    def dummy_data(self, bin_length: int, counts: dict[str, int]) -> tuple[list[dict[str, Any]], dict[str, list[Any]]]:
        """A chat for `omniprep doctor`, and its media by modality: PIL images, waveforms, lists of PIL images.

        Args:
            bin_length: Tokens that the chat must fit into.
            counts: Items asked for; fewer where they do not fit.
        """
        raise DummyError(f"family {self.name!r} registers no dummy data; add @REGISTRY.register_dummy_data(fn)")

    def pixel_recipe(self, modality: str, meta: MediaMeta) -> PixelRecipe | None:
        """How the pixels of an item follow from its files, for --pixel-codec source; None: from `map_items` alone.

        Tried against `map_items` before it is used; exif and alpha are filled in by the build.
        """
        return None

    def resized_image(self, meta: MediaMeta) -> tuple[int, int] | None:
        """(width, height) of an image as the model sees it, for boxes in pixels; None where the family cannot say."""
        return None

    # What these methods, and functions that are registered in their place, may use.

    @property
    def cls(self) -> type["Family"]:
        """The family's class."""
        return type(self)

    def placeholder_id(self, modality: str) -> int:
        """The id of a modality's placeholder."""
        return self.token_id(self.placeholders[modality])

    def stand_in_id(self, modality: str) -> int:
        """What stands for an item in the ids of a plan: its placeholder, with a renderer its sentinel."""
        return MODALITIES[modality].sentinel if self.renderer is not None else self.placeholder_id(modality)

    def blank_image(self, width: int, height: int) -> Any:
        """A black RGB PIL image, for dummy data."""
        return blank_image(width, height)

    # What the compiler calls.

    def tag(self, modality: str, number: int = 1, *, plain: bool = False) -> str:
        """The text that stands for an item before tokenization ("video_audio": a video with its sound).

        Args:
            modality: Of the item.
            number: Which one of the row it is, from 1; some families write it.
            plain: In text without roles.
        """
        tags = {**self.tags, **(self.plain_tags if plain else {})}
        return (tags.get(modality) or self.placeholders[modality]).replace("{n}", str(number))

    @cached_property
    def reserved_tokens(self) -> tuple[str, ...]:
        """Tokens that may not be typed in text: placeholders, and `media_tokens`."""
        return tuple(dict.fromkeys([*self.placeholders.values(), *self.media_tokens]))

    def _has_maximum(self, modality: str) -> bool:
        return modality in self.most_tokens or defines(self.cls, Family, "max_tokens", modality)

    def _maximum(self, modality: str) -> int:
        with no_stop_iteration(self.name, f"maximum of {modality}"):
            most = self.max_tokens(modality)
        if isinstance(most, bool) or not isinstance(most, int | np.integer) or most < 1:
            raise BadMaxTokensError(
                f"family {self.name!r}: the maximum tokens of a {modality} must be an integer of at least 1, not "
                f"{most!r}; mend register_max_multimodal_tokens({modality!r}, ...)"
            )
        return int(most)

    def count(self, modality: str, meta: MediaMeta) -> int:
        """`count_tokens`, held against the maximum, which must be an upper bound under the build's limits.

        Raises:
            Reject: The item cannot be used.
            MaxTokensExceededError: The item has more tokens than the maximum.
        """
        with no_stop_iteration(self.name, f"token counter of {modality}"):
            tokens = int(self.count_tokens(modality, meta))
        # The maximum is that of the build's limits; a row's own limits may exceed them, and so may lists of frames.
        most = self.maxima.get(modality, tokens)
        if tokens > most and not (meta.options or meta.sizes):
            raise MaxTokensExceededError(
                f"family {self.name!r}: a {modality} has {tokens} tokens, more than the registered maximum {most}; "
                f"register_max_multimodal_tokens({modality!r}, ...) must give a true upper bound"
            )
        return tokens

    def work(self, item: Item) -> int:
        """`cost` of an item, its tokens where the family does not say."""
        with no_stop_iteration(self.name, f"tower's work of {item.modality}"):
            units = self.cost(item.modality, item.meta)
        return item.tokens if units is None else int(units)

    def map_item(self, modality: str, decoded: Decoded) -> dict[str, Array]:
        """`map_items` of one item, held against the declared fields.

        Raises:
            UndeclaredFieldError: An argument is not declared, or one that is declared is absent.
            ConflictingKeyError: An argument is that of another modality.
            TokenCountMismatchError: An array has another number of units than its `sizes` says.
        """
        with no_stop_iteration(self.name, f"input mapper of {modality}"):
            mapped = self.map_items(modality, [decoded])
        return check_mapped(self.name, self.fields, modality, mapped)

    def expand_row(self, sample: Sample) -> list[Expansion]:
        """`expand`, held against the counted items.

        Raises:
            TokenCountMismatchError: An expansion is missing, or not of the length that was counted.
        """
        with no_stop_iteration(self.name, "input processor"):
            expansions = list(self.expand(sample))
        return check_expansions(self.name, sample, expansions)

    def row_positions(self, sample: Sample) -> NDArray[np.int32] | None:
        """`positions` of a row: int32 (3, L), or None for the plain range."""
        with no_stop_iteration(self.name, "position function"):
            return self.positions(sample)

    def row_token_fields(self, sample: Sample) -> dict[str, Array]:
        """`token_fields` of a row, held against the declared fields: an array (L,) for each of layout "token".

        Raises:
            UndeclaredFieldError: A field is missing, or was not declared.
            TokenCountMismatchError: An array has not one value a token.
        """
        with no_stop_iteration(self.name, "token fields"):
            arrays = self.token_fields(sample)
        return check_token_fields(self.name, self.fields, sample, arrays)

    def dummy(self, bin_length: int, counts: dict[str, int]) -> tuple[list[dict[str, Any]], dict[str, list[Any]]]:
        """`dummy_data`, held against what was asked for.

        Raises:
            DummyError: There is none, it is not of this form, or it has more items than were asked for.
        """
        try:
            with no_stop_iteration(self.name, "dummy data"):
                messages, media = self.dummy_data(bin_length, counts)
        except (TypeError, ValueError) as error:
            if isinstance(error, FamilyError):
                raise
            raise DummyError(
                f"family {self.name!r}: register_dummy_data must give (messages, media): {error}"
            ) from error
        for modality, items in media.items():
            if len(items) > counts.get(modality, 0):
                raise DummyError(
                    f"family {self.name!r}: {counts.get(modality, 0)} {modality} items were asked of the dummy, it "
                    f"gives {len(items)}"
                )
        return messages, media

    @cached_property
    def columns(self) -> tuple[Column, ...]:
        """The family's shard columns; undeclared dtypes and shapes are learned from a blank item."""
        return shard_columns(
            self.fields, self.modalities, lambda modality, item: self.mapped_row(modality, [item])[0], self
        )

    def capacity_warnings(
        self, bin_length: int, limits: Mapping[str, int | None], modalities: Collection[str] | None = None
    ) -> list[str]:
        """Where the most items of a row may exceed the bin; a warning, since smaller ones fit.

        Args:
            bin_length: Tokens of a bin.
            limits: Most items of a row, by modality (None: no limit; one item is assumed).
            modalities: Of these alone; None: of all.
        """
        warnings = []
        for modality, most in self.maxima.items():
            if modalities is not None and modality not in modalities:
                continue
            count = limits.get(modality)
            count = 1 if count is None else count
            if count * most > bin_length:
                warnings.append(f"{count} {modality}{'s' if count > 1 else ''} may have {count * most} tokens")
        return warnings

    @property
    def versions(self) -> dict[str, str]:
        """Versions of what the family's rows depend on: its own, hashes of plug-ins' texts and the chat template."""
        template = {"chat template": text_hash(self.chat.sources)[:16]} if self.chat else {}
        texts = zip(self.spec.plugins, self.spec.plugin_sources, strict=True)
        return {
            f"family {self.name}": self.record.version,
            **template,
            **{f"plugin {path}": text_hash(text)[:16] for path, text in texts},
        }
