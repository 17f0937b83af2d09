"""FAISS: imported at first use, the GPU that it may use, and threads that share the work of a search.

FAISS's OpenMP threads (libgomp) spin at the end of each parallel region until the slowest arrives, which collapses
where other processes want the cores, and a forked child waits for ever for those that its parent had. So a search
calls FAISS with one OpenMP thread and shares the work itself: FAISS releases the GIL in every call, the calling thread
works too, and whichever thread is free takes the next task.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from twinspire._cores import usable_cores
from twinspire._cuda import unavailable_reason
from twinspire._dependencies import import_failure
from twinspire.errors import MissingDependencyError, ProviderError

Task = TypeVar("Task")
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


def gpu_faiss_library(family: str) -> Any:  # noqa: ANN401
    """Return the module where it can use a GPU, for indexes of `family`.

    Raises `MissingDependencyError` for a FAISS without GPU support, `ProviderError` with the cause where there is none.
    """
    faiss = faiss_library()
    if not hasattr(faiss, "StandardGpuResources"):
        raise MissingDependencyError("faiss-gpu-cuvs", "gpu", f"a {family} index")
    cause = unavailable_reason()
    if cause is None and faiss.get_num_gpus() < 1:
        cause = "FAISS sees no GPU, though the driver reports one: the driver may be older than FAISS's CUDA needs"
    if cause is not None:
        raise ProviderError(
            f"a {family} index needs an NVIDIA GPU: {cause}. Build an index for processors, such as "
            "`twinspire index build INDEX --spec auto`, or check what `nvidia-smi` says"
        )
    return faiss


def linear_transform(matrix: NDArray[Any]) -> Any:  # noqa: ANN401
    """Return FAISS's transformation by `matrix` (to, from)."""
    faiss = faiss_library()
    linear = faiss.LinearTransform(matrix.shape[1], matrix.shape[0], False)
    faiss.copy_array_to_vector(np.ascontiguousarray(matrix, dtype=np.float32).ravel(), linear.A)
    linear.is_trained = True
    return linear


@contextmanager
def openmp_threads(threads: int) -> Iterator[None]:
    """Let FAISS use `threads` OpenMP threads in what this thread calls; other threads keep their number."""
    faiss = faiss_library()
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(threads)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def run_with_openmp(work: Callable[[], Result], threads: int) -> Result:
    """Return what `work` returns, run with `threads` OpenMP threads.

    In a forked child the thread that forked may not open a parallel region: libgomp waits for ever for threads that it
    had in the parent (https://gcc.gnu.org/bugzilla/show_bug.cgi?id=58378). There, `work` runs in a new thread.
    """

    def run() -> Result:
        with openmp_threads(threads):
            return work()

    if threading.get_ident() != _process.forking_thread:
        return run()
    with ThreadPoolExecutor(1) as executor:
        return executor.submit(run).result()


def search_threads() -> int:
    """Return how many threads a search may use: as many as OpenMP would in this thread, at most one per core.

    So `OMP_NUM_THREADS` and `faiss.omp_set_num_threads` are obeyed.
    """
    return max(1, min(int(faiss_library().omp_get_max_threads()), usable_cores()))


def share_tasks(tasks: Iterable[Task], work: Callable[[Iterator[Task]], Result], threads: int) -> list[Result]:
    """Call `work` in this thread and in up to `threads` - 1 others at once, and return what each call returned.

    All get the same iterator, which gives every task to one of them, and have one OpenMP thread. Raises the first
    error when all have ended.
    """
    remaining = _SharedIterator(tasks)

    def run() -> Result:
        with openmp_threads(1):
            return work(remaining)

    submitted = [_process.submit(run) for _ in range(threads - 1)]
    try:
        results = [run()]
    finally:
        remaining.stop()
        helpers = [helper for helper in submitted if helper is not None and not helper.cancel()]
        wait(helpers)
    return results + [helper.result() for helper in helpers]


class _SharedIterator(Iterator[Task]):
    """Iterator for several threads at once."""

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


class _Process:
    """Thread pool of this process, started at first use, and in a forked child the thread that forked.

    Threads do not survive a fork, so a child starts its own pool.
    """

    def __init__(self) -> None:
        self.forking_thread: int | None = None
        self._lock = threading.Lock()
        self._executor: ThreadPoolExecutor | None = None
        os.register_at_fork(after_in_child=self._reset)

    def _reset(self) -> None:
        self.forking_thread = threading.get_ident()
        self._lock = threading.Lock()  # another thread of the parent may have held it
        self._executor = None

    def submit(self, work: Callable[[], Result]) -> Future[Result] | None:
        """Let a thread call `work`; return None where the interpreter shuts down and starts no more threads."""
        with self._lock:
            if self._executor is None:
                self._executor = ThreadPoolExecutor(usable_cores(), "twinspire-search")
            try:
                return self._executor.submit(work)
            except RuntimeError:
                return None


_process = _Process()
