"""transformers' CLIP on torch, on a GPU where there is one; imported where torch is installed."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import CLIPModel


class TorchTower:
    """The image tower of a checkpoint, in one dtype on one device, without gradients."""

    def __init__(self, checkpoint: Path, device: str, dtype: str) -> None:
        self._device, self._dtype = device, getattr(torch, dtype)
        self._model = CLIPModel.from_pretrained(checkpoint).eval().to(device, self._dtype)

    def pixels(self, batch: int, size: int) -> torch.Tensor:
        """Make normalised noise, (N, 3, S, S), on the device."""
        generator = torch.Generator().manual_seed(0)
        return torch.randn(batch, 3, size, size, generator=generator).to(self._device, self._dtype)

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """Encode to (N, D), L2-normalised, and wait for the device."""
        return self._finished(self._features, pixels)

    def compiled(self) -> Callable[[torch.Tensor], torch.Tensor]:
        """Return `encode` with the model compiled by torch."""
        features = torch.compile(self._features, mode="max-autotune-no-cudagraphs")
        return lambda pixels: self._finished(features, pixels)

    def _features(self, pixels: torch.Tensor) -> torch.Tensor:
        pooled = self._model.vision_model(pixel_values=pixels).pooler_output
        return torch.nn.functional.normalize(self._model.visual_projection(pooled))

    def _finished(self, features: Callable[[torch.Tensor], torch.Tensor], pixels: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            return features(pixels).cpu()


def matrix_peak(device: str, dtype: str, *, size: int) -> float:
    """Return the operations a second of a square matrix product, at best of ten; a multiply-add counts as two.

    float32 without TF32, as the engines compute.
    """
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
    if device == "cuda":
        torch.cuda.synchronize()
