"""What can be wrong with a family, each named after the mistake; messages give family, modality and the fix."""

from omniprep.errors import OmniprepError


class FamilyError(OmniprepError):
    """A family, or a plug-in that registers one, is not right; nothing is built."""


class DuplicateFamilyError(FamilyError):
    """Two families of one name (pass override=True to replace one on purpose)."""


class UnknownFamilyError(FamilyError):
    """No family of that name, or none for this checkpoint's architecture."""


class MissingRegistrationError(FamilyError):
    """A modality in `limits` lacks its mapper, counter, maximum or placeholder."""


class BadMaxTokensError(FamilyError):
    """A registered maximum is not an integer of at least 1."""


class UnknownOptionError(FamilyError):
    """An option that the family does not have."""


class UnknownModalityError(FamilyError):
    """A modality other than image, audio and video."""


class PluginImportError(FamilyError):
    """A plug-in file that cannot be imported."""


class RegistryFrozenError(FamilyError):
    """A registration after a build has started."""


class UnknownTokenError(FamilyError):
    """A placeholder that is not one token of the tokenizer."""


class MissingPackageError(FamilyError):
    """A package that the family needs is absent or too old."""


class ConflictingKeyError(FamilyError):
    """Two mappers of a family give the same forward argument."""


class UndeclaredFieldError(FamilyError):
    """A mapper gives a key that `fields` does not declare."""


class TokenCountMismatchError(FamilyError):
    """Counter, expansion and mapper disagree about one item."""


class MaxTokensExceededError(FamilyError):
    """An item has more tokens than the registered maximum, which must be a true upper bound."""


class DummyError(FamilyError):
    """Dummy data that the family itself cannot encode."""
