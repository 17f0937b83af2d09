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
    """What runs an engine on a GPU in the container; what TensorRT does not take goes to CUDA."""

    TENSORRT = "tensorrt"
    CUDA = "cuda"


@dataclass(frozen=True, kw_only=True)
class ServingOptions:
    """How a repository is to serve. `threads` is how many a batch is computed with on the CPU; None is all.

    `streams` is how many batches or parts of one are computed in parallel, with the threads divided among them: streams
    of `LocalTowers` in the wheel, which None leaves it to, instances of the engine in the container. `providers` is
    handed to `LocalTowers` (wheel), `accelerator` to the onnxruntime backend (container, GPU).
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
