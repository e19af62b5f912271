"""Where families come from: built-in files, entry points of installed packages, plug-in files.

A plug-in's text travels to the workers, so nodes need not have its file. A call that names other plug-ins than the one
before it in this process replaces those: registered is what the present command asks for.
"""

import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from omniprep.errors import OmniprepError
from omniprep.families.base import Family
from omniprep.families.errors import MissingRegistrationError, PluginImportError, UnknownFunctionError
from omniprep.families.records import text_hash
from omniprep.families.registry import REGISTRY

BUILT_IN = (
    "qwen.qwen2_5_omni",
    "qwen.qwen2_vl",
    "qwen.qwen3_vl",
    "qwen.qwen2_audio",
    "qwen.qwen3_omni",
    "hf.family",
    "fast.grids",
    "fast.tiles",
    "fast.sounds",
)
_loaded: dict[str, str] = {}
"""Path of each plug-in that is loaded → its text."""


def load_families(plugins: tuple[str, ...] = (), sources: tuple[str, ...] = ()) -> None:
    """Import the built-in families, the entry points of installed packages (omniprep.families), and plug-in files.

    Raises:
        PluginImportError: A plug-in file is absent or fails; the message has its own error.
    """
    with REGISTRY.loading(None):
        for name in BUILT_IN:
            importlib.import_module(f"omniprep.families.{name}")
    _load_entry_points()
    _load_plugins(dict(zip(plugins, sources or plugin_texts(plugins), strict=True)))


@lru_cache(maxsize=1)
def _load_entry_points() -> None:
    from importlib.metadata import entry_points

    for point in entry_points(group="omniprep.families"):
        try:
            package = point.dist.name if point.dist is not None else "an unnamed package"
            with REGISTRY.loading(f"entry point {point.name} of {package}"):
                point.load()
        except OmniprepError:
            raise
        except Exception as error:
            raise PluginImportError(f"entry point {point.name!r} ({point.value}): {_describe(error, None)}") from error


def plugin_texts(plugins: tuple[str, ...]) -> tuple[str, ...]:
    """The texts of plug-in files; PluginImportError for one that cannot be read."""
    texts = []
    for path in plugins:
        try:
            texts.append(Path(path).read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise PluginImportError(f"--plugin {path}: no such file") from error
        except (OSError, UnicodeDecodeError) as error:
            raise PluginImportError(f"--plugin {path}: {error}") from error
    return tuple(texts)


def named_function(family: str, attribute: str, hook: Any) -> Callable[..., Any]:
    """The function that a family names in `load_model` or `init_model`; UnknownFunctionError without one."""
    function = hook
    if isinstance(hook, str):
        module, _, name = hook.partition(":")
        try:
            function = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError, ValueError) as error:  # ValueError: no module is named
            raise UnknownFunctionError(
                f"family {family!r}: {attribute} {hook!r} is no function that can be imported ({error}); it is written "
                "as 'module:function'"
            ) from error
    if not callable(function):
        raise UnknownFunctionError(f"family {family!r}: {attribute} {hook!r} is no function")
    return cast(Callable[..., Any], function)


def _load_plugins(texts: dict[str, str]) -> None:
    """Import plug-ins in order, in place of those of an earlier call; the same ones again are left as they are."""
    if not texts or list(texts.values()) == list(_loaded.values()):
        return
    for path in _loaded:
        REGISTRY.forget(f"--plugin {path}")
    _loaded.clear()
    for path, text in texts.items():
        if text not in _loaded.values():
            _load_plugin(path, text)
            _loaded[path] = text


def _load_plugin(path: str, text: str) -> None:
    name, origin = f"omniprep_plugin_{text_hash(text)[:16]}", f"--plugin {path}"
    spec = importlib.util.spec_from_loader(name, loader=None)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    module.__file__ = path
    sys.modules[name] = module
    try:
        with REGISTRY.loading(origin):
            exec(compile(text, path, "exec"), module.__dict__)
        _check_registered(path, module)
    except Exception as error:
        del sys.modules[name]
        REGISTRY.forget(origin)
        if isinstance(error, OmniprepError):
            raise
        raise PluginImportError(f"--plugin {path}: {_describe(error, path)}") from error


def _check_registered(path: str, module: ModuleType) -> None:
    """Refuse a family that was written and not registered: the checkpoint would silently be that of another."""
    classes = {record.cls for record in REGISTRY.families.values()}
    for value in vars(module).values():
        is_own = isinstance(value, type) and issubclass(value, Family) and value.__module__ == module.__name__
        if is_own and not any(issubclass(cls, value) for cls in classes):
            raise MissingRegistrationError(
                f'--plugin {path}: class {value.__name__} is not registered; write @REGISTRY.register_family("name", '
                "hf_architectures=[...]) or @register_model(ModelMeta(...)) above it"
            )


def _describe(error: Exception, path: str | None) -> str:
    """The error, and the last line of the plug-in in its traceback."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
    line = error.lineno if isinstance(error, SyntaxError) else (lines or [None])[-1]
    return f"{type(error).__name__}: {error}" + ("" if line is None else f" (line {line})")
