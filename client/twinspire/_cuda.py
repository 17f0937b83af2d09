"""NVIDIA's driver, called through ctypes: whether a GPU can be used here, if not why, and memory on it.

GPU builds of onnxruntime and FAISS import on machines without a GPU, and onnxruntime lists its CUDA provider there all
the same: only the driver knows. ctypes needs no CUDA package; cuda-bindings would be 31 MB to ask whether there is a
GPU, and raises an error of its own where there is no driver. The calls are those of
https://docs.nvidia.com/cuda/cuda-driver-api/. `CudaDevice` has never run on a GPU.
"""

from __future__ import annotations

import ctypes
import os
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from twinspire.errors import EngineError, ProviderError

LIBRARY = "libcuda.so.1"
_NO_DEVICE = 100  # CUDA_ERROR_NO_DEVICE
_NAME_BYTES = 256


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
        raise ProviderError(f"the driver reports no device (cuInit: {_describe(library, status)}){_visible_devices()}")
    if status != 0:
        raise ProviderError(f"the driver cannot be used (cuInit: {_describe(library, status)}){_visible_devices()}")
    return library


def device_count() -> int:
    """Return how many GPUs the driver reports, at least 1. Raises ProviderError with the cause where there is none."""
    count = ctypes.c_int()
    try:
        call(load_driver(), "cuDeviceGetCount", ctypes.byref(count))
    except EngineError as error:
        raise ProviderError(f"the driver cannot be used ({error})") from error
    if count.value < 1:
        raise ProviderError(f"the driver reports no device (cuDeviceGetCount: {count.value}){_visible_devices()}")
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
        raise EngineError(f"CUDA's {function} failed with {_describe(library, status)}")


def _describe(library: Any, status: int) -> str:  # noqa: ANN401
    """Return a status code with the driver's own message for it, where it has one."""
    text = ctypes.c_char_p()
    try:
        library.cuGetErrorString(status, ctypes.byref(text))
    except AttributeError:
        return f"status {status}"
    return f"status {status}, {text.value.decode()}" if text.value else f"status {status}"


def _visible_devices() -> str:
    """Return the variable that hides GPUs from a process, where it is set, for a message."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return "" if visible is None else f" with CUDA_VISIBLE_DEVICES={visible!r}"


class CudaDevice:
    """GPU that the calling thread uses while the context is entered, to copy memory and to run TensorRT plans.

    Raises ProviderError where there is no driver or no such GPU, EngineError where a call fails.
    """

    def __init__(self, ordinal: int = 0) -> None:
        self._held: list[ctypes.c_uint64] = []
        self._device = ctypes.c_int()
        try:
            self._library = load_driver()
            self._call("cuDeviceGet", ctypes.byref(self._device), ordinal)
            name = ctypes.create_string_buffer(_NAME_BYTES)
            self._call("cuDeviceGetName", name, _NAME_BYTES, self._device)
        except (EngineError, ProviderError) as error:
            raise ProviderError(
                f"there is no GPU {ordinal} here: {error}. A container sees GPUs with --gpus all"
            ) from error
        self.name = name.value.decode()

    def __enter__(self) -> Self:
        context = ctypes.c_void_p()
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(context), self._device)
        self._call("cuCtxSetCurrent", context)
        return self

    def __exit__(self, *_: object) -> None:
        for pointer in self._held:
            self._library.cuMemFree_v2(pointer)
        self._held.clear()
        self._library.cuDevicePrimaryCtxRelease_v2(self._device)

    def upload(self, array: NDArray[Any]) -> int:
        """Copy an array to the GPU. Return its address there, valid until the context is left."""
        contiguous = np.ascontiguousarray(array)
        address = self.reserve(contiguous.nbytes)
        self._call(
            "cuMemcpyHtoD_v2",
            ctypes.c_uint64(address),
            contiguous.ctypes.data_as(ctypes.c_void_p),
            ctypes.c_size_t(contiguous.nbytes),
        )
        return address

    def reserve(self, size_bytes: int) -> int:
        """Reserve memory on the GPU. Return its address there, valid until the context is left."""
        pointer = ctypes.c_uint64()
        self._call("cuMemAlloc_v2", ctypes.byref(pointer), ctypes.c_size_t(size_bytes))
        self._held.append(pointer)
        return int(pointer.value)

    def download(self, address: int, array: NDArray[Any]) -> None:
        """Wait for the GPU, then copy memory from `address` to `array`, which must be contiguous."""
        self._call("cuCtxSynchronize")
        self._call(
            "cuMemcpyDtoH_v2",
            array.ctypes.data_as(ctypes.c_void_p),
            ctypes.c_uint64(address),
            ctypes.c_size_t(array.nbytes),
        )

    def _call(self, function: str, *arguments: Any) -> None:  # noqa: ANN401 - what ctypes takes
        call(self._library, function, *arguments)
