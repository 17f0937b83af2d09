"""onnxruntime's CUDA provider: what it needs beside onnxruntime, and why it fails."""

from __future__ import annotations

import contextlib
import ctypes
import io
import re
from pathlib import Path

from twinspire import _cuda
from twinspire.errors import install_command
from twinspire.towers.onnxruntime_support import onnxruntime_library

NAME = "CUDAExecutionProvider"
INSTALL = f"{install_command('gpu')}, in a checkout of twinspire"
# What CUDA's libraries say, in a message that also names onnxruntime's sources, their lines and the machine.
_FAILURE = re.compile(r"(?:CUDA|CUDNN|CUBLAS|CURAND|CUFFT)\w* failure -?\d+: [^;]*[^;\s]")


def cuda_problem() -> str | None:
    """Say why the provider is not there, as the end of a sentence that begins with it; None where it is."""
    onnxruntime = onnxruntime_library()
    if NAME not in onnxruntime.get_available_providers():
        return (
            f"is not in this onnxruntime, {onnxruntime.__version__}: it comes with the extra gpu, in an environment "
            f"without the extra cpu: {INSTALL}"
        )
    cause = _cuda.unavailable_reason()
    return None if cause is None else f"has no GPU here: {cause}"


def load_libraries() -> None:
    """Load CUDA's and cuDNN's libraries from their packages, where these are installed."""
    with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does not find
        onnxruntime_library().preload_dlls()


def library_problem() -> str:
    """Say why the provider's library does not load, which onnxruntime writes to its log alone."""
    library = Path(onnxruntime_library().__file__).parent / "capi" / "libonnxruntime_providers_cuda.so"
    try:
        ctypes.CDLL(str(library))
    except OSError as error:
        return f"{error}. CUDA's and cuDNN's libraries come with the extra gpu: {INSTALL}"
    return "its libraries are missing"


def failure_cause(error: Exception) -> str:
    """Return what an exception of onnxruntime says of CUDA, or else all that it says, on one line."""
    message = " ".join(str(error).split())
    failure = _FAILURE.search(message)
    return message if failure is None else failure[0]
