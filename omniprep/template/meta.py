"""The fixed texts of a chat template, as omniprep's families write them and as ms-swift's custom model guide does."""

import re
from collections.abc import Callable, Iterable
from copy import copy
from dataclasses import dataclass, field, fields
from typing import Any, cast

from omniprep.errors import UsageError
from omniprep.template.agent import FORMATS

_UNSET = cast(Any, object())
"""A field that was not given, since an empty text or None are values."""
_CHATML: dict[str, Any] = {
    "prompt": ("<|im_start|>user\n{{QUERY}}<|im_end|>\n<|im_start|>assistant\n",),
    "chat_sep": ("<|im_end|>\n",),
    "suffix": ("<|im_end|>",),
    "system_prefix": ("<|im_start|>system\n{{SYSTEM}}<|im_end|>\n",),
    "stop_words": ("<|endoftext|>", "<|im_end|>"),
    "agent_template": "hermes",
}
"""What a template without a `template_type` has where it says nothing."""
_MS_SWIFT: dict[str, Any] = {
    "suffix": (["eos_token_id"],),
    "system_prefix": None,
    "stop_words": (),
    "agent_template": "react_en",
}
"""What one with a `template_type` has (ms-swift 3.9.3 template_meta.py)."""
_TOKEN = re.compile(r"\{\{TOKEN (\w+)\}\}")
_TEXTS = ("prefix", "prompt", "chat_sep", "suffix", "system_prefix", "stop_words")


@dataclass(frozen=True, slots=True)
class TemplateMeta:
    """The fixed texts of a chat template (ms-swift: TemplateMeta).

    `{{SYSTEM}}` and `{{QUERY}}` stand for the row's texts. `suffix` ends the last answer and is trained. `norm_bbox` is
    the unit of boxes (none: pixels of the resized image; norm1000), `bbox_format` how they are written unless the build
    sets it (legacy: between `box_tokens`, names between `reference_tokens`; new: plain), `agent_template` how tools and
    their calls are written. Without `keeps_thoughts`, where only the last answer is trained or generated, earlier
    answers lose all text up to `</think>` and the white space around the rest (ms-swift: ThinkingTemplate).

    With a `template_type` it is one of ms-swift's guide: that is its name in the registry, `prompt` and `chat_sep` must
    be given, the other fields have ms-swift's defaults instead of those of ChatML, and `["eos_token_id"]` among the
    texts is that token of the checkpoint. The last three fields are the guide's, and refused unless empty.
    """

    template_type: str = ""
    prefix: tuple[str, ...] = ()
    prompt: tuple[str, ...] = _UNSET
    chat_sep: tuple[str, ...] | None = _UNSET
    suffix: tuple[str, ...] = _UNSET
    system_prefix: tuple[str, ...] = field(default=_UNSET, kw_only=True)
    default_system: str | None = field(default=None, kw_only=True)
    stop_words: tuple[str, ...] = field(default=_UNSET, kw_only=True)
    norm_bbox: str = field(default="none", kw_only=True)
    agent_template: str = field(default=_UNSET, kw_only=True)
    bbox_format: str = field(default="legacy", kw_only=True)
    box_tokens: tuple[str, str] = field(default=("<|box_start|>", "<|box_end|>"), kw_only=True)
    reference_tokens: tuple[str, str] = field(default=("<|object_ref_start|>", "<|object_ref_end|>"), kw_only=True)
    keeps_thoughts: bool = field(default=True, kw_only=True)
    template_cls: Any = field(default=None, kw_only=True)
    response_prefix: str = field(default="", kw_only=True)
    auto_add_bos: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        """Fill in what was not given; raise a UsageError for what cannot be written."""
        given = {one.name: getattr(self, one.name) for one in fields(self)}
        self._refuse(given)
        values = {**given, **{name: value for name, value in self._defaults.items() if given[name] is _UNSET}}
        for name in _TEXTS:
            if values[name] is not None:
                values[name] = tuple(map(_text_of, self._listed(name, values[name])))
        if self.template_type:
            values = _with_system(self.template_type, values)
            # Generation ends at the last text of the suffix and at eos, whatever the template lists.
            values["stop_words"] = tuple(
                dict.fromkeys((*values["stop_words"], *values["suffix"][-1:], _text_of(["eos_token_id"])))
            )
        for name, value in values.items():
            object.__setattr__(self, name, value)
        known = {
            "agent_template": (self.agent_template, FORMATS),
            "norm_bbox": (self.norm_bbox, ("none", "norm1000")),
            "bbox_format": (self.bbox_format, ("legacy", "new")),
        }
        for name, (value, choices) in known.items():
            if value not in choices:
                raise UsageError(f"TemplateMeta: {name} {value!r} is not known; known: {', '.join(choices)}")

    @property
    def _defaults(self) -> dict[str, Any]:
        return _MS_SWIFT if self.template_type else _CHATML

    def _refuse(self, given: dict[str, Any]) -> None:
        where = f"TemplateMeta {self.template_type!r}" if self.template_type else "TemplateMeta"
        for name in ("prompt", "chat_sep"):
            if given[name] is _UNSET and name not in self._defaults:
                raise UsageError(f"{where}: {name} is missing; a template with a template_type must give it")
        instead = {
            "template_cls": "what items become is said by the family below @register_model(...)",
            "response_prefix": "write it with @REGISTRY.register_renderer",
            "auto_add_bos": 'write ["bos_token_id"] as the first text of prefix and system_prefix',
        }
        for name, way in instead.items():
            if given[name]:
                raise UsageError(f"{where}: {name} has no meaning here; {way} (docs/registration-guides.md)")

    def _listed(self, name: str, value: Any) -> Iterable[Any]:
        if isinstance(value, list | tuple):
            return value
        raise UsageError(f"TemplateMeta: {name} must be a list of texts, not {value!r}; write [{value!r}]")

    def of_checkpoint(self, text_of: Callable[[str], str]) -> "TemplateMeta":
        """The template with the texts of the checkpoint's own tokens.

        Args:
            text_of: Name of a token ("eos_token_id"), or its id as digits → its text.
        """
        changed = {
            name: tuple(_TOKEN.sub(lambda match: text_of(match[1]), text) for text in texts)
            for name in _TEXTS
            if (texts := getattr(self, name)) and any(_TOKEN.search(text) for text in texts)
        }
        result = copy(self)
        for name, texts in changed.items():
            object.__setattr__(result, name, texts)
        return result if changed else self


