"""A family at work on one checkpoint: its tokenizer, settings and options, checked once, and everything it registered.

`resolve_family` is the one way to get there. A context is cheap to make again in a worker process from a `FamilySpec`,
so nothing of it travels between processes. All checks that need no data happen here: missing registrations,
placeholders that are not one token, unknown options, bad maxima. What callbacks give is checked where they are called.
"""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from types import SimpleNamespace
from typing import Any, cast

import numpy as np

from omniprep.errors import OmniprepError
from omniprep.families.checks import call, check_limits, check_mapped, check_packages, check_registrations, item_spans
from omniprep.families.errors import (
    BadMaxTokensError,
    DummyError,
    MaxTokensExceededError,
    UnknownOptionError,
    UnknownTokenError,
)
from omniprep.families.guess import guess_model
from omniprep.families.loading import checkpoint_file, load_encoder, load_families, plugin_hash, plugin_texts
from omniprep.families.registry import (
    REGISTRY,
    Array,
    Decoded,
    Expansion,
    FamilyRecord,
    Field,
    Item,
    MediaMeta,
    ModelArch,
    Sample,
    registered,
)
from omniprep.modalities import MODALITIES
from omniprep.shards.schema import Column
from omniprep.template.chat import TemplateMeta
from omniprep.template.identity import tokenizer_sha256
from omniprep.template.tokens import Encoder


@dataclass(frozen=True, kw_only=True, slots=True)
class FamilySpec:
    """What a worker needs to make the same context: plain values only."""

    model: str
    family: str | None = None
    plugins: tuple[str, ...] = ()
    plugin_sources: tuple[str, ...] = ()
    """Text of the plug-in files, so that workers on other nodes need not have them."""
    options: tuple[tuple[str, Any], ...] = ()
    trust_remote_code: bool = False


def resolve(spec: FamilySpec) -> "FamilyContext":
    """The context of a spec; kept, so that a warm worker makes it once."""
    if len(spec.plugin_sources) != len(spec.plugins):
        spec = replace(spec, plugin_sources=plugin_texts(spec.plugins))
    return _resolve(spec)


@lru_cache(maxsize=4)
def _resolve(spec: FamilySpec) -> "FamilyContext":
    load_families(spec.plugins, spec.plugin_sources)
    config = checkpoint_file(spec.model, "config.json")
    if config is None:
        raise OmniprepError(
            f"model {spec.model!r}: no config.json there{guess_model(spec.model)}; give a checkpoint folder or a Hub "
            "name (omniprep init-model makes a small one)"
        )
    record = REGISTRY.find(spec.family, config)
    return FamilyContext(record, spec, config)


def resolve_family(
    model: str,
    family: str | None = None,
    plugins: tuple[str, ...] = (),
    options: dict[str, Any] | None = None,
    trust_remote_code: bool = False,
) -> "FamilyContext":
    """The family of a checkpoint, ready to work.

    Args:
        model: Checkpoint folder or Hub name.
        family: Name of the family; None finds it from config.json.
        plugins: Python files that register families.
        options: Values for the family's options; None values are left out.
        trust_remote_code: Let the checkpoint's own Python code run when its tokenizer is loaded.
    """
    chosen = tuple(sorted((k, v) for k, v in (options or {}).items() if v is not None))
    return resolve(
        FamilySpec(
            model=model,
            family=family,
            plugins=tuple(plugins),
            options=chosen,
            trust_remote_code=trust_remote_code,
        )
    )


