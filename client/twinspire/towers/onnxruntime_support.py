"""onnxruntime: imported at first use, with its log and its telemetry off; and what its CUDA provider needs."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import io
import re
from pathlib import Path
from typing import Any

from twinspire import _cuda
from twinspire._dependencies import import_failure
from twinspire.errors import install_command

ONLY_FATAL = 4
"""onnxruntime's log level for fatal errors only: the others are raised as exceptions, and would appear twice."""
CUDA_PROVIDER = "CUDAExecutionProvider"
INSTALL_GPU = f"{install_command('gpu')}, in a checkout of twinspire"

_PACKAGES = {"onnxruntime": "cpu", "onnxruntime-gpu": "gpu"}
# What CUDA's libraries say, in a message that also names onnxruntime's sources, their lines and the machine.
_CUDA_FAILURE = re.compile(r"(?:CUDA|CUDNN|CUBLAS|CURAND|CUFFT)\w* failure -?\d+: [^;]*[^;\s]")


def onnxruntime_library(purpose: str = "Running engines in this process") -> Any:  # noqa: ANN401  ships no types
    """Return the module.

    Raises `MissingDependencyError` where it is not installed, `BrokenDependencyError` where it cannot be imported.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise import_failure(error, "onnxruntime", _PACKAGES, purpose) from error
    _silence()
    return onnxruntime


@functools.cache  # once: whoever turns the log up afterwards, to look for a fault, keeps it so
def _silence() -> None:
    """Disable the log of what belongs to no session, and the telemetry.

    Without a GPU each session that is asked for CUDA logs "Failed to load library libonnxruntime_providers_cuda.so".
    """
    import onnxruntime

    onnxruntime.set_default_logger_severity(ONLY_FATAL)
    onnxruntime.disable_telemetry_events()


def cuda_unavailable_reason() -> str | None:
    """Return why CUDA is unavailable, as the end of "the provider cuda ..."; None where it is available."""
    onnxruntime = onnxruntime_library()
    if CUDA_PROVIDER not in onnxruntime.get_available_providers():
        return (
            f"is not in this onnxruntime, {onnxruntime.__version__}: it comes with the extra gpu, in an environment "
            f"without the extra cpu: {INSTALL_GPU}"
        )
    cause = _cuda.unavailable_reason()
    return None if cause is None else f"has no GPU here: {cause}"


def load_cuda_libraries() -> None:
    """Load CUDA's and cuDNN's libraries from their packages, where these are installed."""
    with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does not find
        onnxruntime_library().preload_dlls()


def cuda_library_error() -> str:
    """Return why the CUDA provider's library cannot be loaded, which onnxruntime writes to its log alone."""
    library = Path(onnxruntime_library().__file__).parent / "capi" / "libonnxruntime_providers_cuda.so"
    try:
        ctypes.CDLL(str(library))
    except OSError as error:
        return f"{error}. CUDA's and cuDNN's libraries come with the extra gpu: {INSTALL_GPU}"
    return "its libraries are missing"


def failure_cause(error: Exception) -> str:
    """Return CUDA's own words in an exception of onnxruntime, or else its whole message, on one line."""
    message = " ".join(str(error).split())
    failure = _CUDA_FAILURE.search(message)
    return message if failure is None else failure[0]
