"""The registry: what a model family tells omniprep, and how to find the family of a checkpoint.

A family is a class with decorators. Names follow the serving engines' guide (register_input_mapper,
register_dummy_data, ...) and ms-swift's (register_template, register_model_arch); docs/families.md walks through one.
Registrations are kept on the class (`cls.__omniprep__`) and found through its bases, so a family inherits what it does
not change. While a build runs the registry is frozen: a late registration is an error, not a surprise.
"""

import difflib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from omniprep.families.errors import (
    BadMaxTokensError,
    DuplicateFamilyError,
    FamilyError,
    RegistryFrozenError,
    UnknownFamilyError,
    UnknownModalityError,
    UnknownTemplateError,
)
from omniprep.families.kinds import (
    Array,
    Decoded,
    Expansion,
    Field,
    Item,
    MediaMeta,
    ModelArch,
    Sample,
    as_json,
    from_json,
)
from omniprep.modalities import MODALITIES
from omniprep.template.chat import TemplateMeta

if TYPE_CHECKING:
    from omniprep.families.context import FamilyContext

C = TypeVar("C", bound=type)
T = TypeVar("T")


@runtime_checkable
class SupportsMultiModal(Protocol):
    """What every family class has; the defaults are those of a text-only family.

    Attributes:
        limits: Modality → most items of a row (None: no limit). A modality that is absent is not supported.
        placeholders: Modality → the one token that stands for an item until it is expanded.
        tags: Modality → the text that replaces `<image>` and so on (default: the placeholder; `{n}` is the item's
            number from 1); "video_audio" is that of a video whose sound is taken too.
        plain_tags: The same as `tags`, for text without roles (--no-use-chat-template), where it differs.
        fields: Forward arguments → `Field`.
        options: Options and their defaults; builds may set these and no others.
        row_options: Keys that a row's chat_template_kwargs may set.
        media_tokens: More tokens that may not be typed in text.
        pads_clips: The feature extractor pads the clips of a row to the longest, which shows in their features: their
            facts say how long that is (`MediaMeta.padded_to`).
        chat_template: Name of a registered template, where `register_template` decorates no class of the family.
        model_arch: The same, of a registered architecture.
        load_model: "module:function" (or a function) that loads a checkpoint for training.
        init_model: "module:function" (or a function) of (folder, seed) that writes a small random checkpoint.
    """

    limits: ClassVar[dict[str, int | None]] = {}
    placeholders: ClassVar[dict[str, str]] = {}
    tags: ClassVar[dict[str, str]] = {}
    plain_tags: ClassVar[dict[str, str]] = {}
    fields: ClassVar[dict[str, Field]] = {}
    options: ClassVar[dict[str, Any]] = {}
    row_options: ClassVar[frozenset[str]] = frozenset()
    media_tokens: ClassVar[tuple[str, ...]] = ()
    pads_clips: ClassVar[bool] = False
    chat_template: ClassVar[str] = "chatml"
    model_arch: ClassVar[str] = ""
    load_model: ClassVar[Any] = ""
    init_model: ClassVar[Any] = ""


Counter = Callable[["FamilyContext", MediaMeta], int]
Mapper = Callable[["FamilyContext", list[Decoded]], dict[str, Array]]
InputProcessor = Callable[["FamilyContext", Sample], list[Expansion]]
Positions = Callable[["FamilyContext", Sample], NDArray[np.int32] | None]


