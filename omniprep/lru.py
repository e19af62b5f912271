"""A cache bounded by what its values take: the values used least recently go first."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class BoundedCache(Generic[K, V]):
    """Not safe for threads; the newest value stays even where it alone exceeds the limit.

    `size_of` a value is 1 by default, so that `limit` counts values; one above `largest` is not kept at all.
    """

    def __init__(self, limit: int, size_of: Callable[[V], int] = lambda value: 1, largest: int | None = None) -> None:
        self._limit, self._size_of, self._largest, self._size = limit, size_of, largest, 0
        self._values: OrderedDict[K, V] = OrderedDict()

    def get(self, key: K) -> V | None:
        """The value of a key, or None."""
        if key in self._values:
            self._values.move_to_end(key)
        return self._values.get(key)

    def replace(self, key: K, value: V) -> V:
        """Keep a value under a key, in place of the one that it has, and return it."""
        if key in self._values:
            self._size -= self._size_of(self._values.pop(key))
        return self.put(key, value)

    def clear(self) -> None:
        """Drop all values."""
        self._values.clear()
        self._size = 0

    def put(self, key: K, value: V) -> V:
        """Keep a value under a key that has none, and return it."""
        size = self._size_of(value)
        if self._largest is None or size <= self._largest:
            self._values[key] = value
            self._size += size
            while self._size > self._limit and len(self._values) > 1:
                self._size -= self._size_of(self._values.popitem(last=False)[1])
        return value
