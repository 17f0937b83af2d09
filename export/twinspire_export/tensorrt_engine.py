"""Build of a TensorRT plan from an ONNX engine: for one GPU model and one version of TensorRT, with fixed shapes.

For NVIDIA's container. Tests check every call against the Python bindings of TensorRT 10 and 11, and the results with a
stand-in that runs the ONNX file. The network is strongly typed: TensorRT takes precisions from the ONNX file, and has
no builder flags for fp16 or int8.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twinspire._cuda import CudaDevice
from twinspire.bundle import Bundle, Padding, Tower
from twinspire.contract import EMBEDDING, INPUT_NAMES
from twinspire.errors import EngineError, InputError, ProviderError
from twinspire.tensorrt_support import Profile, prepare_engine

SHORT_TEXT = 32
"""A length that most captions fit; the container's repository serves texts at this length and at the context's."""

_VERSIONS = (10, 11)
_FLAG_UNTIL = 10  # in TensorRT 11 every network is strongly typed, and the flag is deprecated


def profiles(bundle: Bundle, tower: Tower, *, max_batch: int) -> tuple[Profile, ...]:
    """Return the profiles of a tower: one for images or sounds, for texts one of 32 tokens and one of the context.

    All are tuned for the full batch. Raises InputError where `max_batch` is below 1.
    """
    if max_batch < 1:
        raise InputError(f"max_batch {max_batch}: expected at least 1")
    if tower is not Tower.TEXT:
        shapes: list[tuple[int, ...]] = [bundle.input_spec(tower).shape]
    elif bundle.text.padding is Padding.MAX_LENGTH or bundle.text.context_length <= SHORT_TEXT:
        shapes = [(bundle.text.context_length,)]
    else:
        shapes = [(SHORT_TEXT,), (bundle.text.context_length,)]
    return tuple(Profile((1, *shape), (max_batch, *shape), (max_batch, *shape)) for shape in shapes)


def platform_name(*, gpu: str, version: str) -> str:
    """Return the GPU and TensorRT version that plans are for, as in file names: `nvidia-h200.trt-11.4.0`."""
    slug = re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-")
    return f"{slug or 'gpu'}.trt-{re.sub(r'[^0-9A-Za-z.]+', '-', version)}"


def import_tensorrt() -> ModuleType:
    """Import TensorRT. Raises ProviderError where it is missing or of another version than 10 or 11."""
    try:
        # Not by an import statement: the package is not installed where types are checked.
        module = importlib.import_module("tensorrt")
    except ImportError as error:
        raise ProviderError(
            f"TensorRT is not installed here ({error}): run this inside NVIDIA's container, nvcr.io/nvidia/tensorrt of "
            "the release whose tritonserver will load the plans"
        ) from error
    version = str(module.__version__)
    if _major(version) not in _VERSIONS:
        raise ProviderError(f"TensorRT {version} is installed here: expected {' or '.join(map(str, _VERSIONS))}")
    return module


class PlanBuilder:
    """Builder of plans for this machine's GPU, which reuses timings of kernels from one plan to the next.

    `timing_cache` is the `timings` of an earlier builder. Raises EngineError where TensorRT rejects it.
    """

    def __init__(self, tensorrt: ModuleType, *, timing_cache: bytes = b"") -> None:
        self._tensorrt = tensorrt
        self._logger = tensorrt.Logger(tensorrt.Logger.WARNING)
        self.timings = timing_cache

    def build(self, engine: Path, input_name: str, shapes: Sequence[Profile]) -> bytes:
        """Build the plan of an ONNX file, which takes minutes. Raises EngineError with TensorRT's message."""
        trt = self._tensorrt
        builder = trt.Builder(self._logger)
        flags = 0
        if _major(str(trt.__version__)) <= _FLAG_UNTIL:
            flags = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        network = builder.create_network(flags)
        parser = trt.OnnxParser(network, self._logger)
        if not parser.parse(prepare_engine(engine)):
            errors = "; ".join(str(parser.get_error(index)) for index in range(parser.num_errors))
            raise EngineError(f"TensorRT {trt.__version__} cannot read {engine.name}: {errors}")
        config = builder.create_builder_config()
        # TF32 is on by default and rounds fp32 computation to 10 bits, also where an fp16 engine keeps fp32.
        config.clear_flag(trt.BuilderFlag.TF32)
        cache = config.create_timing_cache(self.timings)
        if not config.set_timing_cache(cache, False):
            raise EngineError(
                "the timing cache is of another GPU or TensorRT version: pass one that was written here, or none"
            )
        for shape in shapes:
            profile = builder.create_optimization_profile()
            profile.set_shape(input_name, shape.minimum, shape.optimum, shape.maximum)
            config.add_optimization_profile(profile)
        plan = builder.build_serialized_network(network, config)
        if plan is None:
            raise EngineError(f"TensorRT {trt.__version__} cannot build {engine.name}: see its log above")
        self.timings = bytes(config.get_timing_cache().serialize())
        return bytes(plan)


class PlanRunner:
    """Runner of a plan, to measure its embeddings; not the way to serve. `device` must be entered."""

    def __init__(self, tensorrt: ModuleType, plan: bytes, device: CudaDevice, *, tower: Tower) -> None:
        self._logger = tensorrt.Logger(tensorrt.Logger.WARNING)
        self._runtime = tensorrt.Runtime(self._logger)
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise EngineError(f"TensorRT {tensorrt.__version__} cannot load the plan that it built")
        self._context = self._engine.create_execution_context()
        self._device = device
        self._input = INPUT_NAMES[tower]

    def embed(self, batch: NDArray[Any], *, profile: int, output: tuple[int, ...]) -> NDArray[np.float32]:
        """Encode `batch`, an input that `profile` allows, to float32 of (N, *output), L2-normalised."""
        stream = 0  # the default one
        context = self._context
        if not context.set_optimization_profile_async(profile, stream) or not context.set_input_shape(
            self._input, batch.shape
        ):
            raise EngineError(f"the plan refuses inputs of the shape {batch.shape} in its profile {profile}")
        embeddings = np.empty((len(batch), *output), np.float32)
        address = self._device.reserve(embeddings.nbytes)
        context.set_tensor_address(self._input, self._device.upload(batch))
        context.set_tensor_address(EMBEDDING, address)
        if not context.execute_async_v3(stream):
            raise EngineError(f"the plan failed on an input of the shape {batch.shape}: see TensorRT's log above")
        self._device.download(address, embeddings)
        return embeddings


def _major(version: str) -> int:
    found = re.match(r"\d+", version)
    return int(found.group()) if found else 0
