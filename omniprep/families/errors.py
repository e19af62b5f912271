"""Mistakes in a family, one class each; messages name the family, the modality and the fix.

A mistake that shows before anything is built is a usage error (exit status 2); one that shows while rows are built ends
the build (exit status 1). What is wrong with one row alone is a `Reject`.
"""

from omniprep.errors import OmniprepError, UsageError


class FamilyError(OmniprepError):
    """A family, or a plug-in that registers one, is not right."""

    row: tuple[int, int] | int | None = None
    """The row that showed it: its split and its line in the split, or its number in rows.parquet; the build names its
    input."""

    def within(self, where: str) -> "FamilyError":
        """The same error, with where it happened before it."""
        return type(self)(f"{where}: {self}")


class RegistrationError(FamilyError, UsageError):
    """A mistake that shows before anything is built."""


class DuplicateFamilyError(RegistrationError):
    """Two families (or templates, or architectures) of one name; override=True replaces one on purpose."""


class UnknownFamilyError(RegistrationError):
    """No family of that name, or none for this checkpoint's architecture."""


class MissingRegistrationError(RegistrationError):
    """A modality in `limits` lacks its mapper, counter, maximum, placeholder or fields."""


class BadMaxTokensError(RegistrationError):
    """A registered maximum is not an integer of at least 1."""


class UnknownOptionError(RegistrationError):
    """An option that the family does not have."""


class UnknownModalityError(RegistrationError):
    """A modality other than image, audio and video, or one that the family does not support."""


class UnknownFunctionError(RegistrationError):
    """A "module:function" that a family names and that cannot be imported."""


class PluginImportError(RegistrationError):
    """A plug-in file or entry point that cannot be imported."""


class RegistryFrozenError(RegistrationError):
    """A registration while a build runs."""


class UnknownTokenError(RegistrationError):
    """A placeholder that is not one token of the tokenizer."""


class UnknownTemplateError(RegistrationError):
    """A chat template, agent template or architecture that nobody registered under that name."""


class MissingPackageError(RegistrationError):
    """A package that the family needs is absent or too old."""


class ConflictingKeyError(FamilyError):
    """Two mappers of a family give the same forward argument."""


class UndeclaredFieldError(FamilyError):
    """A mapper gives a key that `fields` does not declare, or leaves out one that it does."""


class TokenCountMismatchError(FamilyError):
    """Counter, expansion and mapper disagree about one item."""


class MaxTokensExceededError(FamilyError):
    """An item has more tokens than the registered maximum, which must be a true upper bound."""


class DummyError(FamilyError):
    """Dummy data that is not what was asked for, or that the family itself cannot encode."""


class CallbackError(FamilyError):
    """A callback gave what it must not give, or let StopIteration out, which would end a loop without a word."""
