"""Checks of a family: before a build, that nothing is missing; while one runs, of what its methods return."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

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
from omniprep.families.kinds import Array, Expansion, Field, Sample
from omniprep.modalities import MODALITIES


@contextmanager
def no_stop_iteration(family: str, method: str) -> Iterator[None]:
    """Turn StopIteration, which a loop around the block would take for its end, into a CallbackError."""
    try:
        yield
    except StopIteration as error:
        raise CallbackError(
            f"family {family!r}: the {method} raised StopIteration; "
            "it asks an iterator for more items than there are (use next(iterator, None), or zip(..., strict=True))"
        ) from error


def check_modality(modality: str) -> None:
    """Raise UnknownModalityError for a name that is no modality."""
    if modality not in MODALITIES:
        raise UnknownModalityError(f"modality {modality!r} is not known; known: {', '.join(MODALITIES)}")


def check_packages(family: str, requires: Sequence[str]) -> None:
    """Raise MissingPackageError where a requirement of a family is absent or too old."""
    from importlib.metadata import PackageNotFoundError, version

    from packaging.requirements import Requirement

    for text in requires:
        requirement = Requirement(text)
        try:
            installed = version(requirement.name)
        except PackageNotFoundError:
            installed = None
        if installed is None or not requirement.specifier.contains(installed, prereleases=True):
            raise MissingPackageError(
                f"family {family!r} needs {text} (found: {installed or 'not installed'}); run: pip install {text!r}"
            )


def check_declared(family: str, limits: Mapping[str, Any], fields: Mapping[str, Field]) -> None:
    """Raise UnknownModalityError where `limits` or `fields` name no modality, or a limit is no count."""
    for modality, most in limits.items():
        check_modality(modality)
        if most is not None and (isinstance(most, bool) or not isinstance(most, int) or most < 0):
            raise UnknownModalityError(
                f"family {family!r}: the limit of {modality} must be None or a count, not {most!r}"
            )
    for name, entry in fields.items():
        known = ("text",) if entry.layout == "token" else tuple(MODALITIES)
        if entry.modality not in known:
            raise UnknownModalityError(
                f"family {family!r}: field {name!r} is of modality {entry.modality!r}; known: {', '.join(known)}"
            )


def check_support(
    family: str, modality: str, missing: Mapping[str, str], placeholders: Mapping[str, str], fields: Mapping[str, Field]
) -> None:
    """Raise MissingRegistrationError where a modality that `limits` names lacks something."""
    for decorator, purpose in missing.items():
        raise MissingRegistrationError(
            f"family {family!r} supports {modality} but registers no {purpose} for it; add "
            f"@REGISTRY.{decorator}({modality!r}, ...)"
        )
    if modality not in placeholders:
        raise MissingRegistrationError(f"family {family!r} has no placeholder for {modality}; add it to `placeholders`")
    if not any(entry.modality == modality for entry in fields.values()):
        raise MissingRegistrationError(
            f"family {family!r} has no field for {modality}; add what its mapper gives to `fields`"
        )


def check_mapped(family: str, fields: Mapping[str, Field], modality: str, result: Any) -> dict[str, Array]:
    """What a mapper gave for one item, held against the declared fields."""
    mapper = f"family {family!r}: the {modality} mapper"
    if not isinstance(result, dict):
        raise CallbackError(f"{mapper} must give a dict of arrays, not {type(result).__name__}")
    for key in result:
        if key not in fields:
            raise UndeclaredFieldError(f"{mapper} gives {key!r}, which `fields` does not declare; declare it there")
        if fields[key].modality != modality:
            raise ConflictingKeyError(
                f"{mapper} gives {key!r}, which belongs to {fields[key].modality}; name it differently"
            )
    declared = {key: entry for key, entry in fields.items() if entry.modality == modality}
    if missing := declared.keys() - result.keys():
        raise UndeclaredFieldError(
            f"{mapper} does not give {', '.join(map(repr, sorted(missing)))}, which `fields` declares"
        )
    for key, entry in declared.items():
        if callable(entry.sizes):
            promised, held = int(np.sum(entry.sizes(result))), len(result[key])
            if promised != held:
                raise TokenCountMismatchError(f"{mapper} gives {held} units of {key!r}, its `sizes` says {promised}")
    return result


def check_token_fields(
    family: str, fields: Mapping[str, Field], sample: Sample, result: Mapping[str, Any]
) -> dict[str, Array]:
    """What `token_fields` gave for a row, held against the declared fields and the row's tokens."""
    name = f"family {family!r}: the token fields"
    declared = {key for key, entry in fields.items() if entry.layout == "token"}
    if unknown := result.keys() - declared:
        raise UndeclaredFieldError(
            f"{name} give {sorted(unknown)[0]!r}, which `fields` does not declare with layout 'token'"
        )
    if missing := declared - result.keys():
        raise UndeclaredFieldError(f"{name} do not give {sorted(missing)[0]!r}, which `fields` declares")
    arrays = {key: np.asarray(value) for key, value in result.items()}
    for key, array in arrays.items():
        if array.shape != sample.ids.shape:
            raise TokenCountMismatchError(
                f"{name} give {key!r} of shape {array.shape} for a row of {len(sample.ids)} tokens: one value a token"
            )
    return arrays


def check_expansions(family: str, sample: Sample, expansions: list[Expansion]) -> list[Expansion]:
    """The expansions of a row, held against the counted items; TokenCountMismatchError names the item."""
    fault = f"family {family!r}: the input processor"
    left = {(m, n): item for m, items in sample.items.items() for n, item in enumerate(items) if not item.meta.in_video}
    for expansion in expansions:
        name = f"{expansion.modality} {expansion.item + 1}"
        item = left.pop((expansion.modality, expansion.item), None)
        if item is None:
            raise TokenCountMismatchError(f"{fault} expands {name}, which is not there or was expanded before")
        sound = sample.items["audio"][item.audio].tokens if item.audio is not None else 0
        if len(expansion.ids) != item.tokens + sound:
            raise TokenCountMismatchError(
                f"{fault} makes {len(expansion.ids)} tokens of {name}, the token counter promised {item.tokens + sound}"
            )
    if left:
        modality, number = next(iter(left))
        raise TokenCountMismatchError(f"{fault} gives no expansion for {modality} {number + 1}; give one for each item")
    return expansions
