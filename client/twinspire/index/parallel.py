"""Threads for the work of a search, instead of OpenMP's.

FAISS's OpenMP threads (libgomp) spin at the end of each parallel region until the slowest arrives, which is very slow
if other processes use the cores, and a forked child waits for ever for the threads of its parent. So a search calls
FAISS with one OpenMP thread and distributes the work itself: FAISS releases the GIL in every call, the calling thread
works too, and each thread takes the next task when it is free.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TypeVar

from twinspire._cores import usable_cores
from twinspire.index.faiss_support import computing_with, faiss_library

Task = TypeVar("Task")
Result = TypeVar("Result")


def search_threads() -> int:
    """Return the number of threads of a search: OpenMP's number in this thread, at most one a core.

    So `OMP_NUM_THREADS` and `faiss.omp_set_num_threads` have their effect.
    """
    return max(1, min(int(faiss_library().omp_get_max_threads()), usable_cores()))


def shared(tasks: Iterable[Task], work: Callable[[Iterator[Task]], Result], threads: int) -> list[Result]:
    """Call `work` in this thread and in up to `threads` - 1 others at once, and return the results of the calls.

    All get the same iterator, which gives each task to one of them, and have one OpenMP thread. Raises the first error
    when all have ended.
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
    """An iterator that several threads may share."""

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
    """A thread pool that is made at first use, and again in a forked child, where threads do not survive."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._executor: ThreadPoolExecutor | None = None
        os.register_at_fork(after_in_child=self._renew)

    def _renew(self) -> None:
        self._lock = threading.Lock()  # another thread of the parent may have held it
        self._executor = None

    def submit(self, work: Callable[[], Result]) -> Future[Result] | None:
        """Let a thread call `work`; return None if the interpreter shuts down and starts no more threads."""
        with self._lock:
            if self._executor is None:
                self._executor = ThreadPoolExecutor(usable_cores(), "twinspire-search")
            try:
                return self._executor.submit(work)
            except RuntimeError:
                return None


_pool = _Pool()
