"""Freed memory goes back to the system: what loading an engine needed for a moment would stay with the process."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any


def return_freed_memory() -> None:
    """Return the memory that was freed to the system. Does nothing where the C library is not glibc."""
    trim = _trim()
    if trim is not None:
        trim(0)


@cache
def _trim() -> Any:  # noqa: ANN401 - a ctypes function
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError):  # musl has no such function
        return None
