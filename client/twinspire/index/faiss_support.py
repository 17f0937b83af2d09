"""FAISS: imported at first use, and how many OpenMP threads it computes with."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

from twinspire._dependencies import import_failure

Result = TypeVar("Result")
_PACKAGES = {"faiss-cpu": "cpu", "faiss-gpu-cuvs": "gpu"}


def faiss_library(purpose: str = "searching an index") -> Any:  # noqa: ANN401  FAISS ships no types
    """Return the module.

    Raises `MissingDependencyError` where it is not installed, `BrokenDependencyError` where it cannot be imported.
    """
    try:
        import faiss
    except (ImportError, RuntimeError, OSError) as error:  # its GPU build raises all three for its CUDA libraries
        raise import_failure(error, "faiss", _PACKAGES, purpose) from error
    return faiss


@contextmanager
def computing_with(threads: int) -> Iterator[None]:
    """Let FAISS compute with so many OpenMP threads in what this thread calls; other threads keep their number."""
    faiss = faiss_library()
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(threads)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def computed(work: Callable[[], Result], threads: int) -> Result:
    """Return what `work` gives, with so many OpenMP threads.

    In a forked child the thread that forked may not open a parallel region: libgomp waits for ever for threads that it
    had in the parent (https://gcc.gnu.org/bugzilla/show_bug.cgi?id=58378). There, `work` runs in a new thread.
    """

    def run() -> Result:
        with computing_with(threads):
            return work()

    if threading.get_ident() != _forked.thread:
        return run()
    with ThreadPoolExecutor(1) as executor:
        return executor.submit(run).result()


class _Forked:
    """Remembers, in a forked child, the thread that forked."""

    def __init__(self) -> None:
        self.thread: int | None = None
        os.register_at_fork(after_in_child=self._remember)

    def _remember(self) -> None:
        self.thread = threading.get_ident()


_forked = _Forked()
