"""The registry: what a model family tells omniprep, and how to find the family of a checkpoint.

A family is a class with decorators. Names follow the serving engines' guide (register_input_mapper, register_dummy_data,
...) and ms-swift's (register_template, register_model_arch); ../docs/families.md walks through one. Registrations are kept on
the class (`cls.__omniprep__`) and found through its bases, so a family inherits what it does not change. When a build starts the
registry is frozen: a late registration is an error, not a surprise.
"""

import dataclasses
import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from omniprep.families.errors import (
    BadMaxTokensError,
    DuplicateFamilyError,
    FamilyError,
    RegistryFrozenError,
    UnknownFamilyError,
    UnknownModalityError,
)
from omniprep.rows.normalize import MODALITIES
from omniprep.template.chat import TemplateMeta

if TYPE_CHECKING:
    from omniprep.families.context import FamilyContext

Array = NDArray[Any]
C = TypeVar("C", bound=type)


@dataclass(frozen=True, kw_only=True, slots=True)
class MediaMeta:
    """What a header tells of one media item, before anything is decoded.

    Lengths are in pixels, frames and samples (audio: at the model's sampling rate, after resampling).
    """

    kind: str
    width: int = 0
    height: int = 0
    frames: int = 0
    fps: float = 0.0
    samples: int = 0
    sizes: tuple[tuple[int, int], ...] = ()
    """(width, height) of each frame of a video that is given as a list of images."""
    in_video: bool = False
    """The sound of a video rather than an audio of its own."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """The row's own limits (chat_template_kwargs)."""


@dataclass(slots=True)
class Item:
    """One media item of a row: its facts, its token count, and for a video with sound the number of its audio item."""

    modality: str
    meta: MediaMeta
    tokens: int = 0
    audio: int | None = None


@dataclass(slots=True)
class Sample:
    """What an input processor and a position function see of one row."""

    ids: NDArray[np.int32]
    items: dict[str, list[Item]]

    @property
    def token_counts(self) -> dict[str, list[int]]:
        """Tokens of each item, by modality."""
        return {modality: [item.tokens for item in items] for modality, items in self.items.items()}


@dataclass(slots=True)
class Decoded:
    """A decoded item for a mapper; `meta` holds the facts as decoded, not as the header promised."""

    meta: MediaMeta
    image: Any = None
    """PIL image, RGB (kind image)."""
    waveform: Array | None = None
    """float32 mono samples (kind audio)."""
    frames: Callable[[list[int]], Array] | None = None
    """Indices → uint8 (T, H, W, 3) (kind video)."""
    images: list[Any] = field(default_factory=list)
    """PIL images (a video given as a list of frames)."""


@dataclass(frozen=True, slots=True)
class Expansion:
    """Replace the next occurrence of `target` in a row by `ids` (labels -100).

    Expansions with the same target apply to its occurrences in order.
    """

    modality: str
    item: int
    target: list[int]
    ids: Any
    is_embed: Any = None


@dataclass(frozen=True, slots=True)
class Field:
    """How one forward argument is cut into items and stored.

    `layout` is "item" (one small integer vector an item) or "flat" (a run of units an item; `sizes` gives the units: a function
    of the mapper's result, or "prod(KEY)" or "KEY" of an item field). dtype and shape of a unit are taken from the mapper's result
    for a dummy where they are not given.
    """

    modality: str
    layout: Literal["flat", "item"]
    dim: int = 0
    sizes: Any = None
    dtype: str | None = None
    shape: tuple[int, ...] | None = None
    load: str = "array"
    params: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelArch:
    """Module prefixes of a model's parts, for freezing and LoRA (ms-swift: register_model_arch)."""

    language_model: tuple[str, ...] = ()
    vision_tower: tuple[str, ...] = ()
    aligner: tuple[str, ...] = ()
    generator: tuple[str, ...] = ()


