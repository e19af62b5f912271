"""Loaders that others register: what makes a forward argument of stored values where the built-in ways do not.

A dataset names a loader; it never brings one. Only what this process has registered itself is called: by a plug-in that
the user gave, by a module that the user's program imported, or by an installed package. The module that a dataset
states beside the name is for the message alone and is never imported, since a dataset may be a stranger's.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from omniprep.errors import OmniprepError
from omniprep.shards.schema import Column

LoaderFunction = Callable[[Any, dict[str, Any]], Any]
"""(values, params of the column) → values. A tensor of stored units (units, *shape) on the device of the model becomes
a tensor with the same first axis; a column whose items differ in shape is given item by item."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Loader:
    """A registered loader."""

    name: str
    function: LoaderFunction
    version: str
    origin: str
    """Who registered it: a plug-in, or the module of the function."""

    @property
    def where(self) -> str:
        """The function as "module:name", which datasets state; a plug-in's module has the hash of its text in it."""
        module = getattr(self.function, "__module__", "") or ""
        return f"{module}:{getattr(self.function, '__qualname__', type(self.function).__name__)}"

    @property
    def facts(self) -> dict[str, str]:
        """What a column's params say of its loader."""
        return {"loader": self.where, "loader_version": self.version}


LOADERS: dict[str, Loader] = {}
"""By name; written by `Registry.register_loader`."""


def column_loader(column: Column) -> Loader:
    """The registered loader of a column.

    Raises:
        OmniprepError: There is none of the name, or it is of another version than the build's.
    """
    name, where = column.load, column.params.get("loader", "")
    loader = LOADERS.get(name)
    if loader is None:
        raise OmniprepError(
            f"column {column.name!r} is loaded by {name!r}, which nothing in this process registers (the build had it "
            f"from {where!r:.120}): give --plugin FILE.py, or import the module that registers it before loading"
        )
    built = column.params.get("loader_version", loader.version)
    if built != loader.version:
        raise OmniprepError(
            f"column {column.name!r} was built for version {built!r:.40} of its loader {name!r}, registered is version "
            f"{loader.version!r}: build the dataset again, or use the version that built it"
        )
    return loader
