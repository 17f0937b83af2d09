"""Processors that this process may use, and checked numbers of threads."""

from __future__ import annotations

import os

from twinspire._arguments import as_whole


def usable_cores() -> int:
    """Return how many processors this process may run on: its affinity mask, which containers set too."""
    return len(os.sched_getaffinity(0))


def thread_count(threads: int | None) -> int:
    """Return `threads`, or one a usable processor for None. Raises InputError for what is no whole number from 1 up."""
    return usable_cores() if threads is None else as_whole(threads, "threads", minimum=1)