@runtime_checkable
class SupportsMultiModal(Protocol):
    """What every family class has; the defaults are those of a text-only family.

    Attributes:
        limits: Modality → most items of a row (None: no limit). A modality that is absent is not supported.
        placeholders: Modality → the one token that stands for an item until it is expanded.
        tags: Modality → the text that replaces `<image>` and so on (default: the placeholder); "video_audio" is that of a video
            whose sound is taken too.
        fields: Forward arguments → `Field`.
        options: Options and their defaults; builds may set these and no others.
        row_options: Keys that a row's chat_template_kwargs may set.
    """

    limits: ClassVar[dict[str, int | None]] = {}
    placeholders: ClassVar[dict[str, str]] = {}
    tags: ClassVar[dict[str, str]] = {}
    fields: ClassVar[dict[str, Field]] = {}
    options: ClassVar[dict[str, Any]] = {}
    row_options: ClassVar[frozenset[str]] = frozenset()
    media_tokens: ClassVar[tuple[str, ...]] = ()
    load_model: ClassVar[str] = ""
    init_model: ClassVar[str] = ""
    version: ClassVar[str] = "1"


Counter = Callable[["FamilyContext", MediaMeta], int]
Mapper = Callable[["FamilyContext", list[Decoded]], dict[str, Array]]
InputProcessor = Callable[["FamilyContext", Sample], list[Expansion]]
Positions = Callable[["FamilyContext", Sample], NDArray[np.int32] | None]


def _check_modality(modality: str) -> None:
    if modality not in MODALITIES:
        raise UnknownModalityError(f"modality {modality!r} is not known; known: {', '.join(MODALITIES)}")


def registered(family: type, key: str) -> Any:
    """A registration of a family or of its nearest base that has it; None where there is none."""
    for base in family.__mro__:
        store = base.__dict__.get("__omniprep__", {})
        if key in store:
            return store[key]
    return None


@dataclass(frozen=True, kw_only=True, slots=True)
class FamilyRecord:
    """A registered family: its class, what it answers to, and where it came from."""

    name: str
    cls: type
    hf_architectures: tuple[str, ...] = ()
    model_types: tuple[str, ...] = ()
    checkpoints: tuple[str, ...] = ()
    requires: tuple[str, ...] = ()
    version: str = "1"
    origin: str = ""


