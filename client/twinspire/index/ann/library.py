"""FAISS: imported at first use, its threads counted, its GPUs asked for."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from twinspire.errors import InputError, MissingDependencyError, ProviderError


def faiss_library(purpose: str = "searching an index") -> Any:  # noqa: ANN401  FAISS ships no types
    """Return the module. Raises `MissingDependencyError` where it is not installed."""
    try:
        import faiss
    except ModuleNotFoundError as error:
        if error.name != "faiss":
            raise
        raise MissingDependencyError("faiss-cpu", "cpu", purpose) from error
    return faiss


def require_gpu(kind: object) -> Any:  # noqa: ANN401
    """Return the module where it can use a GPU.

    Raises `MissingDependencyError` for a FAISS without GPU support, `ProviderError` where no GPU is seen.
    """
    faiss = faiss_library()
    if not hasattr(faiss, "StandardGpuResources"):
        raise MissingDependencyError("faiss-gpu-cuvs", "gpu", f"an index of kind {kind}")
    if faiss.get_num_gpus() < 1:
        raise ProviderError(
            f"an index of kind {kind} needs an NVIDIA GPU, and FAISS sees none. Build another kind, such as "
            "`twinspire index build INDEX --kind auto`, or check what `nvidia-smi` says"
        )
    return faiss


def checked_threads(threads: int | None) -> int:
    """Return `threads`, or as many as this process has cores. Raises `InputError` for a number below 1."""
    if threads is None:
        return len(os.sched_getaffinity(0))
    if not isinstance(threads, int) or isinstance(threads, bool) or threads < 1:
        raise InputError(f"threads must be a whole number from 1 up, got {threads!r}")
    return threads


@contextmanager
def computing_with(threads: int) -> Iterator[None]:
    """Let what this thread asks of FAISS compute with so many threads. Other threads keep their number."""
    faiss = faiss_library()
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(threads)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)
