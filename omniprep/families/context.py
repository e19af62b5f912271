"""A family at work on one checkpoint: its tokenizer, settings and options, checked once, and everything it registered.

`resolve_family` is the one way to get there. A context is cheap to make again in a worker process from a `FamilySpec`, so
nothing of it travels between processes. All checks that need no data happen here: missing registrations, placeholders that
are not one token, unknown options, bad maxima.
"""

import difflib
import importlib
import importlib.util
import json
import os
import sys
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np

from omniprep.errors import OmniprepError
from omniprep.families.errors import (
    BadMaxTokensError,
    ConflictingKeyError,
    MaxTokensExceededError,
    MissingPackageError,
    MissingRegistrationError,
    PluginImportError,
    UndeclaredFieldError,
    UnknownOptionError,
    UnknownTokenError,
)
from omniprep.families.registry import (
    REGISTRY,
    Array,
    Decoded,
    Expansion,
    FamilyRecord,
    Field,
    MediaMeta,
    ModelArch,
    Sample,
    registered,
)
from omniprep.rows.normalize import MODALITIES
from omniprep.shards.schema import Column
from omniprep.template.chat import TemplateMeta
from omniprep.template.tokens import Encoder

BUILT_IN = ("qwen2_5_omni",)


@dataclass(frozen=True, kw_only=True, slots=True)
class FamilySpec:
    """What a worker needs to make the same context: plain values only."""

    model: str
    family: str | None = None
    plugins: tuple[str, ...] = ()
    plugin_sources: tuple[str, ...] = ()
    """Text of the plug-in files, so that workers on other nodes need not have them."""
    options: tuple[tuple[str, Any], ...] = ()
    trust_remote_code: bool = False


def load_families(plugins: tuple[str, ...] = (), sources: tuple[str, ...] = ()) -> None:
    """Import the built-in families, the entry points of installed packages (omniprep.families), and plug-in files.

    Raises:
        PluginImportError: A plug-in file is absent or fails; the message has its own error.
    """
    for name in BUILT_IN:
        importlib.import_module(f"omniprep.families.{name}")
    _load_entry_points()
    for position, path in enumerate(plugins):
        _load_plugin(path, sources[position] if position < len(sources) else None)


@lru_cache(maxsize=1)
def _load_entry_points() -> None:
    from importlib.metadata import entry_points

    for point in entry_points(group="omniprep.families"):
        try:
            point.load()
        except Exception as error:
            raise PluginImportError(f"entry point {point.name!r} ({point.value}): {type(error).__name__}: {error}") from error


def _load_plugin(path: str, source: str | None) -> None:
    name = "omniprep_plugin_" + "".join(c if c.isalnum() else "_" for c in os.path.abspath(path))
    if name in sys.modules:
        return
    if source is None and not Path(path).is_file():
        raise PluginImportError(f"--plugin {path}: no such file")
    text = Path(path).read_text() if source is None else source
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(name, loader=None))  # type: ignore[arg-type]
    module.__file__ = path
    sys.modules[name] = module
    try:
        exec(compile(text, path, "exec"), module.__dict__)
    except OmniprepError:
        del sys.modules[name]
        raise
    except Exception as error:
        del sys.modules[name]
        line = getattr(error.__traceback__, "tb_lineno", None)
        raise PluginImportError(f"--plugin {path}: {type(error).__name__}: {error} (line {line})") from error


@lru_cache(maxsize=4)
def resolve(spec: FamilySpec) -> "FamilyContext":
    """The context of a spec; kept, so that a warm worker makes it once."""
    load_families(spec.plugins, spec.plugin_sources)
    config = _checkpoint_file(spec.model, "config.json")
    if config is None:
        raise OmniprepError(f"model {spec.model!r}: no config.json there; give a checkpoint folder or a Hub name (omniprep init-model makes a small one)")
    record = REGISTRY.find(spec.family, config)
    return FamilyContext(record, spec, config)


def resolve_family(
    model: str, family: str | None = None, plugins: tuple[str, ...] = (), options: dict[str, Any] | None = None
) -> "FamilyContext":
    """The family of a checkpoint, ready to work.

    Args:
        model: Checkpoint folder or Hub name.
        family: Name of the family; None finds it from config.json.
        plugins: Python files that register families.
        options: Values for the family's options; None values are left out.
    """
    chosen = tuple(sorted((k, v) for k, v in (options or {}).items() if v is not None))
    return resolve(FamilySpec(model=model, family=family, plugins=plugins, options=chosen))


@lru_cache(maxsize=16)
def _checkpoint_file(model: str, name: str) -> dict[str, Any] | None:
    folder = Path(model)
    if folder.is_dir():
        path = folder / name
        return json.loads(path.read_text()) if path.is_file() else None
    if not _is_hub_name(model):
        raise OmniprepError(f"model {model!r}: no such folder, and not a Hub name (ORG/NAME)")
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        return cast(dict[str, Any], json.loads(Path(hf_hub_download(model, name)).read_text()))
    except LocalEntryNotFoundError as error:
        raise OmniprepError(f"model {model!r}: the Hub cannot be reached and the checkpoint is not in the local cache") from error
    except RepositoryNotFoundError as error:
        raise OmniprepError(f"model {model!r}: no such checkpoint on the Hub (or no access: huggingface-cli login)") from error
    except EntryNotFoundError:
        return None
    except HfHubHTTPError as error:
        raise OmniprepError(f"model {model!r}: {error}") from error


