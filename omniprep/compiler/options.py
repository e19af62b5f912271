"""From a build's options to its family: which options are the family's own, and what a worker needs to make it."""

import ast
from pathlib import Path
from typing import Any

from omniprep.config import BuildConfig
from omniprep.errors import UsageError
from omniprep.families.context import FamilyContext, FamilySpec, resolve_current

# Options of a build that are options of families; a family without one refuses it.
FAMILY_OPTIONS = (
    "max_pixels",
    "min_pixels",
    "video_max_pixels",
    "video_min_pixels",
    "video_total_pixels",
    "fps",
    "fps_min_frames",
    "fps_max_frames",
)
# The same, for options that have a default value: the family gets them only where they differ from it.
_WITH_DEFAULT = {"video_timing": "reference", "long_audio": "reject"}


def family_spec(config: BuildConfig, *, ship_plugins: bool = False) -> FamilySpec:
    """What makes the build's family; `ship_plugins` puts the text of plug-in files in, for other machines."""
    if not config.model:
        raise UsageError("--model is needed: a checkpoint folder or a Hub name")
    options: dict[str, Any] = {
        name: getattr(config, name) for name in FAMILY_OPTIONS if getattr(config, name) is not None
    }
    options |= {
        name: getattr(config, name) for name, default in _WITH_DEFAULT.items() if getattr(config, name) != default
    }
    for text in config.family_option:
        name, mark, value = text.partition("=")
        if not mark:
            raise UsageError(f"--family-option {text!r}: write it as NAME=VALUE")
        options[name] = _value(value)
    return FamilySpec(
        model=config.model,
        family=config.family,
        plugins=config.plugin,
        plugin_sources=tuple(Path(p).read_text() for p in config.plugin if Path(p).is_file()) if ship_plugins else (),
        options=tuple(sorted(options.items())),
        trust_remote_code=config.trust_remote_code,
    )


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def family_of(config: BuildConfig) -> FamilyContext:
    """The family of a build, ready to work."""
    return resolve_current(family_spec(config))
