"""Threads that share the work of a search, in place of OpenMP's.

FAISS's OpenMP threads (libgomp) spin at the end of each parallel region until the slowest arrives, which collapses
where other processes want the cores, and a forked child waits for ever for those that its parent had. So a search
calls FAISS with one OpenMP thread and shares the work itself: FAISS releases the GIL in every call, the calling thread
works too, and whoever is free takes the next task.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TypeVar

from twinspire.index.faiss_support import computing_with, faiss_library

Task = TypeVar("Task")
Result = TypeVar("Result")


def search_threads() -> int:
    """Return how many threads a search may use: as many as OpenMP would take in this thread, at most one a core.

    So `OMP_NUM_THREADS` and `faiss.omp_set_num_threads` are obeyed.
    """
    return max(1, min(int(faiss_library().omp_get_max_threads()), len(os.sched_getaffinity(0))))


def shared(tasks: Iterable[Task], work: Callable[[Iterator[Task]], Result], threads: int) -> list[Result]:
    """Call `work` in this thread and in up to `threads` - 1 others at once, and return what each call gave.

    Each gets the same iterator, which gives every task to one of them, and has one OpenMP thread. Raises the first
    error when all have ended.
    """
    remaining = _Remaining(tasks)

    def exclusive() -> Result:
        with computing_with(1):
            return work(remaining)

    submitted = [_pool.submit(exclusive) for _ in range(threads - 1)]
    try:
        results = [exclusive()]
    finally:
        remaining.stop()
        helpers = [helper for helper in submitted if helper is not None and not helper.cancel()]
        wait(helpers)
    return results + [helper.result() for helper in helpers]


class _Remaining(Iterator[Task]):
    """An iterator for several threads at once."""

    def __init__(self, tasks: Iterable[Task]) -> None:
        self._tasks = iter(tasks)
        self._lock = threading.Lock()
        self._stopped = False

    def __next__(self) -> Task:
        with self._lock:
            if self._stopped:
                raise StopIteration
            return next(self._tasks)

    def stop(self) -> None:
        """Give no more tasks."""
        self._stopped = True


class _Pool:
    """A thread pool that is made at first use and, since threads do not survive a fork, once more in a child."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._executor: ThreadPoolExecutor | None = None
        os.register_at_fork(after_in_child=self._renew)

    def _renew(self) -> None:
        self._lock = threading.Lock()  # another thread of the parent may have held it
        self._executor = None

    def submit(self, work: Callable[[], Result]) -> Future[Result] | None:
        """Let a thread call `work`; None where the interpreter shuts down and starts no more threads."""
        with self._lock:
            if self._executor is None:
                self._executor = ThreadPoolExecutor(len(os.sched_getaffinity(0)), "twinspire-search")
            try:
                return self._executor.submit(work)
            except RuntimeError:
                return None


_pool = _Pool()
