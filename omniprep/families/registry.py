"""The registry: which families there are, how that of a checkpoint is found, and the decorators that make one.

A family may be written as a subclass of `Family` with methods (omniprep/families/base.py), or as a class and functions
with decorators. The names of the decorators follow the serving engines' guide (register_input_mapper,
register_dummy_data, ...) and ms-swift's (register_template, register_model_arch); each writes a method or an attribute
of the class below it, so a family inherits what it does not change, whichever way it was written. docs/families.md
walks through both. While a build runs the registry is frozen: a late registration is an error, not a surprise.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from omniprep.errors import did_you_mean
from omniprep.families import guides
from omniprep.families.base import Family
from omniprep.families.checks import check_modality
from omniprep.families.decorated import write_method
from omniprep.families.errors import (
    BadMaxTokensError,
    DuplicateFamilyError,
    MissingRegistrationError,
    RegistrationError,
    RegistryFrozenError,
    UnknownFamilyError,
)
from omniprep.families.guides import ModelMeta, MultiModelKeys
from omniprep.families.kinds import Array, Decoded, Expansion, MediaMeta, ModelArch, Sample
from omniprep.families.records import FamilyRecord, named
from omniprep.families.rowwise import Metas
from omniprep.shards.loaders import LOADERS, Loader, LoaderFunction
from omniprep.shards.schema import LOADS
from omniprep.template.meta import TemplateMeta

C = TypeVar("C", bound=type)
T = TypeVar("T")
F = TypeVar("F", bound=LoaderFunction)
Counter = Callable[[Any, MediaMeta], int]
"""These functions get the family on its checkpoint, a `Family`, first."""
Mapper = Callable[[Any, list[Decoded]], dict[str, Array]]
InputProcessor = Callable[[Any, Sample], list[Expansion]]
Positions = Callable[[Any, Sample], NDArray[np.int32] | None]
RowCounter = Callable[[Any, Metas], dict[str, list[int]]]
RowMapper = Callable[[Any, list[Decoded]], list[dict[str, Array]]]
ItemTexts = Callable[[Any, Metas], dict[str, list[str]]]
TokenFields = Callable[[Any, Sample], dict[str, Array]]
Renderer = Callable[..., Any]
"""(ctx, row, strategy, *, generate) → `omniprep.template.rendered.Rendered`."""

FALLBACK = "hf"
"""The family of checkpoints that no other answers for."""


def as_family(cls: type) -> type[Family]:
    """A class as a family: itself where it is one, else a subclass of it and `Family`.

    Raises:
        RegistrationError: The class is the model itself.
    """
    if any(f"{base.__module__}.{base.__name__}" == "torch.nn.modules.module.Module" for base in cls.__mro__):
        raise RegistrationError(
            f"{cls.__name__} is a model (nn.Module), a family is not: decorate a class of SupportsMultiModal alone and "
            "name what loads the model in its load_model (docs/registration-guides.md)"
        )
    if issubclass(cls, Family):
        return cls
    return type(cls.__name__, (cls, Family), {"__module__": cls.__module__, "__doc__": cls.__doc__})


class Registry:
    """All families of this process, and the templates and architectures that have a name; `REGISTRY` is the one."""

    def __init__(self) -> None:
        self.families: dict[str, FamilyRecord] = {}
        self.templates: dict[str, TemplateMeta] = {"chatml": TemplateMeta()}
        self.archs: dict[str, ModelArch] = {"": ModelArch()}
        self._owners: dict[tuple[str, str], str | None] = {}
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
        """Drop what an origin registered: its file has changed and is loaded anew."""
        for kind, name in [key for key, owner in self._owners.items() if owner == origin]:
            (self.templates if kind == "template" else self.archs).pop(name, None)
            del self._owners[kind, name]
        self.families = {name: record for name, record in self.families.items() if record.origin != origin}
        for name in [name for name, loader in LOADERS.items() if loader.origin == origin]:
            del LOADERS[name]

    def find(self, name: str | None, config: Mapping[str, Any]) -> FamilyRecord:
        """The family of a name, or of a checkpoint's config.json (its architectures, then its model_type, else hf).

        Raises:
            UnknownFamilyError: There is none; the message lists near names and what is registered.
        """
        registered = ", ".join(
            f"{r.name} ({r.origin})" if r.origin.startswith("--plugin") else r.name for r in self.families.values()
        )
        if name is not None:
            if name in self.families:
                return self.families[name]
            hint = did_you_mean(name, self.families) or f"; registered: {registered}"
            raise UnknownFamilyError(f"family {name!r} is not registered{hint}")
        architectures, model_type = set(config.get("architectures") or ()), config.get("model_type")
        for record in reversed(self.families.values()):  # the latest first: a plug-in may take over an architecture
            if architectures & set(record.hf_architectures):
                return record
        for record in reversed(self.families.values()):
            if model_type in record.model_types:
                return record
        if FALLBACK in self.families:
            return self.families[FALLBACK]
        raise UnknownFamilyError(
            f"no family for architectures {sorted(architectures)} (model_type {model_type!r}); "
            f"registered: {registered}. Pass --family NAME, or register one with --plugin FILE.py"
        )

    def _refuse_while_frozen(self, name: str) -> None:
        if self.frozen:
            raise RegistryFrozenError(
                f"{name}: families must be registered before a build starts; move it into a --plugin file"
            )

    def _decorator(self, name: str, write: Callable[[type[Family]], None]) -> Callable[[C], C]:
        self._refuse_while_frozen(name)

        def decorate(cls: Any) -> Any:
            family = as_family(cls)
            write(family)
            return family

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

        def write(cls: type[Family]) -> None:
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
                templates=self.templates,
                archs=self.archs,
            )

        return self._decorator("register_family", write)

    def register_template(
        self,
        template: str | TemplateMeta,
        meta: TemplateMeta | None = None,
        *,
        override: bool = False,
        exist_ok: bool = False,
    ) -> Callable[[C], C]:
        """Register a chat template: of the class below it, under a name for reuse, or both.

        Args:
            template: A name, or the template itself, with its own name as ms-swift's guide has it
                (`TemplateMeta("mine", ...)`) or without. A name alone means a template that is registered under it.
            meta: The template to register under the name; without a class below, call it as a plain function.
            override: Replace a template of the same name.
            exist_ok: The same, as ms-swift calls it.
        """
        name = template.template_type if isinstance(template, TemplateMeta) else ""
        first, second = (name, template) if name and isinstance(template, TemplateMeta) else (template, meta)
        return self._attribute("template", "chat_template", self.templates, first, second, override or exist_ok)

    def register_model_arch(
        self, arch: str | ModelArch, meta: ModelArch | None = None, *, override: bool = False, exist_ok: bool = False
    ) -> Callable[[C], C]:
        """Register the module prefixes of the model's parts; names as in `register_template`."""
        name = arch.arch_name if isinstance(arch, MultiModelKeys) else ""
        first, second = (name, arch) if name and isinstance(arch, ModelArch) else (arch, meta)
        return self._attribute("arch", "model_arch", self.archs, first, second, override or exist_ok)

    def register_model(self, meta: ModelMeta, *, exist_ok: bool = False) -> Callable[[C], C]:
        """Register a family as ms-swift's guide registers a model.

        As a plain function it takes over the family that answers for the architectures now (`hf` where none does), with
        the template, module prefixes and loading function of `meta`. As a decorator it registers the class below.
        """
        return guides.register_model(self, meta, exist_ok=exist_ok)

    def _attribute(
        self, kind: str, attribute: str, known: dict[str, T], first: str | T, second: T | None, override: bool
    ) -> Callable[[C], C]:
        value = second if second is not None else named(known, kind, first) if isinstance(first, str) else first
        decorator = "register_template" if kind == "template" else "register_model_arch"
        decorate: Callable[[C], C] = self._decorator(decorator, lambda cls: setattr(cls, attribute, value))
        if isinstance(first, str) and second is not None:
            if known.get(first, second) != second and not override:
                raise DuplicateFamilyError(
                    f"{kind} {first!r} is registered already; choose another name or pass override=True"
                )
            known[first] = second
            self._owners[kind, first] = self._origin
        return decorate

    def named(self, kind: str, name: str) -> Any:
        """The template (kind "template") or architecture (kind "arch") of a name.

        Raises:
            UnknownTemplateError: There is none; the message lists those that are registered.
        """
        known: Mapping[str, Any] = self.templates if kind == "template" else self.archs
        return named(known, kind, name)

    def _method(self, decorator: str, name: str, function: Callable[..., Any]) -> Callable[[C], C]:
        # A function of (ctx, ...) is a method of (self, ...). It is wrapped since not all that can be called binds.
        return self._decorator(
            decorator, lambda cls: setattr(cls, name, lambda family, *given, **named: function(family, *given, **named))
        )

    def _modality_method(
        self, decorator: str, name: str, modality: str, function: Callable[..., Any]
    ) -> Callable[[C], C]:
        check_modality(modality)
        return self._decorator(decorator, lambda cls: write_method(cls, name, modality, function))

    def register_input_mapper(self, modality: str, mapper: Mapper | None = None) -> Callable[[C], C]:
        """Register decoded items → forward arguments; None takes the checkpoint's own Hugging Face image processor.

        Raises:
            MissingRegistrationError: None for another modality than images.
        """
        check_modality(modality)
        if mapper is None and modality != "image":
            raise MissingRegistrationError(
                f"only images have a default mapper; give register_input_mapper({modality!r}, fn) a function"
            )
        return self._modality_method(
            "register_input_mapper", "map_items", modality, mapper or Family.map_by_image_processor
        )

    def register_image_input_mapper(self, mapper: Mapper | None = None) -> Callable[[C], C]:
        """`register_input_mapper("image", mapper)`."""
        return self.register_input_mapper("image", mapper)

    def register_max_multimodal_tokens(
        self, modality: str, most: int | Callable[[Any], int] | None = None
    ) -> Callable[[C], C]:
        """Register a true upper bound of the tokens of one item: an integer, or a function of the family.

        Raises:
            BadMaxTokensError: An integer below 1.
        """
        check_modality(modality)
        number = isinstance(most, int) and not isinstance(most, bool)
        if (number and most < 1) or not (number or callable(most)):  # type: ignore[operator]
            raise BadMaxTokensError(
                f"maximum tokens of modality {modality!r} must be an integer of at least 1, not {most!r}"
            )

        def write(cls: type[Family]) -> None:
            write_method(cls, "max_tokens", modality, most if callable(most) else lambda family: most)
            rest = {name: tokens for name, tokens in cls.most_tokens.items() if name != modality}
            cls.most_tokens = rest if callable(most) else {**rest, modality: cast(int, most)}

        return self._decorator("register_max_multimodal_tokens", write)

    def register_max_image_tokens(self, most: int | Callable[[Any], int] | None = None) -> Callable[[C], C]:
        """`register_max_multimodal_tokens("image", most)`."""
        return self.register_max_multimodal_tokens("image", most)

    def register_token_counter(self, modality: str, counter: Counter) -> Callable[[C], C]:
        """Register header facts → exact number of tokens; it may raise Reject(code, message)."""
        return self._modality_method("register_token_counter", "count_tokens", modality, counter)

    def register_tower_work(self, modality: str, work: Counter) -> Callable[[C], C]:
        """Register header facts → units that the item's tower works on (`Family.cost`)."""
        return self._modality_method("register_tower_work", "cost", modality, work)

    def register_dummy_data(self, dummy: Callable[..., Any]) -> Callable[[C], C]:
        """Register fn(ctx, bin_length, counts) → (messages, {modality: media})."""
        return self._method("register_dummy_data", "dummy_data", dummy)

    def register_input_processor(self, processor: InputProcessor) -> Callable[[C], C]:
        """Register the expansion of placeholders; without one, each becomes as many copies as its item has tokens."""
        return self._method("register_input_processor", "expand", processor)

    def register_loader(self, name: str, *, version: str = "1", override: bool = False) -> Callable[[F], F]:
        """Register a function that makes forward arguments of stored values, for fields with `load=name`.

        The function gets (values, params): a tensor of units (units, *shape) as stored, on the device of the model
        (item by item where their shapes differ), and the params of the field; it gives a tensor with the same first
        axis. It is called where the dataset is loaded, so that process must register it too.

        Args:
            name: What fields call it.
            version: Stated in datasets; raise it when its results change, so that older datasets are refused.
            override: Replace a loader of the same name.

        Raises:
            DuplicateFamilyError: The name is taken, or that of a built-in way to load.
            RegistryFrozenError: A build runs.
        """
        self._refuse_while_frozen("register_loader")
        if name in LOADS or (name in LOADERS and not override):
            raise DuplicateFamilyError(f"loader {name!r} is registered already; choose another name")

        def decorate(function: F) -> F:
            module = getattr(function, "__module__", "")
            LOADERS[name] = Loader(name=name, function=function, version=version, origin=self._origin or module)
            return function

        return decorate

    def register_positions(self, positions: Positions) -> Callable[[C], C]:
        """Register m-rope: sample (expanded ids) → int32 (3, L), or None for the plain range."""
        return self._method("register_positions", "positions", positions)

    def register_renderer(self, renderer: Renderer) -> Callable[[C], C]:
        """Register fn(ctx, row, strategy, *, generate) → the text of a whole row, in place of a `TemplateMeta`."""
        return self._method("register_renderer", "renderer", renderer)

    def register_item_texts(self, texts: ItemTexts) -> Callable[[C], C]:
        """Register header facts of a row's items → the text of each before tokenization (with a renderer)."""
        return self._method("register_item_texts", "item_texts", texts)

    def register_row_counter(self, counter: RowCounter) -> Callable[[C], C]:
        """Register header facts of all items of a row → tokens of each, where they depend on their neighbors."""
        return self._by_row(self._method("register_row_counter", "count_row", counter))

    def register_row_mapper(self, modality: str, mapper: RowMapper) -> Callable[[C], C]:
        """Register the decoded items of one modality of a row → forward arguments of each item."""
        return self._by_row(self._modality_method("register_row_mapper", "map_row", modality, mapper))

    def _by_row(self, decorate: Callable[[C], C]) -> Callable[[C], C]:
        def decorate_and_mark(cls: C) -> C:
            family: Any = decorate(cls)
            family.by_row = True
            return cast(C, family)

        return decorate_and_mark

    def register_token_fields(self, fields: TokenFields) -> Callable[[C], C]:
        """Register sample (expanded ids) → arrays of one value a token, for fields of modality "text"."""
        return self._method("register_token_fields", "token_fields", fields)


REGISTRY = Registry()
