"""What a plug-in imports to register a model family (see docs/families.md)."""

from typing import NoReturn

from omniprep.errors import Reject
from omniprep.families import errors
from omniprep.families.base import Family
from omniprep.families.context import FamilyContext, resolve_family
from omniprep.families.errors import FamilyError
from omniprep.families.guides import (
    Model,
    ModelGroup,
    ModelMeta,
    MultiModelKeys,
    get_model_tokenizer_multimodal,
    get_model_tokenizer_with_flash_attn,
)
from omniprep.families.kinds import Decoded, Departure, Expansion, Field, Item, MediaMeta, ModelArch, Sample
from omniprep.families.registry import REGISTRY, Registry
from omniprep.template.meta import TemplateMeta

SupportsMultiModal = Family
"""The name that serving engines have for the base class."""
MULTIMODAL_REGISTRY = INPUT_REGISTRY = REGISTRY
"""vLLM's old guide had two registries for the decorators of one class."""
register_model = REGISTRY.register_model
register_template = REGISTRY.register_template
register_model_arch = REGISTRY.register_model_arch

_ELSEWHERE = {
    "Template": "what an item becomes is said by a family's input processor and mapper",
    "get_template": "omniprep.registry.resolve_family(checkpoint).template",
    "get_model_tokenizer": "omniprep.registry.resolve_family(checkpoint)",
    "ModelRegistry": "@REGISTRY.register_family(name, hf_architectures=[...])",
    "SupportsVision": "SupportsMultiModal",
    "InputContext": "functions get the family on its checkpoint (FamilyContext)",
    "LLMInputs": "an input processor gets a Sample and gives a list of Expansion",
    "DecoderOnlyInputs": "an input processor gets a Sample and gives a list of Expansion",
    "MultiModalInputs": "a mapper gives a dict of arrays",
    "MultiModalKwargs": "a mapper gives a dict of arrays",
    "SequenceData": "dummy data are messages and media",
    "DummyData": "dummy data are messages and media",
}
"""Names of the guides that have no equal here → what stands in their place."""


def __getattr__(name: str) -> NoReturn:
    if name in _ELSEWHERE:
        raise ImportError(f"omniprep.registry has no {name}: {_ELSEWHERE[name]} (docs/registration-guides.md)")
    raise AttributeError(f"module 'omniprep.registry' has no attribute {name!r}")


__all__ = [
    "INPUT_REGISTRY",
    "MULTIMODAL_REGISTRY",
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
    "Model",
    "ModelArch",
    "ModelGroup",
    "ModelMeta",
    "MultiModelKeys",
    "Registry",
    "Reject",
    "Sample",
    "SupportsMultiModal",
    "TemplateMeta",
    "errors",
    "get_model_tokenizer_multimodal",
    "get_model_tokenizer_with_flash_attn",
    "register_model",
    "register_model_arch",
    "register_template",
    "resolve_family",
]