class Registry:
    """All families of this process. Use the one instance, `REGISTRY`."""

    def __init__(self) -> None:
        """Begin empty and open."""
        self.families: dict[str, FamilyRecord] = {}
        self.frozen = False

    def freeze(self) -> None:
        """Refuse registrations from now on (a build has started)."""
        self.frozen = True

    def _store(self, key: str, value: Any) -> Callable[[C], C]:
        if self.frozen:
            raise RegistryFrozenError(f"{key}: families must be registered before a build starts; move it into a --plugin file")

        def decorate(cls: C) -> C:
            if "__omniprep__" not in cls.__dict__:
                cls.__omniprep__ = {}  # type: ignore[attr-defined]
            cls.__dict__["__omniprep__"][key] = value
            return cls

        return decorate

    def register_family(
        self,
        name: str,
        *,
        hf_architectures: list[str] | tuple[str, ...] = (),
        model_types: list[str] | tuple[str, ...] = (),
        checkpoints: list[str] | tuple[str, ...] = (),
        requires: list[str] | tuple[str, ...] = (),
        version: str = "1",
        override: bool = False,
    ) -> Callable[[C], C]:
        """Register a class as a family.

        Args:
            name: What --family calls it.
            hf_architectures: `architectures` of config.json that it handles.
            model_types: `model_type` of config.json that it handles.
            checkpoints: Hub names, for people to read.
            requires: Requirements such as "transformers>=4.57", checked when the family is used.
            version: Goes into the manifest; raise it when rows change.
            override: Replace a family of the same name.

        Raises:
            DuplicateFamilyError: The name is taken.
            RegistryFrozenError: A build has started.
        """
        decorate = self._store("family", name)

        def register(cls: C) -> C:
            if name in self.families and not override:
                taken = self.families[name]
                raise DuplicateFamilyError(
                    f"family {name!r} is registered already, by {taken.origin}; choose another name or pass override=True"
                )
            self.families[name] = FamilyRecord(
                name=name,
                cls=cls,
                hf_architectures=tuple(hf_architectures),
                model_types=tuple(model_types),
                checkpoints=tuple(checkpoints),
                requires=tuple(requires),
                version=version,
                origin=cls.__module__,
            )
            return decorate(cls)

        return register

    def register_template(self, meta: TemplateMeta) -> Callable[[C], C]:
        """Register the chat template."""
        return self._store("template", meta)

    def register_model_arch(self, arch: ModelArch) -> Callable[[C], C]:
        """Register the module prefixes of the model's parts."""
        return self._store("arch", arch)

    def register_input_mapper(self, modality: str, mapper: Mapper | None = None) -> Callable[[C], C]:
        """Register decoded items → forward arguments; None takes the checkpoint's own Hugging Face image processor."""
        _check_modality(modality)
        return self._store(f"mapper:{modality}", mapper or "default")

    def register_image_input_mapper(self, mapper: Mapper | None = None) -> Callable[[C], C]:
        """`register_input_mapper("image", mapper)`."""
        return self.register_input_mapper("image", mapper)

    def register_max_multimodal_tokens(self, modality: str, most: "int | Callable[[FamilyContext], int]") -> Callable[[C], C]:
        """Register a true upper bound of the tokens of one item: an integer, or a function of the context.

        Raises:
            BadMaxTokensError: An integer below 1.
        """
        _check_modality(modality)
        if isinstance(most, bool) or (isinstance(most, int) and most < 1) or not (isinstance(most, int) or callable(most)):
            raise BadMaxTokensError(f"maximum tokens of modality {modality!r} must be an integer of at least 1, not {most!r}")
        return self._store(f"max:{modality}", most)

    def register_max_image_tokens(self, most: "int | Callable[[FamilyContext], int]") -> Callable[[C], C]:
        """`register_max_multimodal_tokens("image", most)`."""
        return self.register_max_multimodal_tokens("image", most)

    def register_token_counter(self, modality: str, counter: Counter) -> Callable[[C], C]:
        """Register header facts → exact number of tokens; it may raise Reject(code, message)."""
        _check_modality(modality)
        return self._store(f"counter:{modality}", counter)

    def register_dummy_data(self, dummy: Callable[..., Any]) -> Callable[[C], C]:
        """Register fn(ctx, bin_length, counts) → (messages, {modality: media})."""
        return self._store("dummy", dummy)

    def register_input_processor(self, processor: InputProcessor) -> Callable[[C], C]:
        """Register the expansion of placeholders; without one, each becomes as many copies as its item has tokens."""
        return self._store("processor", processor)

    def register_positions(self, positions: Positions) -> Callable[[C], C]:
        """Register m-rope: sample (expanded ids) → int32 (3, L), or None for the plain range."""
        return self._store("positions", positions)

    def find(self, name: str | None, config: Mapping[str, Any]) -> FamilyRecord:
        """The family of a name, or of a checkpoint's config.json (its architectures, then its model_type).

        Raises:
            UnknownFamilyError: None fits; the message lists near names and what is registered.
        """
        if name is not None:
            if name in self.families:
                return self.families[name]
            near = difflib.get_close_matches(name, self.families, 2)
            hint = f"did you mean {' or '.join(near)}?" if near else f"registered: {', '.join(sorted(self.families))}"
            raise UnknownFamilyError(f"family {name!r} is not registered; {hint}")
        architectures, model_type = set(config.get("architectures") or ()), config.get("model_type")
        for record in self.families.values():
            if architectures & set(record.hf_architectures):
                return record
        for record in self.families.values():
            if model_type in record.model_types:
                return record
        raise UnknownFamilyError(
            f"no family for architectures {sorted(architectures)} (model_type {model_type!r}); "
            f"registered: {', '.join(sorted(self.families))}. Pass --family NAME, or register one with --plugin FILE.py"
        )


REGISTRY = Registry()


def as_json(meta: MediaMeta) -> dict[str, Any]:
    """A MediaMeta as JSON types, defaults left out."""
    plain = dataclasses.asdict(meta)
    return {k: v for k, v in plain.items() if k == "kind" or v != _META_DEFAULTS[k]}


def from_json(value: Mapping[str, Any]) -> MediaMeta:
    """The reverse of `as_json`."""
    known = dict(value)
    known["sizes"] = tuple((w, h) for w, h in known.get("sizes", ()))
    return MediaMeta(**known)


_META_DEFAULTS = dataclasses.asdict(MediaMeta(kind=""))

__all__ = [
    "REGISTRY",
    "Decoded",
    "Expansion",
    "FamilyError",
    "FamilyRecord",
    "Field",
    "Item",
    "MediaMeta",
    "ModelArch",
    "Registry",
    "Sample",
    "SupportsMultiModal",
    "TemplateMeta",
    "registered",
]
