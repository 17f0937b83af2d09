"""Thread-safe LRU cache with hit counts."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

from twinspire._arguments import as_whole

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class CacheStats:
    """How often a cache was asked, how often it knew, and how much it holds."""

    hits: int
    misses: int
    entries: int

    @property
    def hit_rate(self) -> float | None:
        """Share of lookups that found their key, 0 to 1; None before the first lookup."""
        asked = self.hits + self.misses
        return self.hits / asked if asked else None


class LruCache(Generic[Value]):
    """Keeps the `size` entries that were asked for last. May be used from several threads. 0 keeps none.

    With `weigh`, such as the bytes of a value, it keeps those whose weights add up to at most `size`.
    """

    def __init__(self, size: int, *, weigh: Callable[[Value], int] = lambda _: 1) -> None:
        self._size = as_whole(size, "the size of a cache", minimum=0)
        self._weigh = weigh
        self._weight = 0
        self._entries: OrderedDict[Hashable, Value] = OrderedDict()
        self._lock = threading.Lock()
        self._hits = self._misses = 0

    def get(self, key: Hashable) -> Value | None:
        """Return what is kept under `key`, or None."""
        with self._lock:
            found = self._entries.get(key)
            if found is None:
                self._misses += 1
                return None
            self._hits += 1
            self._entries.move_to_end(key)
            return found

    def put(self, key: Hashable, value: Value) -> None:
        """Keep `value`, and drop what was not asked for the longest."""
        with self._lock:
            if (before := self._entries.pop(key, None)) is not None:
                self._weight -= self._weigh(before)
            self._entries[key] = value
            self._weight += self._weigh(value)
            while self._weight > self._size:
                self._weight -= self._weigh(self._entries.popitem(last=False)[1])

    def stats(self) -> CacheStats:
        """Return the counts since it was made."""
        with self._lock:
            return CacheStats(self._hits, self._misses, len(self._entries))