def _text_of(part: Any) -> str:
    """A text as it is; a list of tokens, by name or id, as a mark that `of_checkpoint` replaces."""
    if isinstance(part, str):
        return part
    if isinstance(part, list | tuple) and part and all(isinstance(token, str | int) for token in part):
        return "".join(f"{{{{TOKEN {token}}}}}" for token in part)
    raise UsageError(f'TemplateMeta: {part!r} is neither a text nor a list of tokens such as ["eos_token_id"]')


def _with_system(name: str, values: dict[str, Any]) -> dict[str, Any]:
    """A prefix with `{{SYSTEM}}` is that of rows with a system text; without that, rows with one are rejected."""
    if any("{{SYSTEM}}" in text for text in values["prompt"]):
        raise UsageError(
            f"TemplateMeta {name!r}: {{{{SYSTEM}}}} in prompt is not supported; write the text of a row with "
            "@REGISTRY.register_renderer (docs/registration-guides.md)"
        )
    values = dict(values)
    if any("{{SYSTEM}}" in text for text in values["prefix"]):
        if values["system_prefix"]:
            raise UsageError(f"TemplateMeta {name!r}: both prefix and system_prefix have a place for {{{{SYSTEM}}}}")
        values["system_prefix"] = values["prefix"]
        values["prefix"] = tuple(text.replace("{{SYSTEM}}", "") for text in values["prefix"])
    values["system_prefix"] = values["system_prefix"] or ()
    if values["default_system"] is not None and not values["system_prefix"]:
        raise UsageError(f"TemplateMeta {name!r}: default_system is given, but no text has a place for {{{{SYSTEM}}}}")
    return values
