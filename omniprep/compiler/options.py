"""From a build's options to its family: which options are the family's own, and what a worker needs to make it."""

import ast
import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from omniprep import io
from omniprep.config import BuildConfig
from omniprep.errors import UsageError
from omniprep.families.context import FamilyContext, FamilySpec, resolve_current
from omniprep.rows.table_folders import CATALOG

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


_CODEC_PACKAGES = {"jxl": "pillow_jxl"}
"""Modules that pixel codecs need beyond omniprep's own requirements; the extra has the codec's name."""


def check_places(config: BuildConfig, say: Callable[[str], None]) -> None:
    """Name what an option needs and what is absent, before anything is loaded or downloaded.

    A --media-root that is not there is only told: on a cluster it may be there on the workers' machines alone.

    Raises:
        UsageError: A codec's library is absent.
        OmniprepError: A store's library is absent.
    """
    codec = config.pixel_codec
    if codec in _CODEC_PACKAGES and find_spec(_CODEC_PACKAGES[codec]) is None:
        raise UsageError(
            f"--pixel-codec {codec} needs a package that is not installed: pip install 'omniprep[{codec}]'"
        )
    for uri in (*config.inputs, *config.media_root, config.out):
        if not io.is_local(uri) and not uri.startswith(CATALOG):
            io.check_store(uri)
    for folder in config.media_root:
        if io.is_local(folder) and not os.path.isdir(io.local_path(folder)):
            is_file = os.path.isfile(io.local_path(folder))
            what = "is a file; give its folder" if is_file else f"no such folder{io.did_you_mean_file(folder)}"
            say(f"--media-root {folder}: {what}")


def family_of(config: BuildConfig) -> FamilyContext:
    """The family of a build, ready to work."""
    return resolve_current(family_spec(config))