class FamilyContext:
    """One family on one checkpoint; what callbacks receive as `ctx`.

    Attributes:
        name: Name of the family.
        config: config.json of the checkpoint.
        preprocessor: preprocessor_config.json of the checkpoint ({} where absent).
        video_preprocessor: video_preprocessor_config.json ({} where absent).
        opt: The family's options, defaults filled in, as attributes.
        template: Chat template texts.
        arch: Module prefixes of the model's parts.
        modalities: Supported modalities, in the order of image, audio, video that shards use.
    """

    def __init__(self, record: FamilyRecord, spec: FamilySpec, config: dict[str, Any]) -> None:
        """Check everything that can be checked without data."""
        self.record, self.spec, self.config = record, spec, config
        self.name, self.cls = record.name, record.cls
        check_packages(record)
        self.preprocessor = checkpoint_file(spec.model, "preprocessor_config.json") or {}
        self.video_preprocessor = checkpoint_file(spec.model, "video_preprocessor_config.json") or {}
        check_limits(record)
        self.modalities = tuple(m for m in MODALITIES if m in self.attribute("limits"))
        self.opt = self._options(dict(spec.options))
        self.template: TemplateMeta = _of_class(self.cls, "template", "chat_template")
        self.arch: ModelArch = _of_class(self.cls, "arch", "model_arch")
        self._ids: dict[str, int] = {}
        check_registrations(record, self.modalities)
        for modality in self.modalities:
            self.placeholder_id(modality)
        self.maxima = {modality: self.max_tokens(modality) for modality in self.modalities}

    def attribute(self, name: str) -> Any:
        """An attribute of the family's class."""
        return getattr(self.cls, name)

    def _options(self, given: dict[str, Any]) -> SimpleNamespace:
        known: dict[str, Any] = self.attribute("options")
        for name in given:
            if name not in known:
                near = difflib.get_close_matches(name, known, 1)
                hint = f"did you mean {near[0]!r}?" if near else f"its options: {', '.join(sorted(known)) or 'none'}"
                raise UnknownOptionError(f"family {self.name!r} has no option {name!r}; {hint}")
        return SimpleNamespace(**{**known, **given})

    @property
    def tokenizer(self) -> Any:
        """The checkpoint's fast tokenizer (loaded at first use)."""
        return self.encoder.tokenizer

    @cached_property
    def tokenizer_sha256(self) -> str:
        """Hash of what the tokenizer does, whatever wrote it."""
        return tokenizer_sha256(self.tokenizer.backend_tokenizer)

    @property
    def versions(self) -> dict[str, str]:
        """Versions of what the family's rows depend on: its own, and the texts of plug-ins."""
        texts = zip(self.spec.plugins, self.spec.plugin_sources, strict=True)
        return {
            f"family {self.name}": self.record.version,
            **{f"plugin {path}": plugin_hash(text)[:16] for path, text in texts},
        }

    @cached_property
    def encoder(self) -> Encoder:
        """Batched tokenization; contexts of one checkpoint share it, whatever their options."""
        return load_encoder(self.spec.model, self.spec.trust_remote_code)

    def token_id(self, token: str) -> int:
        """The id of one token.

        Raises:
            UnknownTokenError: The text is not exactly one token.
        """
        if token not in self._ids:
            ids = self.tokenizer(token, add_special_tokens=False)["input_ids"]
            unknown = len(ids) == 1 and ids[0] == self.tokenizer.unk_token_id and token != self.tokenizer.unk_token
            if len(ids) != 1 or unknown:
                what = "unknown to the tokenizer" if unknown else f"{len(ids)} tokens"
                raise UnknownTokenError(
                    f"family {self.name!r}: {token!r} is {what} of {self.spec.model!r}, it must be one token; "
                    "use a token of this tokenizer or add it there"
                )
            self._ids[token] = int(ids[0])
        return self._ids[token]

    def placeholder_id(self, modality: str) -> int:
        """The id of a modality's placeholder."""
        return self.token_id(self.attribute("placeholders")[modality])

    def tag(self, modality: str, number: int = 1, *, plain: bool = False) -> str:
        """The text that stands for an item before tokenization ("video_audio": a video with its sound).

        Args:
            modality: Of the item.
            number: Which one of the row it is, from 1; some families write it.
            plain: In text without roles.
        """
        tags = {**self.attribute("tags"), **(self.attribute("plain_tags") if plain else {})}
        text: str = tags.get(modality) or self.attribute("placeholders")[modality]
        return text.replace("{n}", str(number))

    @cached_property
    def media_tokens(self) -> tuple[str, ...]:
        """Tokens that may not be typed in text: placeholders, and what the family adds (bos and eos of media)."""
        return tuple(dict.fromkeys([*self.attribute("placeholders").values(), *self.attribute("media_tokens")]))

    def max_tokens(self, modality: str) -> int:
        """The registered upper bound of one item's tokens."""
        most = registered(self.cls, f"max:{modality}")
        value = call(self, f"max:{modality}") if callable(most) else most
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
            raise BadMaxTokensError(
                f"family {self.name!r}: the maximum tokens of a {modality} must be an integer of at least 1, not "
                f"{value!r}; "
                f"mend register_max_multimodal_tokens({modality!r}, ...)"
            )
        return int(value)

    def count(self, modality: str, meta: MediaMeta) -> int:
        """Exact tokens of an item from its header facts.

        Raises:
            Reject: The item cannot be used.
            MaxTokensExceededError: The registered maximum is not an upper bound under the build's limits.
        """
        tokens = int(call(self, f"counter:{modality}", meta))
        # The maximum is of the build's limits: a row's own go before them, and lists of frames may have any length.
        if tokens > self.maxima[modality] and not (meta.options or meta.sizes):
            raise MaxTokensExceededError(
                f"family {self.name!r}: a {modality} has {tokens} tokens, more than the registered maximum "
                f"{self.maxima[modality]}; "
                f"register_max_multimodal_tokens({modality!r}, ...) must give a true upper bound"
            )
        return tokens

    def work(self, item: Item) -> int:
        """What the tower of an item's modality works on: its patches, or its frames of sound."""
        if registered(self.cls, f"work:{item.modality}") is None:
            return item.tokens
        return int(call(self, f"work:{item.modality}", item.meta))

    def expand(self, sample: Sample) -> list[Expansion]:
        """What each placeholder becomes.

        Raises:
            TokenCountMismatchError: An expansion is missing, or not of the length that was counted.
        """
        if registered(self.cls, "processor") is not None:
            return item_spans(self, sample, list(call(self, "processor", sample)))
        return [
            Expansion(m, i, [self.placeholder_id(m)], np.full(item.tokens, self.placeholder_id(m), np.int32))
            for m in self.modalities
            for i, item in enumerate(sample.items[m])
        ]

    @property
    def mrope(self) -> bool:
        """Whether the family registers m-rope positions; else its model takes the positions in the row alone."""
        return registered(self.cls, "positions") is not None

    def positions(self, sample: Sample) -> Array | None:
        """M-rope ids int32 (3, L) of a row, or None for the plain range."""
        return cast(Array | None, call(self, "positions", sample)) if self.mrope else None

    def map_item(self, modality: str, decoded: Decoded) -> dict[str, Array]:
        """Forward arguments of one decoded item, checked against the declared fields."""
        if registered(self.cls, f"mapper:{modality}") == "default":
            return check_mapped(self, modality, _default_mapper(self, [decoded]))
        return check_mapped(self, modality, call(self, f"mapper:{modality}", [decoded]))

    def dummy(self, bin_length: int, counts: dict[str, int]) -> tuple[list[dict[str, Any]], dict[str, list[Any]]]:
        """The family's dummy chat, and its media by modality.

        Args:
            bin_length: Tokens that the chat must fit into.
            counts: Items asked for; fewer where they do not fit.

        Raises:
            DummyError: None is registered, or what it gives is not of this form.
        """
        if registered(self.cls, "dummy") is None:
            raise DummyError(f"family {self.name!r} registers no dummy data; add @REGISTRY.register_dummy_data(fn)")
        try:
            messages, media = call(self, "dummy", bin_length, counts)
        except (TypeError, ValueError) as error:
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

    def capacity_warnings(self, bin_length: int, limits: dict[str, int | None]) -> list[str]:
        """Where the most items of a row may exceed the bin; a warning, since smaller ones fit.

        Args:
            bin_length: Tokens of a bin.
            limits: Most items of a row, by modality (None: no limit, one is reckoned with).
        """
        found = []
        for modality, most in self.maxima.items():
            count = limits.get(modality)
            count = 1 if count is None else count
            if count * most > bin_length:
                found.append(f"{count} {modality}{'s' if count > 1 else ''} may have {count * most} tokens")
        return found

    @cached_property
    def columns(self) -> tuple[Column, ...]:
        """The family's shard columns; undeclared dtypes and shapes are learned from a blank item."""
        fields: dict[str, Field] = self.attribute("fields")
        learned: dict[str, Array] = {}
        result = []
        for name, entry in fields.items():
            if entry.modality not in self.modalities:
                continue
            dtype, shape = entry.dtype, entry.shape
            if dtype is None or shape is None:
                if name not in learned:
                    learned.update(self.map_item(entry.modality, self.blank(entry.modality)))
                array = learned[name]
                shape = tuple(array.shape[1:]) if shape is None else shape
                dtype = (
                    ("int32" if entry.layout == "item" and array.dtype.kind in "iu" else str(array.dtype))
                    if dtype is None
                    else dtype
                )
            sizes = entry.sizes if isinstance(entry.sizes, str) else ""
            params = entry.params(self) if callable(entry.params) else dict(entry.params)
            kind: Any = {"item": "items", "flat": "flat"}[entry.layout]
            load: Any = entry.load
            result.append(
                Column(
                    name=name,
                    modality=entry.modality,
                    kind=kind,
                    dtype=dtype,
                    shape=shape,
                    sizes=sizes,
                    load=load,
                    params=params,
                )
            )
        return tuple(result)

    def blank_image(self, width: int, height: int) -> Any:
        """A black RGB PIL image."""
        from PIL import Image

        return Image.new("RGB", (width, height))

    def blank(self, modality: str) -> Decoded:
        """The smallest decoded item of a modality, to learn shapes from."""
        if modality == "image":
            return Decoded(MediaMeta(kind="image", width=64, height=64), image=self.blank_image(64, 64))
        if modality == "audio":
            return Decoded(MediaMeta(kind="audio", samples=16000), waveform=np.zeros(16000, np.float32))
        meta = MediaMeta(kind="video", width=64, height=64, frames=4, fps=2.0)
        return Decoded(meta, frames=lambda indices: np.zeros((len(indices), 64, 64, 3), np.uint8))


def _of_class(cls: type, key: str, attribute: str) -> Any:
    """A template or architecture: of the nearest class that registers one or names one."""
    for base in cls.__mro__:
        if key in (store := base.__dict__.get("__omniprep__", {})):
            return store[key]
        if attribute in base.__dict__:
            return REGISTRY.named(key, base.__dict__[attribute])
    return REGISTRY.named(key, "chatml" if key == "template" else "")


def _default_mapper(ctx: FamilyContext, items: Sequence[Decoded]) -> dict[str, Array]:
    """The checkpoint's own image processor (images only)."""
    from transformers import AutoImageProcessor

    processor = AutoImageProcessor.from_pretrained(ctx.spec.model, trust_remote_code=ctx.spec.trust_remote_code)
    batch = processor.preprocess([item.image for item in items], return_tensors="pt")
    return {key: value.numpy() for key, value in batch.items()}


__all__ = ["MODALITIES", "FamilyContext", "FamilySpec", "load_families", "resolve", "resolve_family"]
