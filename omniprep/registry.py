"""What a plug-in imports to register a model family (see docs/families.md)."""

from omniprep.errors import Reject
from omniprep.families.context import FamilyContext, resolve_family
from omniprep.families.registry import (
    REGISTRY,
    Decoded,
    Expansion,
    Field,
    Item,
    MediaMeta,
    ModelArch,
    Registry,
    Sample,
    SupportsMultiModal,
    TemplateMeta,
)

__all__ = [
    "REGISTRY",
    "Decoded",
    "Expansion",
    "FamilyContext",
    "Field",
    "Item",
    "MediaMeta",
    "ModelArch",
    "Registry",
    "Reject",
    "Sample",
    "SupportsMultiModal",
    "TemplateMeta",
    "resolve_family",
]
