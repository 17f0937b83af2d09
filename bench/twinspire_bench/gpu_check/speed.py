"""Images/s on the GPU: the engines, torch on the same model, eager and compiled, and the measured peak."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from twinspire.bundle import Precision, Tower
from twinspire.towers import LocalTowers
from twinspire_bench.gpu_check.steps import Scope, SkippedError, StepResults
from twinspire_bench.gpu_check.towers import PRECISIONS
from twinspire_eval.flops import count_flops

if TYPE_CHECKING:
    import torch

_BATCHES = (1, 8, 32, 256)
_TYPES = {Precision.FP32: "float32", Precision.FP16: "float16"}


def engines(scope: Scope) -> StepResults:
    """Measure images/s of each precision over batches of several sizes, from uint8 in memory to unit vectors.

    `share_of_peak` is the best rate as a share of torch's matrix multiplications in that type, None without torch.
    """
    size = scope.bundle.image.size
    peaks = _peaks(scope)
    found: dict[str, Any] = {"peak_top_per_s": peaks}
    for precision in PRECISIONS:
        flops = count_flops(scope.bundle.engine(Tower.IMAGE, precision), (1, size, size, 3))
        with closing(LocalTowers(scope.bundle, precision=precision, provider=scope.provider)) as towers:
            speeds = {}
            for batch in _batches(scope):
                images = np.random.default_rng(0).integers(0, 256, (batch, size, size, 3), np.uint8)
                speeds[str(batch)] = batch / _median_s(partial(towers.encode_images, images), scope)
        top_per_s = max(speeds.values()) * flops.operations / 1e12
        peak = peaks[_TYPES[precision]] if peaks is not None else None
        found[str(precision)] = {
            "images_per_s": speeds,
            "operations_an_image": flops.operations,
            "best_top_per_s": top_per_s,
            "share_of_peak": top_per_s / peak if peak is not None else None,
        }
    return found


def torch_peers(scope: Scope) -> StepResults:
    """Measure images/s of transformers' model, eager and compiled, fp32 and fp16."""
    if scope.checkpoint is None:
        raise SkippedError("no checkpoint of the bundle: pass it with --checkpoint")
    if find_spec("torch") is None or find_spec("transformers") is None:
        raise SkippedError("torch and transformers are not installed")
    device = "cpu" if scope.rehearsal else "cuda"
    found: dict[str, Any] = {"images_per_s": {}}
    for dtype in _TYPES.values():
        tower = TorchTower(scope.checkpoint, device, dtype)
        runs: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {"eager": tower.encode}
        if not scope.rehearsal:  # compiling takes minutes on a processor and says nothing of a GPU
            runs["compiled"] = tower.compiled()
        for name, run in runs.items():
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
    device, size = ("cpu", 1024) if scope.rehearsal else ("cuda", 8192)
    return {dtype: matrix_peak(device, dtype, size=size) / 1e12 for dtype in _TYPES.values()}


def _batches(scope: Scope) -> tuple[int, ...]:
    return _BATCHES[:2] if scope.rehearsal else _BATCHES


def _median_s(run: Callable[[], Any], scope: Scope) -> float:
    """Return the median seconds of runs over `scope.seconds`, at least three, after two to warm up."""
    run()
    run()
    taken: list[float] = []
    while len(taken) < 3 or sum(taken) < scope.seconds:
        start_s = time.perf_counter()
        run()
        taken.append(time.perf_counter() - start_s)
    return float(np.median(taken))


class TorchTower:
    """Image tower of transformers' CLIP in one dtype on one device, without gradients."""

    def __init__(self, checkpoint: Path, device: str, dtype: str) -> None:
        import torch
        from transformers import CLIPModel

        self._device, self._dtype = device, getattr(torch, dtype)
        self._model = CLIPModel.from_pretrained(checkpoint).eval().to(device, self._dtype)

    def pixels(self, batch: int, size: int) -> torch.Tensor:
        """Make normalised noise, (N, 3, S, S), on the device."""
        import torch

        generator = torch.Generator().manual_seed(0)
        return torch.randn(batch, 3, size, size, generator=generator).to(self._device, self._dtype)

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """Encode to (N, D), L2-normalised, and wait for the device."""
        return self._finished(self._features, pixels)

    def compiled(self) -> Callable[[torch.Tensor], torch.Tensor]:
        """Return `encode` with the model compiled by torch."""
        import torch

        features = torch.compile(self._features, mode="max-autotune-no-cudagraphs")
        return lambda pixels: self._finished(features, pixels)

    def _features(self, pixels: torch.Tensor) -> torch.Tensor:
        import torch

        pooled = self._model.vision_model(pixel_values=pixels).pooler_output
        return torch.nn.functional.normalize(self._model.visual_projection(pooled))

    def _finished(self, features: Callable[[torch.Tensor], torch.Tensor], pixels: torch.Tensor) -> torch.Tensor:
        import torch

        with torch.inference_mode():
            return features(pixels).cpu()


def matrix_peak(device: str, dtype: str, *, size: int) -> float:
    """Return the operations/s of a square matrix multiplication, the best of ten; a multiply-add counts as two.

    float32 without TF32, as in the engines.
    """
    import torch

    torch.backends.cuda.matmul.allow_tf32 = False
    left = torch.randn(size, size).to(device, getattr(torch, dtype))
    best = 0.0
    for _ in range(10):
        _wait(device)
        start_s = time.perf_counter()
        left @ left
        _wait(device)
        best = max(best, 2 * size**3 / (time.perf_counter() - start_s))
    return best


def _wait(device: str) -> None:
    import torch

    if device == "cuda":
        torch.cuda.synchronize()
