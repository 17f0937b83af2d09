"""What a FAISS index is built with: threads, and GPUs where a kind needs one."""

from __future__ import annotations

import os
from typing import Any

from twinspire._cuda import unavailable_reason
from twinspire.errors import InputError, MissingDependencyError, ProviderError
from twinspire.index.faiss_support import computing_with, faiss_library

__all__ = ["checked_threads", "computing_with", "faiss_library", "require_gpu"]


def require_gpu(kind: object) -> Any:  # noqa: ANN401
    """Return the module where it can use a GPU.

    Raises `MissingDependencyError` for a FAISS without GPU support, `ProviderError` with the cause where there is none.
    """
    faiss = faiss_library()
    if not hasattr(faiss, "StandardGpuResources"):
        raise MissingDependencyError("faiss-gpu-cuvs", "gpu", f"an index of kind {kind}")
    cause = unavailable_reason()
    if cause is None and faiss.get_num_gpus() < 1:
        cause = "FAISS sees none, though the driver reports one: it may be older than FAISS's CUDA needs"
    if cause is not None:
        raise ProviderError(
            f"an index of kind {kind} needs an NVIDIA GPU: {cause}. Build another kind, such as "
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
