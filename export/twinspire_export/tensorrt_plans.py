"""Bundle to a folder with a TensorRT plan for each tower, measured on this GPU."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from twinspire._atomic import atomic_folder
from twinspire._cuda import CudaDevice
from twinspire.bundle import Bundle, Certificate, Precision, Probes, Tower
from twinspire.contract import INPUT_NAMES, padded
from twinspire.errors import BundleError, EngineError, InputError
from twinspire.tensorrt_support import PLANS_NAME, PlanManifest, PlanRecord, Profile, check_precision
from twinspire_export.engine_check import certify
from twinspire_export.quantize import MIN_MEAN_COSINE
from twinspire_export.tensorrt_engine import (
    PlanBuilder,
    PlanRunner,
    import_tensorrt,
    platform_name,
    profiles,
)


def build_plans(
    bundle: Bundle | str | Path,
    destination: str | Path,
    *,
    precision: Precision | str = Precision.FP16,
    max_batch: int = 64,
    timing_cache: Path | None = None,
    on_step: Callable[[str], None] | None = None,
) -> Path:
    """Build a plan for each tower of `bundle` in the new folder `destination`, which takes minutes.

    The folder also holds plans.json, with bundle, space, GPU, TensorRT, profiles and certificates, and the timing cache
    that makes another build faster. `timing_cache` is such a file: it is read if it exists, and written. Each plan is
    run on the bundle's probes, in each of its profiles, and compared with torch.

    Leaves nothing behind where it raises: BundleError where the bundle has no such engines or `destination` exists,
    InputError for other arguments, ProviderError where TensorRT or a GPU is missing, EngineError where TensorRT rejects
    an engine and where its embeddings differ from the bundle's.
    """
    step = on_step or (lambda _: None)
    checked = check_precision(precision)
    base = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    target = Path(os.path.abspath(destination))  # noqa: PTH100 - resolve() would follow a link
    if os.path.lexists(target) or not target.parent.is_dir():
        raise BundleError(f"{target} exists, or its folder does not: name another one")
    engines = {tower: base.engine(tower, checked) for tower in base.towers}
    shapes = {tower: profiles(base, tower, max_batch=max_batch) for tower in base.towers}
    tensorrt = import_tensorrt()
    probes = base.probes()
    try:
        with atomic_folder(target) as draft, CudaDevice() as device:
            platform = platform_name(gpu=device.name, version=str(tensorrt.__version__))
            builder = PlanBuilder(tensorrt, timing_cache=_read(timing_cache))
            plans: dict[Tower, PlanRecord] = {}
            for tower in base.towers:
                step(f"building the plan of the {tower} tower")
                name = f"{tower}.{checked}.{platform}.plan"
                plan = builder.build(engines[tower], INPUT_NAMES[tower], shapes[tower])
                step(f"running the plan of the {tower} tower")
                certificate = _certify(tensorrt, plan, device, tower, base, probes, shapes[tower], checked)
                (draft / name).write_bytes(plan)
                plans[tower] = PlanRecord(
                    file=name,
                    sha256=hashlib.sha256(plan).hexdigest(),
                    size_bytes=len(plan),
                    engine_sha256=base.manifest.engines[tower][checked].sha256,
                    profiles=shapes[tower],
                    certificate=certificate,
                )
            (draft / f"timings.{platform}.cache").write_bytes(builder.timings)
            document = PlanManifest(
                bundle=base.name,
                space=base.space,
                precision=checked,
                max_batch=max_batch,
                gpu=device.name,
                tensorrt=str(tensorrt.__version__),
                plans=plans,
            )
            (draft / PLANS_NAME).write_text(document.to_json(), encoding="utf-8")
            if timing_cache is not None:
                timing_cache.write_bytes(builder.timings)
    except OSError as error:
        raise BundleError(f"{target} was not written: {error}") from error
    return target


def _certify(
    tensorrt: ModuleType,
    plan: bytes,
    device: CudaDevice,
    tower: Tower,
    bundle: Bundle,
    probes: Probes,
    shapes: tuple[Profile, ...],
    precision: Precision,
) -> Certificate:
    """Run a plan on the probes, one by one, in each profile that allows them."""
    runner = PlanRunner(tensorrt, plan, device, tower=tower)
    measured: list[NDArray[np.float32]] = []
    expected: list[NDArray[np.float32]] = []
    inputs, references = probes.towers[tower]
    for index, shape in enumerate(shapes):
        for probe, reference in zip(inputs, references, strict=True):
            if tower is Tower.TEXT and len(probe) > shape.maximum[1]:
                continue
            batch = padded([probe], bundle.text.pad_id, shape.maximum[1]) if tower is Tower.TEXT else probe[None]
            measured.append(runner.embed(batch, profile=index, output=bundle.output_spec(tower).shape))
            expected.append(reference[None])
    measured_by = certify(
        np.concatenate(measured),
        np.concatenate(expected),
        reference="torch fp32",
        data=f"the bundle's probes in {len(shapes)} profile{'s' if len(shapes) > 1 else ''} on {device.name}",
        packages=(),
    )
    certificate = replace(measured_by, versions={"tensorrt": str(tensorrt.__version__)})
    minimum = MIN_MEAN_COSINE.get(precision, MIN_MEAN_COSINE[Precision.FP16])
    if certificate.mean_cosine < minimum:
        raise EngineError(
            f"the plan of the {tower} tower is not usable: its mean cosine to torch is {certificate.mean_cosine:.4f} "
            f"on the probes, at least {minimum} is required. Compare with the ONNX engine's certificate"
        )
    return certificate


def _read(timing_cache: Path | None) -> bytes:
    if timing_cache is None:
        return b""
    try:
        return timing_cache.read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise InputError(f"the timing cache {timing_cache} cannot be read: {error.strerror}") from error
