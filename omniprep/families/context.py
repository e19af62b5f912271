"""From a checkpoint to its family, ready to work: plug-ins loaded, the family found, everything checked once."""

from dataclasses import replace
from functools import lru_cache
from typing import Any

from omniprep.errors import OmniprepError
from omniprep.families.base import Family
from omniprep.families.checkpoint import checkpoint_file, checkpoint_state
from omniprep.families.guess import guess_model
from omniprep.families.loading import load_families, plugin_texts
from omniprep.families.records import FamilySpec
from omniprep.families.registry import REGISTRY
from omniprep.families.tokenizer_cache import FileState

__all__ = ["FamilyContext", "FamilySpec", "resolve", "resolve_current", "resolve_family"]

FamilyContext = Family
"""A family on one checkpoint; what functions that are registered get as `ctx`."""


_states: dict[str, tuple[FileState, ...]] = {}
"""Of the checkpoints that `_resolve` may have families of."""


def resolve_current(spec: FamilySpec) -> FamilyContext:
    """As `resolve`, at the start of a command: made anew where files of the checkpoint changed since the last one.

    A notebook builds, has a setting changed and builds again. Within a build the family stays the same.
    """
    state = checkpoint_state(spec.model)
    if _states.setdefault(spec.model, state) != state:
        _resolve.cache_clear()
        _states[spec.model] = state
    return resolve(spec)


def resolve(spec: FamilySpec) -> FamilyContext:
    """The family of a spec; cached, so that a warm worker makes it once."""
    if len(spec.plugin_sources) != len(spec.plugins):
        spec = replace(spec, plugin_sources=plugin_texts(spec.plugins))
    return _resolve(spec)


@lru_cache(maxsize=4)
def _resolve(spec: FamilySpec) -> FamilyContext:
    load_families(spec.plugins, spec.plugin_sources)
    config = checkpoint_file(spec.model, "config.json")
    if config is None:
        raise OmniprepError(
            f"model {spec.model!r}: no config.json there; give a checkpoint's folder or a Hub name "
            f"(omniprep init-model makes a small one){guess_model(spec.model)}"
        )
    record = REGISTRY.find(spec.family, config)
    family: FamilyContext = record.cls(record, spec, config)
    return family


def resolve_family(
    model: str,
    family: str | None = None,
    plugins: tuple[str, ...] = (),
    options: dict[str, Any] | None = None,
    trust_remote_code: bool = False,
) -> FamilyContext:
    """The family of a checkpoint, ready to work.

    Args:
        model: Checkpoint folder or Hub name.
        family: Name of the family; None finds it by config.json.
        plugins: Python files that register families.
        options: Values for the family's options; those that are None are left out.
        trust_remote_code: Let the checkpoint's own Python code run when its tokenizer is loaded.

    Raises:
        OmniprepError: There is no such checkpoint, or it cannot be read.
        FamilyError: No family is found, a plug-in cannot be imported, or the family lacks something.
    """
    given = tuple(sorted((name, value) for name, value in (options or {}).items() if value is not None))
    return resolve_current(
        FamilySpec(
            model=model, family=family, plugins=tuple(plugins), options=given, trust_remote_code=trust_remote_code
        )
    )
