"""Options of a repository: the Triton that will serve it, and how. Imports nothing heavy, for the command line."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from twinspire._arguments import as_member, as_whole
from twinspire.errors import InputError


class RepositoryRuntime(StrEnum):
    """The Triton that a repository is for.

    `wheel` is the one in nvidia-pytriton, whose Python backend opens the engines through twinspire;
    `container` is NVIDIA's image with its own onnxruntime backend.
    """

    WHEEL = "wheel"
    CONTAINER = "container"


class Device(StrEnum):
    """The device that engines compute on."""

    CPU = "cpu"
    GPU = "gpu"


class Accelerator(StrEnum):
    """The software that runs an engine on a GPU in the container.

    `tensorrt` and `cuda` are providers of the onnxruntime backend; operators that TensorRT does not support run on
    CUDA. `plan` is the tensorrt backend with plans that `twinspire tensorrt` built on such a GPU.
    """

    TENSORRT = "tensorrt"
    CUDA = "cuda"
    PLAN = "plan"


@dataclass(frozen=True, kw_only=True)
class ServingOptions:
    """How a repository serves.

    `threads` is the number of threads that compute a batch on the CPU (None: one per core). `streams` is the number of
    batches, or parts of one, that are computed in parallel; `threads` is divided among them. In the wheel they are
    streams of `LocalTowers`, which chooses their number for None; in the container they are instances of the engine.
    `provider` is passed to `LocalTowers` (wheel); `accelerator` runs the engine on the container's GPU. `raw_inputs`
    adds the models that take encoded files and plain texts.
    """

    runtime: RepositoryRuntime = RepositoryRuntime.WHEEL
    device: Device = Device.CPU
    threads: int | None = None
    streams: int | None = None
    provider: str = "auto"
    accelerator: Accelerator = Accelerator.TENSORRT
    raw_inputs: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "runtime", as_member(self.runtime, RepositoryRuntime, "runtime"))
        object.__setattr__(self, "device", as_member(self.device, Device, "device"))
        object.__setattr__(self, "accelerator", as_member(self.accelerator, Accelerator, "accelerator"))
        for name, value in (("threads", self.threads), ("streams", self.streams)):
            if value is not None:
                as_whole(value, name, minimum=1)
        if self.streams is not None and self.device is Device.GPU:
            raise InputError(
                f"streams {self.streams} for a GPU: they divide a CPU's threads, a GPU computes whole batches. Leave "
                "--streams out",
                option="streams",
            )
        if self.accelerator is Accelerator.PLAN and not self.is_container_gpu:
            raise InputError(
                f"accelerator {Accelerator.PLAN}: only the container on a GPU serves plans. Add --runtime container "
                "--device gpu",
                option="accelerator",
            )

    @property
    def is_container_gpu(self) -> bool:
        """Whether the container's own backends compute on a GPU."""
        return self.runtime is RepositoryRuntime.CONTAINER and self.device is Device.GPU

    @property
    def uses_tensorrt(self) -> bool:
        """Whether the onnxruntime backend gives ONNX engines to TensorRT."""
        return self.is_container_gpu and self.accelerator is Accelerator.TENSORRT
