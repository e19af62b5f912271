"""Names of ms-swift's custom model guide, with what each means here (docs/registration-guides.md shows both).

`register_model(ModelMeta(...))` there ties a checkpoint to a loading function, a template and module prefixes; what
media become is code of the template's class. Here that is the family's, so a model that is registered takes the family
that already answers for its architectures, or is the class below the decorator.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, NoReturn

from omniprep.families.base import Family
from omniprep.families.errors import RegistrationError
from omniprep.families.kinds import Departure, ModelArch

PAGE = "docs/registration-guides.md"


@dataclass(frozen=True, kw_only=True)
class Model:
    """A published checkpoint; the names are for people to read, `architectures` choose the family."""

    ms_model_id: str | None = field(default=None, kw_only=False)
    hf_model_id: str | None = field(default=None, kw_only=False)
    model_path: str | None = field(default=None, kw_only=False)
    ms_revision: str | None = None
    hf_revision: str | None = None

    @property
    def name(self) -> str:
        """The name at Hugging Face, else the other one."""
        return self.hf_model_id or self.ms_model_id or self.model_path or ""


@dataclass(frozen=True)
class ModelGroup:
    """Checkpoints of one kind."""

    models: Sequence[Model]
    ignore_patterns: Sequence[str] | None = None
    requires: Sequence[str] | None = None
    tags: Sequence[str] = ()


@dataclass(frozen=True)
class MultiModelKeys(ModelArch):
    """A `ModelArch` with a name, as ms-swift's guide writes it."""

    arch_name: str = ""


def get_model_tokenizer_with_flash_attn(*_: Any) -> NoReturn:
    """Stands for loading as `omniprep train` loads any class of transformers; not to be called.

    Raises:
        RegistrationError: Always.
    """
    raise RegistrationError(
        "get_model_tokenizer_with_flash_attn and get_model_tokenizer_multimodal stand for omniprep's own loading and "
        f"cannot be called; load the model with the class of transformers ({PAGE})"
    )


get_model_tokenizer_multimodal = get_model_tokenizer_with_flash_attn


@dataclass(frozen=True)
class ModelMeta:
    """What ms-swift's guide says of a model; the order of the fields is that of ms-swift 3.9.3.

    `model_type` becomes the family's name (--family), `architectures` the checkpoints that it answers for. `template`
    None (or "dummy") keeps the family's own; `ignore_patterns` (of downloads) and `tags` have no effect.
    """

    model_type: str
    model_groups: Sequence[ModelGroup] | ModelGroup
    template: str | None = None
    get_function: Callable[..., Any] | None = None
    model_arch: str | None = None
    architectures: Sequence[str] = ()
    additional_saved_files: Sequence[str] = ()
    torch_dtype: Any = None
    is_multimodal: bool = False
    is_reward: bool = False
    task_type: str | None = None
    ignore_patterns: Sequence[str] | None = None
    requires: Sequence[str] = ()
    tags: Sequence[str] = ()

    def __post_init__(self) -> None:
        """Refuse what has no meaning here."""
        instead = {
            "is_reward": "reward models are not trained here",
            "torch_dtype": "omniprep train loads the type that the checkpoint's config.json names, or --torch-dtype",
        }
        for name, way in instead.items():
            if getattr(self, name):
                raise RegistrationError(f"ModelMeta {self.model_type!r}: {name} cannot be set: {way} ({PAGE})")
        if self.task_type not in (None, "causal_lm"):
            raise RegistrationError(
                f"ModelMeta {self.model_type!r}: task_type {self.task_type!r} is not known; models are trained as "
                f"causal_lm ({PAGE})"
            )
        if isinstance(self.architectures, str):
            raise RegistrationError(
                f"ModelMeta {self.model_type!r}: architectures must be a list: [{self.architectures!r}]"
            )

    @property
    def model_ids(self) -> list[str]:
        """Names of the checkpoints."""
        groups = [self.model_groups] if isinstance(self.model_groups, ModelGroup) else self.model_groups
        return [name for group in groups for model in group.models if (name := model.name)]

    @property
    def all_requires(self) -> list[str]:
        """Requirements of the model and of its groups."""
        groups = [self.model_groups] if isinstance(self.model_groups, ModelGroup) else self.model_groups
        return list(dict.fromkeys([*self.requires, *(one for group in groups for one in group.requires or ())]))


def register_model(registry: Any, meta: ModelMeta, *, exist_ok: bool = False) -> Callable[[Any], Any]:
    """`Registry.register_model`; `registry` is that registry."""
    if meta.template not in (None, "dummy"):
        registry.named("template", meta.template)
    if meta.model_arch is not None:
        registry.named("arch", meta.model_arch)
    register = registry.register_family(
        meta.model_type,
        hf_architectures=meta.architectures,
        checkpoints=meta.model_ids,
        requires=meta.all_requires,
        override=exist_ok,
    )
    base = registry.find(None, {"architectures": list(meta.architectures)}).cls
    register(_described(_derived(meta, base), meta))
    made = registry.families[meta.model_type]

    def decorate(cls: Any) -> Any:
        if registry.families.get(meta.model_type) is made:
            del registry.families[meta.model_type]
        if meta.template not in (None, "dummy") and getattr(cls, "renderer", None) is not None:
            raise RegistrationError(
                f"model {meta.model_type!r}: {cls.__name__} has a renderer, which writes the text in place of template "
                f"{meta.template!r}; give template=None ({PAGE})"
            )
        family: type[Family] = register(cls)  # a family, whatever the class was
        return _described(family, meta)

    return decorate


def _derived(meta: ModelMeta, base: type[Family]) -> type[Family]:
    """A class for a model without one: of the family that answers for its architectures."""
    if meta.template in (None, "dummy") or base.renderer is None:
        return type(meta.model_type, (base,), {})
    if not meta.is_multimodal:
        return type(meta.model_type, (Family,), {"__doc__": "Text alone, by the registered template."})

    def refuse(self: Family, *_: Any) -> None:
        raise RegistrationError(
            f"model {meta.model_type!r}: no family says what media become beside the template {meta.template!r}; give "
            "template=None, so that the checkpoint's own chat template and processor are used, or write register_model "
            f"above a class with mapper and counter ({PAGE})"
        )

    return type(meta.model_type, (Family,), {"__init__": refuse})


def _described(cls: type[Family], meta: ModelMeta) -> type[Family]:
    """The class with what the model's description says."""
    if meta.template not in (None, "dummy"):
        assert meta.template is not None
        cls.chat_template = meta.template
        reason = f"the text is written by the registered template {meta.template!r}"
        cls.departures = (*cls.departures, Departure(what="text", reason=reason))
    if meta.model_arch is not None:
        cls.model_arch = meta.model_arch
    if meta.additional_saved_files:
        cls.saved_files = tuple(meta.additional_saved_files)
    if meta.get_function not in (None, get_model_tokenizer_with_flash_attn):
        cls.load_model = staticmethod(_loader(meta))
    return cls


def _loader(meta: ModelMeta) -> Callable[..., Any]:
    """A loading function of ms-swift's form as one of ours."""

    def load_model(path: str, dtype: Any, attn_implementation: str) -> Any:
        assert meta.get_function is not None
        info = SimpleNamespace(model_type=meta.model_type, model_dir=path, torch_dtype=dtype)
        loaded = meta.get_function(path, info, {}, load_model=True, attn_impl=attn_implementation)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        if model is None:
            raise RegistrationError(f"model {meta.model_type!r}: its get_function gave no model for load_model=True")
        return model

    return load_model
