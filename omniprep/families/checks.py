"""What is checked of a family: before a build, that all is registered; while it runs, what callbacks give."""

from typing import TYPE_CHECKING, Any

import numpy as np

from omniprep.families.errors import (
    CallbackError,
    ConflictingKeyError,
    MissingPackageError,
    MissingRegistrationError,
    TokenCountMismatchError,
    UndeclaredFieldError,
    UnknownModalityError,
)
from omniprep.families.registry import Array, Expansion, FamilyRecord, Field, Sample, check_modality, registered

if TYPE_CHECKING:
    from omniprep.families.context import FamilyContext

_WHAT = {
    "mapper": "input mapper",
    "counter": "token counter",
    "work": "tower's work",
    "max": "maximum",
    "processor": "input processor",
    "positions": "position function",
    "dummy": "dummy data",
}
_DECORATOR = {"mapper": "input_mapper", "counter": "token_counter", "max": "max_multimodal_tokens"}


def call(ctx: "FamilyContext", key: str, *arguments: Any) -> Any:
    """Call a registered callback with the context and the arguments.

    Raises:
        CallbackError: It let StopIteration out, which a loop around it would take for its end.
    """
    kind, _, modality = key.partition(":")
    try:
        return registered(ctx.cls, key)(ctx, *arguments)
    except StopIteration as error:
        of = f" of {modality}" if modality else ""
        raise CallbackError(
            f"family {ctx.name!r}: the {_WHAT[kind]}{of} raised StopIteration; "
            "it asks an iterator for more items than there are (use next(iterator, None), or zip(..., strict=True))"
        ) from error


def check_packages(record: FamilyRecord) -> None:
    """Raise MissingPackageError where a requirement of the family is absent or too old."""
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


def check_limits(record: FamilyRecord) -> None:
    """Raise where `limits` or `fields` name no modality, or a limit is no count."""
    limits: dict[str, Any] = record.cls.limits  # type: ignore[attr-defined]
    fields: dict[str, Field] = record.cls.fields  # type: ignore[attr-defined]
    for modality, most in limits.items():
        check_modality(modality)
        if most is not None and (isinstance(most, bool) or not isinstance(most, int) or most < 0):
            raise UnknownModalityError(
                f"family {record.name!r}: the limit of {modality} must be None or a count, not {most!r}"
            )
    for name, entry in fields.items():
        if entry.modality not in ("image", "audio", "video"):
            raise UnknownModalityError(
                f"family {record.name!r}: field {name!r} is of modality {entry.modality!r}; known: image, audio, video"
            )


def check_registrations(record: FamilyRecord, modalities: tuple[str, ...]) -> None:
    """Raise MissingRegistrationError where a modality lacks something."""
    cls, name = record.cls, record.name
    for modality in modalities:
        for key, call_name in _DECORATOR.items():
            if registered(cls, f"{key}:{modality}") is None:
                raise MissingRegistrationError(
                    f"family {name!r} supports {modality} but registers no {_WHAT[key]} for it; add "
                    f"@REGISTRY.register_{call_name}({modality!r}, ...)"
                )
        if modality != "image" and registered(cls, f"mapper:{modality}") == "default":
            raise MissingRegistrationError(
                f"family {name!r}: only images have a default mapper; give register_input_mapper({modality!r}, fn) a "
                "function"
            )
        if modality not in cls.placeholders:  # type: ignore[attr-defined]
            raise MissingRegistrationError(
                f"family {name!r} has no placeholder for {modality}; add it to `placeholders`"
            )
        if not any(entry.modality == modality for entry in cls.fields.values()):  # type: ignore[attr-defined]
            raise MissingRegistrationError(
                f"family {name!r} has no field for {modality}; add what its mapper gives to `fields`"
            )


def check_mapped(ctx: "FamilyContext", modality: str, result: Any) -> dict[str, Array]:
    """What a mapper gave for one item, held against the declared fields.

    Raises:
        UndeclaredFieldError, ConflictingKeyError, TokenCountMismatchError: See there.
    """
    who = f"family {ctx.name!r}: the {modality} mapper"
    if not isinstance(result, dict):
        raise CallbackError(f"{who} must give a dict of arrays, not {type(result).__name__}")
    fields: dict[str, Field] = ctx.attribute("fields")
    for key in result:
        if key not in fields:
            raise UndeclaredFieldError(f"{who} gives {key!r}, which `fields` does not declare; declare it there")
        if fields[key].modality != modality:
            raise ConflictingKeyError(
                f"{who} gives {key!r}, which belongs to {fields[key].modality}; name it differently"
            )
    mine = {key: entry for key, entry in fields.items() if entry.modality == modality}
    if missing := mine.keys() - result.keys():
        raise UndeclaredFieldError(
            f"{who} does not give {', '.join(map(repr, sorted(missing)))}, which `fields` declares"
        )
    for key, entry in mine.items():
        if callable(entry.sizes):
            said, held = int(np.sum(entry.sizes(result))), len(result[key])
            if said != held:
                raise TokenCountMismatchError(f"{who} gives {held} units of {key!r}, its `sizes` says {said}")
    return result


def item_spans(ctx: "FamilyContext", sample: Sample, expansions: list[Expansion]) -> list[Expansion]:
    """The expansions of a row, held against the counted items.

    Raises:
        TokenCountMismatchError: With the modality and item.
    """
    who = f"family {ctx.name!r}: the input processor"
    left = {(m, i): item for m, items in sample.items.items() for i, item in enumerate(items) if not item.meta.in_video}
    for expansion in expansions:
        item = left.pop((expansion.modality, expansion.item), None)
        if item is None:
            raise TokenCountMismatchError(
                f"{who} expands {expansion.modality} {expansion.item + 1}, which is not there or was expanded before"
            )
        sound = sample.items["audio"][item.audio].tokens if item.audio is not None else 0
        if len(expansion.ids) != item.tokens + sound:
            raise TokenCountMismatchError(
                f"{who} makes {len(expansion.ids)} tokens of {expansion.modality} {expansion.item + 1}, the token "
                f"counter promised {item.tokens + sound}"
            )
    if left:
        modality, number = next(iter(left))
        raise TokenCountMismatchError(f"{who} gives no expansion for {modality} {number + 1}; give one for each item")
    return expansions
