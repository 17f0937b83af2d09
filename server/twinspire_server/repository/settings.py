"""How a repository is to serve. Imports nothing heavy: the command line names these."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from twinspire._arguments import as_member
from twinspire.errors import InputError


class RepositoryRuntime(StrEnum):
    """Which Triton a repository is for.

    `wheel` is the one of nvidia-pytriton, whose Python backend opens the engines through twinspire;
    `container` is NVIDIA's image with its own onnxruntime backend.
    """

    WHEEL = "wheel"
    CONTAINER = "container"


class Device(StrEnum):
    """What computes."""

    CPU = "cpu"
    GPU = "gpu"


class Accelerator(StrEnum):
    """What runs an engine on a GPU in the container.

    `tensorrt` and `cuda` are providers of the onnxruntime backend; what TensorRT does not take goes to CUDA. `plan` is
    the tensorrt backend with plans that `twinspire tensorrt` built on such a GPU.
    """

    TENSORRT = "tensorrt"
    CUDA = "cuda"
    PLAN = "plan"


@dataclass(frozen=True, kw_only=True)
class ServingOptions:
    """How a repository is to serve. `threads` is how many a batch is computed with on the CPU; None is all.

    `streams` is how many batches or parts of one are computed in parallel, with the threads divided among them: streams
    of `LocalTowers` in the wheel, which None leaves it to, instances of the engine in the container. `providers` is
    handed to `LocalTowers` (wheel); `accelerator` is what the container's GPU runs: the onnxruntime backend with
    TensorRT or CUDA, or TensorRT plans.
    """

    runtime: RepositoryRuntime = RepositoryRuntime.WHEEL
    device: Device = Device.CPU
    threads: int | None = None
    streams: int | None = None
    providers: str = "auto"
    accelerator: Accelerator = Accelerator.TENSORRT

    def __post_init__(self) -> None:
        object.__setattr__(self, "runtime", as_member(self.runtime, RepositoryRuntime, "runtime"))
        object.__setattr__(self, "device", as_member(self.device, Device, "device"))
        object.__setattr__(self, "accelerator", as_member(self.accelerator, Accelerator, "accelerator"))
        for name, value in (("threads", self.threads), ("streams", self.streams)):
            if value is not None and (type(value) is not int or value < 1):
                raise InputError(f"{name} {value!r}: expected a whole number from 1 up, or None")
        if self.streams is not None and self.device is Device.GPU:
            raise InputError(f"streams {self.streams}: they divide the threads of a CPU; a GPU is given whole batches")
        if self.accelerator is Accelerator.PLAN and not self.is_container_gpu:
            raise InputError(
                f"accelerator {Accelerator.PLAN}: plans are served by the container on a GPU. Add --runtime container "
                "--device gpu"
            )

    @property
    def is_container_gpu(self) -> bool:
        """Whether the container's own backends compute on a GPU."""
        return self.runtime is RepositoryRuntime.CONTAINER and self.device is Device.GPU

    @property
    def uses_tensorrt(self) -> bool:
        """Whether the onnxruntime backend gives ONNX engines to TensorRT."""
        return self.is_container_gpu and self.accelerator is Accelerator.TENSORRT
