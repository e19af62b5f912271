"""Methods that decorators write: a function for each modality, put together as one method of the family's class.

`register_token_counter("image", count)` gives a class the method `count_tokens(modality, meta)` that calls
`count(family, meta)` for images; other modalities go on to the method of the class body, then to the base classes. So
decorators and methods are inherited and overridden by the one rule of Python.
"""

from collections.abc import Callable
from types import MethodType
from typing import Any


class ModalityMethod:
    """A method whose first argument is a modality, written by decorators."""

    def __init__(self, owner: type, name: str) -> None:
        self.owner, self.name = owner, name
        self.functions: dict[str, Callable[..., Any]] = {}
        self.body: Callable[..., Any] | None = owner.__dict__.get(name)

    def __get__(self, family: Any, owner: type | None = None) -> Any:
        """The method of an object, bound to it."""
        return self if family is None else MethodType(self, family)

    def __call__(self, family: Any, modality: str, *arguments: Any) -> Any:
        """Call the function of the modality, else what the class had before, else the base class."""
        if modality in self.functions:
            return self.functions[modality](family, *arguments)
        if self.body is not None:
            return self.body(family, modality, *arguments)
        return getattr(super(self.owner, family), self.name)(modality, *arguments)


def write_method(cls: type, name: str, modality: str, function: Callable[..., Any]) -> None:
    """Let a class answer for a modality with a function of (family, *arguments)."""
    method = cls.__dict__.get(name)
    if not isinstance(method, ModalityMethod):
        method = ModalityMethod(cls, name)
        setattr(cls, name, method)
    method.functions[modality] = function


def defines(cls: type, root: type, name: str, modality: str) -> bool:
    """Whether a class, or a base of it other than `root` and its bases, has a method for a modality.

    A method that nobody decorated is taken to answer for every modality in the family's `limits`.
    """
    for base in cls.__mro__:
        method = base.__dict__.get(name) if base not in root.__mro__ else None
        if isinstance(method, ModalityMethod) and modality not in method.functions:
            method = method.body
        if method is not None:
            return True
    return False
