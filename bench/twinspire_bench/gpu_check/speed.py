"""Images/s on the GPU: the engines, torch eager and compiled on the same model, and shares of the measured peak."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np

from twinspire.bundle import Precision, Tower
from twinspire.towers import LocalTowers
from twinspire_bench.gpu_check.steps import Findings, Scope, SkippedError
from twinspire_bench.gpu_check.towers import PRECISIONS
from twinspire_eval.flops import engine_work

_BATCHES = (1, 8, 32, 256)
_TYPES = {Precision.FP32: "float32", Precision.FP16: "float16"}


def engines(scope: Scope) -> Findings:
    """Measure images/s of each precision over batches of several sizes, from uint8 in memory to unit vectors.

    `share_of_peak` is what the best of them is of the matrix products that torch computes in that type, None without
    torch.
    """
    size = scope.bundle.image.size
    peaks = _peaks(scope)
    found: dict[str, Any] = {"peak_top_per_s": peaks}
    for precision in PRECISIONS:
        work = engine_work(scope.bundle.engine(Tower.IMAGE, precision), (1, size, size, 3))
        with closing(LocalTowers(scope.bundle, precision=precision, provider=scope.provider)) as towers:
            speeds = {}
            for batch in _batches(scope):
                images = np.random.default_rng(0).integers(0, 256, (batch, size, size, 3), np.uint8)
                speeds[str(batch)] = batch / _median_s(partial(towers.encode_images, images), scope)
        top_per_s = max(speeds.values()) * work.operations / 1e12
        peak = peaks[_TYPES[precision]] if peaks is not None else None
        found[str(precision)] = {
            "images_per_s": speeds,
            "operations_an_image": work.operations,
            "best_top_per_s": top_per_s,
            "share_of_peak": top_per_s / peak if peak is not None else None,
        }
    return found


def torch_peers(scope: Scope) -> Findings:
    """Measure images/s of transformers' model, eager and compiled, fp32 and fp16."""
    if scope.checkpoint is None:
        raise SkippedError("the checkpoint that the bundle was made of is not here: name it with --checkpoint")
    if find_spec("torch") is None or find_spec("transformers") is None:
        raise SkippedError("torch and transformers are not installed here")
    from twinspire_bench.gpu_check.torch_model import TorchTower

    device = "cpu" if scope.rehearsal else "cuda"
    found: dict[str, Any] = {"images_per_s": {}}
    for dtype in _TYPES.values():
        tower = TorchTower(scope.checkpoint, device, dtype)
        for name, encode in (("eager", tower.encode), ("compiled", None)):
            if name == "compiled" and scope.rehearsal:
                continue  # takes minutes on a processor and says nothing of a GPU
            run = encode if encode is not None else tower.compiled()
            speeds = {}
            for batch in _batches(scope):
                pixels = tower.pixels(batch, scope.bundle.image.size)
                speeds[str(batch)] = batch / _median_s(partial(run, pixels), scope)
            found["images_per_s"][f"{name}_{dtype}"] = speeds
    return found


def _peaks(scope: Scope) -> dict[str, float] | None:
    """Measure the peaks of matrix products by type, in 10^12 operations a second; None where torch is not installed."""
    if find_spec("torch") is None or find_spec("transformers") is None:
        return None
    from twinspire_bench.gpu_check.torch_model import matrix_peak

    device, size = ("cpu", 1024) if scope.rehearsal else ("cuda", 8192)
    return {dtype: matrix_peak(device, dtype, size=size) / 1e12 for dtype in _TYPES.values()}


def _batches(scope: Scope) -> tuple[int, ...]:
    return _BATCHES[:2] if scope.rehearsal else _BATCHES


def _median_s(run: Callable[[], Any], scope: Scope) -> float:
    """Return the median seconds of runs that take the scope's time together, at least three, after two to warm up."""
    run()
    run()
    taken: list[float] = []
    while len(taken) < 3 or sum(taken) < scope.seconds:
        start_s = time.perf_counter()
        run()
        taken.append(time.perf_counter() - start_s)
    return float(np.median(taken))
