"""Processors that this process may use, and checked numbers of threads."""

from __future__ import annotations

import os

from twinspire._arguments import as_whole


def usable_cores() -> int:
    """Return how many processors this process may run on: its affinity mask, which containers set as well."""
    return len(os.sched_getaffinity(0))


def thread_count(threads: int | None) -> int:
    """Return `threads`, or one per usable processor if None. Raises InputError unless a whole number from 1 up."""
    return usable_cores() if threads is None else as_whole(threads, "threads", minimum=1)