def _is_hub_name(model: str) -> bool:
    parts = model.split("/")
    return len(parts) <= 2 and all(parts) and not model.startswith((".", "~"))


class FamilyContext:
    """One family on one checkpoint; what callbacks receive as `ctx`.

    Attributes:
        name: Name of the family.
        config: config.json of the checkpoint.
        preprocessor: preprocessor_config.json of the checkpoint ({} where absent).
        opt: The family's options, defaults filled in, as attributes.
        template: Chat template texts.
        modalities: Supported modalities, in the order of image, audio, video that shards use.
    """

    def __init__(self, record: FamilyRecord, spec: FamilySpec, config: dict[str, Any]) -> None:
        """Check everything that can be checked without data."""
        self.record, self.spec, self.config = record, spec, config
        self.name, self.cls = record.name, record.cls
        _check_packages(record)
        self.preprocessor = _checkpoint_file(spec.model, "preprocessor_config.json") or {}
        self.modalities = tuple(m for m in ("image", "audio", "video") if m in self.cls.limits)  # type: ignore[attr-defined]
        self.opt = self._options(dict(spec.options))
        template = registered(self.cls, "template")
        self.template: TemplateMeta = template or TemplateMeta()
        self.arch: ModelArch = registered(self.cls, "arch") or ModelArch()
        self._check_registrations()

    def _options(self, given: dict[str, Any]) -> SimpleNamespace:
        known: dict[str, Any] = self.cls.options  # type: ignore[attr-defined]
        for name in given:
            if name not in known:
                near = difflib.get_close_matches(name, known, 1)
                hint = f"did you mean {near[0]!r}?" if near else f"its options: {', '.join(sorted(known)) or 'none'}"
                raise UnknownOptionError(f"family {self.name!r} has no option {name!r}; {hint}")
        return SimpleNamespace(**{**known, **given})

    def _check_registrations(self) -> None:
        cls = self.cls
        for modality in self.modalities:
            for key, call in (("mapper", "input_mapper"), ("counter", "token_counter"), ("max", "max_multimodal_tokens")):
                if registered(cls, f"{key}:{modality}") is None:
                    raise MissingRegistrationError(
                        f"family {self.name!r} supports {modality} but registers no {key} for it; "
                        f"add @REGISTRY.register_{call}({modality!r}, ...)"
                    )
            if modality not in cls.placeholders:  # type: ignore[attr-defined]
                raise MissingRegistrationError(f"family {self.name!r} has no placeholder for {modality}; add it to `placeholders`")
            self.placeholder_id(modality)
            self.max_tokens(modality)

    @cached_property
    def tokenizer(self) -> Any:
        """The checkpoint's fast tokenizer (loaded at first use)."""
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(self.spec.model, trust_remote_code=self.spec.trust_remote_code)
        if not tokenizer.is_fast:
            raise OmniprepError(f"model {self.spec.model!r}: only fast tokenizers (tokenizer.json) are supported")
        return tokenizer

    @cached_property
    def encoder(self) -> Encoder:
        """Batched tokenization."""
        return Encoder(self.tokenizer)

    def token_id(self, token: str) -> int:
        """The id of one token.

        Raises:
            UnknownTokenError: The text is not exactly one token.
        """
        ids = self.tokenizer(token, add_special_tokens=False)["input_ids"]
        if len(ids) != 1:
            raise UnknownTokenError(
                f"family {self.name!r}: {token!r} is {len(ids)} tokens of {self.spec.model!r}, it must be one; "
                "use a token of this tokenizer or add it there"
            )
        return int(ids[0])

    def placeholder_id(self, modality: str) -> int:
        """The id of a modality's placeholder."""
        return self.token_id(self.cls.placeholders[modality])  # type: ignore[attr-defined]

    def tag(self, modality: str) -> str:
        """The text that stands for an item before tokenization ("video_audio": a video with its sound)."""
        tags: dict[str, str] = self.cls.tags  # type: ignore[attr-defined]
        if modality in tags:
            return tags[modality]
        return cast(str, self.cls.placeholders[modality])  # type: ignore[attr-defined]

    @cached_property
    def media_tokens(self) -> tuple[str, ...]:
        """Tokens that may not be typed in text: placeholders, and what the family adds (bos and eos of media)."""
        return tuple(dict.fromkeys([*self.cls.placeholders.values(), *self.cls.media_tokens]))  # type: ignore[attr-defined]

    def max_tokens(self, modality: str) -> int:
        """The registered upper bound of one item's tokens."""
        most = registered(self.cls, f"max:{modality}")
        value = most(self) if callable(most) else most
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
            raise BadMaxTokensError(f"family {self.name!r}: maximum tokens of {modality} must be an integer of at least 1, not {value!r}")
        return int(value)

    def count(self, modality: str, meta: MediaMeta) -> int:
        """Exact tokens of an item from its header facts.

        Raises:
            Reject: The item cannot be used.
            MaxTokensExceededError: The registered maximum is not an upper bound.
        """
        tokens = int(registered(self.cls, f"counter:{modality}")(self, meta))
        if tokens > self._most(modality):
            raise MaxTokensExceededError(
                f"family {self.name!r}: a {modality} has {tokens} tokens, more than the registered maximum {self._most(modality)}; "
                "the maximum must be a true upper bound"
            )
        return tokens

    def _most(self, modality: str) -> int:
        if not hasattr(self, "_maxima"):
            self._maxima = {m: self.max_tokens(m) for m in self.modalities}
        return self._maxima[modality]

    def expand(self, sample: Sample) -> list[Expansion]:
        """What each placeholder becomes."""
        processor = registered(self.cls, "processor")
        if processor is not None:
            return list(processor(self, sample))
        return [
            Expansion(m, i, [self.placeholder_id(m)], np.full(item.tokens, self.placeholder_id(m), np.int32))
            for m in self.modalities
            for i, item in enumerate(sample.items[m])
        ]

    def positions(self, sample: Sample) -> Array | None:
        """M-rope ids int32 (3, L) of a row, or None for the plain range."""
        positions = registered(self.cls, "positions")
        return None if positions is None else cast(Array | None, positions(self, sample))

    def map_item(self, modality: str, decoded: Decoded) -> dict[str, Array]:
        """Forward arguments of one decoded item, checked against the declared fields."""
        mapper = registered(self.cls, f"mapper:{modality}")
        if mapper == "default":
            mapper = _default_mapper
        result: dict[str, Array] = mapper(self, [decoded])
        fields: dict[str, Field] = self.cls.fields  # type: ignore[attr-defined]
        for key in result:
            if key not in fields:
                raise UndeclaredFieldError(f"family {self.name!r}: the {modality} mapper gives {key!r}, which `fields` does not declare")
            if fields[key].modality != modality:
                raise ConflictingKeyError(f"family {self.name!r}: {key!r} belongs to {fields[key].modality}, but the {modality} mapper gives it too")
        return result

    @cached_property
    def columns(self) -> tuple[Column, ...]:
        """The family's shard columns; undeclared dtypes and shapes are learned from a blank item."""
        fields: dict[str, Field] = self.cls.fields  # type: ignore[attr-defined]
        learned: dict[str, Array] = {}
        result = []
        for name, entry in fields.items():
            dtype, shape = entry.dtype, entry.shape
            if dtype is None or shape is None:
                if name not in learned:
                    learned.update(self.map_item(entry.modality, self.blank(entry.modality)))
                array = learned[name]
                shape = tuple(array.shape[1:]) if shape is None else shape
                dtype = ("int32" if entry.layout == "item" and array.dtype.kind in "iu" else str(array.dtype)) if dtype is None else dtype
            sizes = entry.sizes if isinstance(entry.sizes, str) else ""
            params = entry.params(self) if callable(entry.params) else dict(entry.params)
            kind: Any = {"item": "items", "flat": "flat"}[entry.layout]
            load: Any = entry.load
            result.append(Column(name=name, modality=entry.modality, kind=kind, dtype=dtype, shape=shape, sizes=sizes, load=load, params=params))
        return tuple(result)

    def blank_image(self, width: int, height: int) -> Any:
        """A black RGB PIL image."""
        from PIL import Image

        return Image.new("RGB", (width, height))

    def blank(self, modality: str) -> Decoded:
        """The smallest decoded item of a modality, to learn shapes from."""
        if modality == "image":
            return Decoded(MediaMeta(kind="image", width=64, height=64), image=self.blank_image(64, 64))
        if modality == "audio":
            return Decoded(MediaMeta(kind="audio", samples=16000), waveform=np.zeros(16000, np.float32))
        meta = MediaMeta(kind="video", width=64, height=64, frames=4, fps=2.0)
        return Decoded(meta, frames=lambda indices: np.zeros((len(indices), 64, 64, 3), np.uint8))


def _default_mapper(ctx: FamilyContext, items: list[Decoded]) -> dict[str, Array]:
    """The checkpoint's own image processor (images only)."""
    from transformers import AutoImageProcessor

    processor = AutoImageProcessor.from_pretrained(ctx.spec.model)
    batch = processor.preprocess([item.image for item in items], return_tensors="pt")
    return {key: value.numpy() for key, value in batch.items()}


def _check_packages(record: FamilyRecord) -> None:
    from importlib.metadata import PackageNotFoundError, version

    from packaging.requirements import Requirement

    for text in record.requires:
        requirement = Requirement(text)
        try:
            found = version(requirement.name)
        except PackageNotFoundError:
            found = None
        if found is None or not requirement.specifier.contains(found, prereleases=True):
            raise MissingPackageError(
                f"family {record.name!r} needs {text} (found: {found or 'not installed'}); run: pip install {text!r}"
            )


__all__ = ["MODALITIES", "FamilyContext", "FamilySpec", "load_families", "resolve", "resolve_family"]
