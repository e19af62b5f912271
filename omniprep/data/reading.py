"""What reader processes raise, as the user sees it."""

from collections.abc import Iterable, Iterator
from typing import TypeVar

from omniprep.errors import OmniprepError

Item = TypeVar("Item")


def one_line_errors(source: Iterable[Item]) -> Iterator[Item]:
    """`source`, whose errors of ours lose the traceback that a DataLoader puts around those of its processes."""
    iterator = iter(source)
    while True:
        try:
            item = next(iterator)
        except StopIteration:
            return
        except OmniprepError as error:
            kind = type(error)
            name = f"{kind.__module__}.{kind.__qualname__}: "  # begins the last line of a traceback
            raise kind(str(error).strip().splitlines()[-1].removeprefix(name)) from error
        yield item
