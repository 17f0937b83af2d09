"""Engines for the container's own backends: the file of a tower, what runs it on a GPU, and TensorRT plans."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from twinspire.bundle import Bundle, Precision, Tower
from twinspire.bundle.writer import copy_file
from twinspire.contract import TensorSpec
from twinspire.errors import InputError
from twinspire.tensorrt_support import PlanFolder, prepare_engine
from twinspire_server.repository.settings import Accelerator, ServingOptions

ENGINE, PLAN = "model.onnx", "model.plan"

MIN_RELEASE = "26.06"
"""The first release of the container with TensorRT 11, which takes fp16 and int8 from the ONNX file. Earlier ones need
the parameter `precision_mode`, which 11 does not know, and compute such an engine in fp32 without it."""

CACHE_FOLDER = "/var/cache/twinspire"
"""Inside the container. Dockerfile.triton makes it writable, compose.yaml keeps it in a volume."""


@dataclass(frozen=True, kw_only=True)
class EngineFile:
    """The engine of one version. `sha256` is that of the file as it is written: `prepare` changes it for TensorRT."""

    name: str
    source: Path
    sha256: str
    prepare: bool = False

    def write(self, path: Path) -> None:
        """Copy the engine, or write what it is prepared to."""
        if self.prepare:
            path.write_bytes(prepare_engine(self.source))
        else:
            copy_file(self.source, path)


def engine_file(
    bundle: Bundle, tower: Tower, precision: Precision, options: ServingOptions, plans: PlanFolder | None
) -> EngineFile:
    """Choose a tower's file. Raises BundleError where it is missing, EngineError where TensorRT will not take it."""
    if plans is not None:
        record = plans.manifest.plans[tower]
        return EngineFile(name=PLAN, source=plans.path / record.file, sha256=record.sha256)
    source = bundle.engine(tower, precision)
    if options.uses_tensorrt:
        # Prepared again when it is written: two towers of a large model would fill the memory.
        digest = hashlib.sha256(prepare_engine(source)).hexdigest()
        return EngineFile(name=ENGINE, source=source, sha256=digest, prepare=True)
    return EngineFile(name=ENGINE, source=source, sha256=bundle.manifest.engines[tower][precision].sha256)


def open_plans(
    bundles: Sequence[Bundle], folders: Sequence[Path], accelerator: Accelerator, precision: Precision | None
) -> Mapping[str, PlanFolder]:
    """Open and check the plans of each bundle: those in `folders`, by default in BUNDLE.plans beside each bundle.

    Return them by the bundles' names; none where the accelerator is another. Raises InputError where folders and
    bundles do not match and where the plans are not of the requested precision, and what `PlanFolder` raises.
    """
    if accelerator is not Accelerator.PLAN:
        if folders:
            raise InputError(
                f"plans {', '.join(map(str, folders))}: only the accelerator {Accelerator.PLAN} serves plans. Add "
                "--accelerator plan, or leave --plans out",
                option="plans",
            )
        return {}
    paths = folders or [bundle.path.absolute().with_name(f"{bundle.path.absolute().name}.plans") for bundle in bundles]
    found: dict[str, PlanFolder] = {}
    for path in paths:
        folder = PlanFolder.open(path)
        name = folder.manifest.bundle
        if name in found:
            raise InputError(
                f"{found[name].path} and {path} are both plans of {name!r}: expected one folder for each bundle",
                option="plans",
            )
        found[name] = folder
    names = {bundle.name for bundle in bundles}
    if set(found) != names:
        raise InputError(
            f"the plans are of the bundles {sorted(found)}: expected those of {sorted(names)}. Name a folder for each "
            "bundle with --plans",
            option="plans",
        )
    for bundle in bundles:
        folder = found[bundle.name]
        folder.check(bundle)
        if precision not in (None, folder.manifest.precision):
            raise InputError(
                f"precision {precision}: the plans in {folder.path} are {folder.manifest.precision}. Build others "
                f"with: twinspire tensorrt BUNDLE --precision {precision}",
                option="precision",
            )
    return found


def gpu_optimization(
    accelerator: Accelerator, tensor: TensorSpec, *, batch: int, lengths: Sequence[int], engine_sha256: str
) -> str:
    """Return the part of config.pbtxt that names what runs an ONNX engine: TensorRT, then CUDA; or CUDA alone.

    `tensor` is the engine's input; `lengths` stand for its free axis. TF32 is off, as in `LocalTowers`: it rounds the
    factors of fp32 multiplications to 10 bits. TensorRT's provider has no option for that
    (https://github.com/microsoft/onnxruntime/issues/26029): Dockerfile.triton sets the variable NVIDIA_TF32_OVERRIDE.

    Source: https://github.com/triton-inference-server/onnxruntime_backend#onnx-runtime-with-cuda-execution-provider-optimization
    """
    accelerators, needs = [_accelerator(Accelerator.CUDA, {"use_tf32": "0"})], ""
    if accelerator is Accelerator.TENSORRT:
        settings = _tensorrt(tensor, batch=batch, lengths=lengths, engine_sha256=engine_sha256)
        accelerators.insert(0, _accelerator(accelerator, settings))
        needs = f"# Needs Triton {MIN_RELEASE} or later, the folder {CACHE_FOLDER} and NVIDIA_TF32_OVERRIDE=0.\n"
    listed = ", ".join(accelerators)
    return f"{needs}optimization {{\n  execution_accelerators {{\n    gpu_execution_accelerator [ {listed} ]\n  }}\n}}"


def _tensorrt(tensor: TensorSpec, *, batch: int, lengths: Sequence[int], engine_sha256: str) -> dict[str, str]:
    """Set one optimization profile over all the shapes, and where TensorRT keeps its engines and timings.

    No precision is set: TensorRT 11 takes it from the ONNX file alone. onnxruntime names a cached engine after the
    graph, not the weights: the folder therefore names the engine. It makes that folder, not those above it.
    Source: https://github.com/triton-inference-server/onnxruntime_backend#onnx-runtime-with-tensorrt-optimization
    """
    shapes = [(length,) for length in lengths] if lengths else [tensor.shape]
    shortest, longest = ("x".join(map(str, shape)) for shape in (shapes[0], shapes[-1]))
    folder = f"{CACHE_FOLDER}/{engine_sha256[:16]}"
    return {
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": folder,
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": folder,
        "trt_profile_min_shapes": f"{tensor.name}:1x{shortest}",
        "trt_profile_opt_shapes": f"{tensor.name}:{batch}x{shortest}",
        "trt_profile_max_shapes": f"{tensor.name}:{batch}x{longest}",
    }


def _accelerator(name: Accelerator, settings: Mapping[str, str]) -> str:
    lines = "\n".join(f'      parameters {{ key: "{key}" value: "{value}" }}' for key, value in settings.items())
    return f'{{\n      name: "{name}"\n{lines}\n    }}'
