"""config.pbtxt for the GPU of NVIDIA's container: what runs an ONNX engine there, and the profiles of a plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from twinspire.bundle import Bundle, Precision, Tower
from twinspire.tensorrt_support import PlanRecord
from twinspire.towers.local import BATCH
from twinspire_server.repository.settings import Accelerator

MIN_RELEASE = "26.06"
"""The first release of the container with TensorRT 11, which takes fp16 and int8 from the ONNX file. Earlier ones need
the parameter `precision_mode`, which 11 does not know, and compute such an engine in fp32 without it."""

CACHE_FOLDER = "/var/cache/twinspire"
"""Inside the container. Dockerfile.triton makes it writable, compose.yaml keeps it in a volume."""


def optimization(
    bundle: Bundle, tower: Tower, precision: Precision, accelerator: Accelerator, lengths: Sequence[int]
) -> str:
    """Say what runs a tower's ONNX engine: TensorRT and what it leaves to CUDA, or CUDA alone.

    TF32 is off, as in `LocalTowers`: it rounds the factors of fp32 products to 10 bits. TensorRT's provider has no
    option for that (https://github.com/microsoft/onnxruntime/issues/26029): Dockerfile.triton sets the variable
    NVIDIA_TF32_OVERRIDE.

    Source: https://github.com/triton-inference-server/onnxruntime_backend#onnx-runtime-with-cuda-execution-provider-optimization
    """
    accelerators, needs = [_accelerator(Accelerator.CUDA, {"use_tf32": "0"})], ""
    if accelerator is Accelerator.TENSORRT:
        accelerators.insert(0, _accelerator(accelerator, _tensorrt(bundle, tower, precision, lengths)))
        needs = f"# Needs Triton {MIN_RELEASE} or later, the folder {CACHE_FOLDER} and NVIDIA_TF32_OVERRIDE=0.\n"
    listed = ", ".join(accelerators)
    return f"{needs}optimization {{\n  execution_accelerators {{\n    gpu_execution_accelerator [ {listed} ]\n  }}\n}}"


def plan_backend(plan: PlanRecord) -> str:
    """Say what runs a plan. Its file is named after the GPU and the TensorRT that it was built for."""
    runs_on = f"# {plan.file} runs on that GPU, in that release of TensorRT alone."
    return f'{runs_on}\nplatform: "tensorrt_plan"\nbackend: "tensorrt"'


def profiles(plan: PlanRecord) -> str:
    """Name a plan's profiles for an instance, which takes the one nearest to a batch's shape; unnamed, the first alone.

    Source: `ModelInstanceState::GetMostOptimizedProfile` in
    https://github.com/triton-inference-server/tensorrt_backend/blob/main/src/instance_state.cc
    """
    names = ", ".join(f'"{index}"' for index in range(len(plan.profiles)))
    return f" profile: [ {names} ]"


def _tensorrt(bundle: Bundle, tower: Tower, precision: Precision, lengths: Sequence[int]) -> dict[str, str]:
    """Set one optimization profile over all the shapes, and where TensorRT keeps its engines and timings.

    Nothing is said of precisions: TensorRT 11 takes them from the ONNX file alone. onnxruntime names a cached engine
    after the graph, not the weights: the folder therefore names the engine. It makes that folder, not those above it.
    Source: https://github.com/triton-inference-server/onnxruntime_backend#onnx-runtime-with-tensorrt-optimization
    """
    batch = BATCH[tower]
    if tower is Tower.IMAGE:
        name, shortest = "image", f"{bundle.image.size}x{bundle.image.size}x3"
        longest = shortest
    else:
        name, shortest, longest = "input_ids", str(lengths[0]), str(lengths[-1])
    folder = f"{CACHE_FOLDER}/{bundle.manifest.engines[tower][precision].sha256[:16]}"
    return {
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": folder,
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": folder,
        "trt_profile_min_shapes": f"{name}:1x{shortest}",
        "trt_profile_opt_shapes": f"{name}:{batch}x{shortest}",
        "trt_profile_max_shapes": f"{name}:{batch}x{longest}",
    }


def _accelerator(name: Accelerator, settings: Mapping[str, str]) -> str:
    lines = "\n".join(f'      parameters {{ key: "{key}" value: "{value}" }}' for key, value in settings.items())
    return f'{{\n      name: "{name}"\n{lines}\n    }}'