def check_modality(modality: str) -> None:
    """Raise UnknownModalityError for a name that is no modality."""
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
    """All families of this process, and the templates and architectures that have a name; `REGISTRY` is the one."""

    def __init__(self) -> None:
        """Begin empty and open."""
        self.families: dict[str, FamilyRecord] = {}
        self.templates: dict[str, TemplateMeta] = {"chatml": TemplateMeta()}
        self.archs: dict[str, ModelArch] = {"": ModelArch()}
        self.frozen = False
        self._origin: str | None = None

    @contextmanager
    def frozen_while(self) -> Iterator[None]:
        """Refuse registrations inside the block: a build runs."""
        before, self.frozen = self.frozen, True
        try:
            yield
        finally:
            self.frozen = before

    @contextmanager
    def loading(self, origin: str | None) -> Iterator[None]:
        """Allow registrations inside the block, which imports a file of `origin` (None: named after its module)."""
        before = self.frozen, self._origin
        self.frozen, self._origin = False, origin
        try:
            yield
        finally:
            self.frozen, self._origin = before

    def forget(self, origin: str) -> None:
        """Drop the families of an origin: its file has changed and is loaded anew."""
        self.families = {name: record for name, record in self.families.items() if record.origin != origin}

    def _check_open(self, what: str) -> None:
        if self.frozen:
            raise RegistryFrozenError(
                f"{what}: families must be registered before a build starts; move it into a --plugin file"
            )

    def _store(self, key: str, value: Any) -> Callable[[C], C]:
        self._check_open(key)

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
            RegistryFrozenError: A build runs.
        """
        decorate = self._store("family", name)

        def register(cls: C) -> C:
            if name in self.families and not override:
                taken = self.families[name]
                raise DuplicateFamilyError(
                    f"family {name!r} is registered already, by {taken.origin}; choose another name or pass "
                    "override=True"
                )
            self.families[name] = FamilyRecord(
                name=name,
                cls=cls,
                hf_architectures=tuple(hf_architectures),
                model_types=tuple(model_types),
                checkpoints=tuple(checkpoints),
                requires=tuple(requires),
                version=version,
                origin=self._origin or cls.__module__,
            )
            return decorate(cls)

        return register

    def register_template(
        self, template: str | TemplateMeta, meta: TemplateMeta | None = None, *, override: bool = False
    ) -> Callable[[C], C]:
        """Register a chat template: of the class below it, under a name for reuse, or both.

        Args:
            template: A name, or the template itself. A name alone means a template that is registered under it.
            meta: The template to register under the name; without a class below, call it as a plain function.
            override: Replace a template of the same name.
        """
        return self._named("template", self.templates, template, meta, override)

    def register_model_arch(
        self, arch: str | ModelArch, meta: ModelArch | None = None, *, override: bool = False
    ) -> Callable[[C], C]:
        """Register the module prefixes of the model's parts; names as in `register_template`."""
        return self._named("arch", self.archs, arch, meta, override)

    def _named(
        self, key: str, known: dict[str, T], first: str | T, second: T | None, override: bool
    ) -> Callable[[C], C]:
        self._check_open(f"register_{key}")
        if not isinstance(first, str):
            return self._store(key, first)
        if second is None:
            return self._store(key, self.named(key, first))
        if known.get(first, second) != second and not override:
            raise DuplicateFamilyError(
                f"{key} {first!r} is registered already; choose another name or pass override=True"
            )
        known[first] = second
        return self._store(key, second)

    def named(self, key: str, name: str) -> Any:
        """The template (key "template") or architecture (key "arch") of a name.

        Raises:
            UnknownTemplateError: There is none; the message lists those there are.
        """
        known: Mapping[str, Any] = self.templates if key == "template" else self.archs
        if name not in known:
            names = ", ".join(sorted(filter(None, known))) or "none"
            raise UnknownTemplateError(
                f"{key} {name!r} is not registered; registered: {names}. Register it before the family"
            )
        return known[name]

    def register_input_mapper(self, modality: str, mapper: Mapper | None = None) -> Callable[[C], C]:
        """Register decoded items → forward arguments; None takes the checkpoint's own Hugging Face image processor."""
        check_modality(modality)
        return self._store(f"mapper:{modality}", mapper or "default")

    def register_image_input_mapper(self, mapper: Mapper | None = None) -> Callable[[C], C]:
        """`register_input_mapper("image", mapper)`."""
        return self.register_input_mapper("image", mapper)

    def register_max_multimodal_tokens(
        self, modality: str, most: "int | Callable[[FamilyContext], int]"
    ) -> Callable[[C], C]:
        """Register a true upper bound of the tokens of one item: an integer, or a function of the context.

        Raises:
            BadMaxTokensError: An integer below 1.
        """
        check_modality(modality)
        if (
            isinstance(most, bool)
            or (isinstance(most, int) and most < 1)
            or not (isinstance(most, int) or callable(most))
        ):
            raise BadMaxTokensError(
                f"maximum tokens of modality {modality!r} must be an integer of at least 1, not {most!r}"
            )
        return self._store(f"max:{modality}", most)

    def register_max_image_tokens(self, most: "int | Callable[[FamilyContext], int]") -> Callable[[C], C]:
        """`register_max_multimodal_tokens("image", most)`."""
        return self.register_max_multimodal_tokens("image", most)

    def register_token_counter(self, modality: str, counter: Counter) -> Callable[[C], C]:
        """Register header facts → exact number of tokens; it may raise Reject(code, message)."""
        check_modality(modality)
        return self._store(f"counter:{modality}", counter)

    def register_tower_work(self, modality: str, work: Counter) -> Callable[[C], C]:
        """Register header facts → units that the item's tower works on: patches of a picture or video, frames of sound.

        Bins are limited and balanced by them (--max-bin-patches, --max-bin-audio-frames); without one, an item counts
        as many as it has tokens.
        """
        check_modality(modality)
        return self._store(f"work:{modality}", work)

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
        every = ", ".join(
            f"{r.name} ({r.origin})" if r.origin.startswith("--plugin") else r.name for r in self.families.values()
        )
        if name is not None:
            if name in self.families:
                return self.families[name]
            near = difflib.get_close_matches(name, self.families, 2)
            hint = f"did you mean {' or '.join(near)}?" if near else f"registered: {every}"
            raise UnknownFamilyError(f"family {name!r} is not registered; {hint}")
        architectures, model_type = set(config.get("architectures") or ()), config.get("model_type")
        for record in reversed(self.families.values()):  # the latest first: a plug-in may take over an architecture
            if architectures & set(record.hf_architectures):
                return record
        for record in reversed(self.families.values()):
            if model_type in record.model_types:
                return record
        raise UnknownFamilyError(
            f"no family for architectures {sorted(architectures)} (model_type {model_type!r}); "
            f"registered: {every}. Pass --family NAME, or register one with --plugin FILE.py"
        )


REGISTRY = Registry()

__all__ = [
    "REGISTRY",
    "Array",
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
    "as_json",
    "check_modality",
    "from_json",
    "registered",
]
