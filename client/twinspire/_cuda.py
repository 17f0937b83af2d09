"""NVIDIA's driver, asked through ctypes: whether a GPU can be used here, and if not, why.

GPU builds of onnxruntime and FAISS import on machines without a GPU, and onnxruntime lists its CUDA provider there all
the same: only the driver knows. No CUDA package is needed to ask it. The calls are those of
https://docs.nvidia.com/cuda/cuda-driver-api/.
"""

from __future__ import annotations

import ctypes
import os
from typing import Any

from twinspire.errors import EngineError, ProviderError

LIBRARY = "libcuda.so.1"
_NO_DEVICE = 100  # CUDA_ERROR_NO_DEVICE


def load_driver() -> Any:  # noqa: ANN401 - a ctypes library
    """Load the driver's library, initialise it and return it, for `call`.

    A process that forks afterwards cannot use the driver in its children. Raises ProviderError with the cause where
    there is no driver, it cannot be initialised, or it has no device.
    """
    try:
        library = ctypes.CDLL(LIBRARY)
        status = library.cuInit(0)
    except OSError as error:
        raise ProviderError(f"no NVIDIA driver ({error})") from error
    except AttributeError as error:
        raise ProviderError(f"no NVIDIA driver ({LIBRARY} is another library: {error})") from error
    if status == _NO_DEVICE:
        raise ProviderError(f"the driver reports no device (cuInit: {_described(library, status)}){_hidden()}")
    if status != 0:
        raise ProviderError(f"the driver cannot be used (cuInit: {_described(library, status)}){_hidden()}")
    return library


def device_count() -> int:
    """Return how many GPUs the driver reports, at least 1. Raises ProviderError with the cause where there is none."""
    count = ctypes.c_int()
    try:
        call(load_driver(), "cuDeviceGetCount", ctypes.byref(count))
    except EngineError as error:
        raise ProviderError(f"the driver cannot be used ({error})") from error
    if count.value < 1:
        raise ProviderError(f"the driver reports no device (cuDeviceGetCount: {count.value}){_hidden()}")
    return count.value


def unavailable_reason() -> str | None:
    """Return why no GPU can be used here, None where the driver reports at least one."""
    try:
        device_count()
    except ProviderError as error:
        return str(error)
    return None


def call(library: Any, function: str, *arguments: Any) -> None:  # noqa: ANN401 - what ctypes takes
    """Call a function of the driver. Raises EngineError with its name and status where it fails."""
    try:
        status = getattr(library, function)(*arguments)
    except AttributeError as error:
        raise EngineError(f"{LIBRARY} has no function {function}: the driver is too old") from error
    if status != 0:
        raise EngineError(f"CUDA's {function} failed with {_described(library, status)}")


def _described(library: Any, status: int) -> str:  # noqa: ANN401
    """Return a status code with the driver's own words for it, where it has any."""
    text = ctypes.c_char_p()
    try:
        library.cuGetErrorString(status, ctypes.byref(text))
    except AttributeError:
        return f"status {status}"
    return f"status {status}, {text.value.decode()}" if text.value else f"status {status}"


def _hidden() -> str:
    """Name the variable that hides GPUs from a process, where it is set."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return "" if visible is None else f" with CUDA_VISIBLE_DEVICES={visible!r}"
