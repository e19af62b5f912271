"""Which family on which checkpoint: what was registered, and what travels to a worker."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from omniprep.families.errors import UnknownTemplateError
from omniprep.families.kinds import ModelArch
from omniprep.template.meta import TemplateMeta

T = TypeVar("T")


class HashedDict(dict[str, Any]):
    """An option that is an object (a size of height and width), as a part of a key."""

    def __hash__(self) -> int:  # type: ignore[override]
        """Of the text, as the objects that are options are short."""
        return hash(repr(sorted(self.items())))


@dataclass(frozen=True, kw_only=True, slots=True)
class FamilySpec:
    """What a worker needs to make the same family again: plain values only, that are the key of what is cached."""

    model: str
    family: str | None = None
    plugins: tuple[str, ...] = ()
    plugin_sources: tuple[str, ...] = ()
    """Text of the plug-in files, so that workers on other nodes need not have them."""
    options: tuple[tuple[str, Any], ...] = ()
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        """Make objects and lists among the options parts of a key."""
        object.__setattr__(self, "options", tuple((name, _hashed(value)) for name, value in self.options))


def _hashed(value: Any) -> Any:
    if isinstance(value, dict):
        return HashedDict({name: _hashed(part) for name, part in value.items()})
    return tuple(map(_hashed, value)) if isinstance(value, list | tuple) else value


@dataclass(frozen=True, kw_only=True, slots=True)
class FamilyRecord:
    """A registered family: its class, which checkpoints it answers to, and where it came from."""

    name: str
    cls: type[Any]
    """A subclass of `omniprep.families.base.Family`."""
    hf_architectures: tuple[str, ...] = ()
    model_types: tuple[str, ...] = ()
    checkpoints: tuple[str, ...] = ()
    requires: tuple[str, ...] = ()
    version: str = "1"
    origin: str = ""
    templates: Mapping[str, TemplateMeta] = field(default_factory=dict)
    """Templates of the registry, by name; the class may name one that is registered after it."""
    archs: Mapping[str, ModelArch] = field(default_factory=dict)


def named(known: Mapping[str, T], kind: str, name: str) -> T:
    """The template or architecture (`kind`, for the message) of a name; the error lists those there are."""
    if name not in known:
        names = ", ".join(sorted(filter(None, known))) or "none"
        raise UnknownTemplateError(
            f"{kind} {name!r} is not registered; registered: {names}. Register it before the family"
        )
    return known[name]


def text_hash(text: str) -> str:
    """SHA-256 (hex) of the text of a plug-in."""
    return hashlib.sha256(text.encode()).hexdigest()
