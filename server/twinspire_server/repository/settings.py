"""Options of a repository: the Triton that will serve it, and how. Imports nothing heavy, for the command line."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from twinspire._arguments import as_member, as_whole
from twinspire._decode_mode import DecodeMode
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


_MOST = {"instances": 64, "max_batch": 1024, "queue_batches": 1024}


@dataclass(frozen=True, kw_only=True)
class ServingOptions:
    """How a repository serves.

    `threads` is the number of threads that compute a batch on the CPU (None: one per core). `streams` is the number of
    batches, or parts of one, that are computed in parallel; `threads` is divided among them. In the wheel they are
    streams of `LocalTowers`, which chooses their number for None; in the container they are instances of the engine.
    `instances` is the number of processes that compute each tower (wheel), `max_batch` the most rows of a batch,
    `queue_batches` how many full batches wait in an instance before requests are refused; None: the defaults.
    `tuning` is the record of `twinspire tune` that these were chosen by, a file that is copied into the models.
    `provider` is passed to `LocalTowers` (wheel); `accelerator` runs the engine on the container's GPU. `raw_inputs`
    adds the models that take encoded files and plain texts; `decode` is how the one for images decodes them.
    """

    runtime: RepositoryRuntime = RepositoryRuntime.WHEEL
    device: Device = Device.CPU
    threads: int | None = None
    streams: int | None = None
    provider: str = "auto"
    accelerator: Accelerator = Accelerator.TENSORRT
    raw_inputs: bool = False
    decode: DecodeMode = DecodeMode.EXACT
    instances: int | None = None
    max_batch: int | None = None
    queue_batches: int | None = None
    tuning: Path | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "runtime", as_member(self.runtime, RepositoryRuntime, "runtime"))
        object.__setattr__(self, "device", as_member(self.device, Device, "device"))
        object.__setattr__(self, "decode", as_member(self.decode, DecodeMode, "decode"))
        if self.decode is not DecodeMode.EXACT and not self.raw_inputs:
            raise InputError(
                f"decode {self.decode} without models for encoded images: clients decode for the others, by their own "
                "`decode`. Add --raw-inputs",
                option="decode",
            )
        object.__setattr__(self, "accelerator", as_member(self.accelerator, Accelerator, "accelerator"))
        for name in ("threads", "streams", "instances", "max_batch", "queue_batches"):
            value = getattr(self, name)
            if value is not None:
                as_whole(value, name, minimum=1, maximum=_MOST.get(name))
        tuned = {name for name in ("instances", "max_batch", "queue_batches") if getattr(self, name) is not None}
        if tuned and self.runtime is RepositoryRuntime.CONTAINER:
            option = min(tuned)
            raise InputError(
                f"{option} {getattr(self, option)} for the container: its engines have a batch of their own, and "
                "--streams are their instances. Leave it out",
                option=option,
            )
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
