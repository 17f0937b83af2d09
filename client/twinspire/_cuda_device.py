"""A GPU through the driver's own library, to copy memory and to run TensorRT plans: no package is needed beside it.

Never run on a GPU; the calls are those of https://docs.nvidia.com/cuda/cuda-driver-api/.
"""

from __future__ import annotations

import ctypes
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from twinspire import _cuda
from twinspire.errors import EngineError, ProviderError

_NAME_BYTES = 256


class CudaDevice:
    """One GPU, used by the calling thread while the context is entered.

    Raises ProviderError where there is no driver or no such GPU, EngineError where a call fails.
    """

    def __init__(self, ordinal: int = 0) -> None:
        self._held: list[ctypes.c_uint64] = []
        self._device = ctypes.c_int()
        try:
            self._library = _cuda.load_driver()
            self._call("cuDeviceGet", ctypes.byref(self._device), ordinal)
            name = ctypes.create_string_buffer(_NAME_BYTES)
            self._call("cuDeviceGetName", name, _NAME_BYTES, self._device)
        except (EngineError, ProviderError) as error:
            raise ProviderError(
                f"there is no GPU {ordinal} here: {error}. A container gets one with --gpus all"
            ) from error
        self.name = name.value.decode()

    def __enter__(self) -> Self:
        context = ctypes.c_void_p()
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(context), self._device)
        self._call("cuCtxSetCurrent", context)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for pointer in self._held:
            self._library.cuMemFree_v2(pointer)
        self._held.clear()
        self._library.cuDevicePrimaryCtxRelease_v2(self._device)

    def upload(self, array: NDArray[Any]) -> int:
        """Copy an array to the GPU. Returns its address there, which is good until the context is left."""
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
        """Reserve memory on the GPU. Returns its address there, which is good until the context is left."""
        pointer = ctypes.c_uint64()
        self._call("cuMemAlloc_v2", ctypes.byref(pointer), ctypes.c_size_t(size_bytes))
        self._held.append(pointer)
        return int(pointer.value)

    def download(self, address: int, array: NDArray[Any]) -> None:
        """Wait for the GPU and fill `array`, which must be contiguous, with what stands at `address`."""
        self._call("cuCtxSynchronize")
        self._call(
            "cuMemcpyDtoH_v2",
            array.ctypes.data_as(ctypes.c_void_p),
            ctypes.c_uint64(address),
            ctypes.c_size_t(array.nbytes),
        )

    def _call(self, function: str, *arguments: Any) -> None:  # noqa: ANN401 - what ctypes takes
        _cuda.call(self._library, function, *arguments)
