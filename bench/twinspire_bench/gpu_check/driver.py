"""The driver: whether it answers, and whether what goes to the GPU comes back."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from twinspire import _cuda
from twinspire_bench.gpu_check.steps import Findings, Scope, SkippedError

_BYTES = 1 << 26


def driver_round_trip(scope: Scope) -> Findings:
    """Copy 64 MiB to the GPU and back; the bytes must be equal."""
    reason = _cuda.unavailable_reason()
    if reason is not None and scope.rehearsal:
        raise SkippedError(f"no GPU here: {reason}")
    sent = np.random.default_rng(0).integers(0, 256, _BYTES, np.uint8)
    back = np.zeros_like(sent)
    with _cuda.CudaDevice() as device:
        start_s = time.perf_counter()
        address = device.upload(sent)
        there_s = time.perf_counter() - start_s
        start_s = time.perf_counter()
        device.download(address, back)
        back_s = time.perf_counter() - start_s
        found: dict[str, Any] = {
            "gpu": device.name,
            "gpus": _cuda.device_count(),
            "to_gpu_gb_per_s": _BYTES / there_s / 1e9,
            "from_gpu_gb_per_s": _BYTES / back_s / 1e9,
        }
    wrong = int(np.count_nonzero(sent != back))
    return {**found, "failures": [f"{wrong} of {_BYTES} bytes came back changed"] if wrong else []}
