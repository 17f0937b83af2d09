"""Suppression of Pillow's warnings about unusual files, in one thread only."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

_lock = threading.Lock()
_decoding = threading.local()


class _PillowWhileDecoding:
    """A warning filter's module pattern that matches Pillow's modules while this thread decodes."""

    def match(self, module: str) -> bool:
        return getattr(_decoding, "depth", 0) > 0 and module.partition(".")[0] == "PIL"


_FILTER = ("ignore", None, Warning, _PillowWhileDecoding(), 0)


@contextmanager
def quiet_pillow() -> Iterator[None]:
    """Ignore the warnings of Pillow's own modules in this thread.

    `warnings.catch_warnings` replaces the process's filters and restores them, which two threads can do in the
    wrong order (https://docs.python.org/3.11/library/warnings.html#available-context-managers). Here one
    filter is inserted first and stays: outside of this block, and in every other thread, it matches nothing.
    Every block inserts it again, since others may have changed the filters in between.
    """
    _put_in_front()
    _decoding.depth = getattr(_decoding, "depth", 0) + 1
    try:
        yield
    finally:
        _decoding.depth -= 1


def _put_in_front() -> None:
    filters = cast(list[Any], warnings.filters)
    with _lock:
        if filters and filters[0] is _FILTER:
            return
        filters.insert(0, _FILTER)  # before the older one goes, so that it is never missing
        for index in range(len(filters) - 1, 0, -1):
            if filters[index] is _FILTER:
                del filters[index]
