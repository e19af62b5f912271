"""What a plug-in imports to register a model family (see docs/families.md)."""

from omniprep.errors import Reject
from omniprep.families import errors
from omniprep.families.base import Family
from omniprep.families.context import FamilyContext, resolve_family
from omniprep.families.errors import FamilyError
from omniprep.families.kinds import Decoded, Departure, Expansion, Field, Item, MediaMeta, ModelArch, Sample
from omniprep.families.registry import REGISTRY, Registry
from omniprep.template.chat import TemplateMeta

SupportsMultiModal = Family
"""The name that serving engines have for the base class."""
register_template = REGISTRY.register_template
register_model_arch = REGISTRY.register_model_arch

__all__ = [
    "REGISTRY",
    "Decoded",
    "Departure",
    "Expansion",
    "Family",
    "FamilyContext",
    "FamilyError",
    "Field",
    "Item",
    "MediaMeta",
    "ModelArch",
    "Registry",
    "Reject",
    "Sample",
    "SupportsMultiModal",
    "TemplateMeta",
    "errors",
    "register_model_arch",
    "register_template",
    "resolve_family",
]
