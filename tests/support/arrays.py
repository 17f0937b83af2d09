"""Random images and unit vectors, rows brought to length 1, and images as files."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def unit(rows: Any) -> NDArray[np.float32]:
    """Divide each row of (N, D), or one vector (D,), by its norm, in float64."""
    array = np.asarray(rows, np.float64)
    return np.asarray(array / np.linalg.norm(array, axis=-1, keepdims=True), np.float32)


def random_vectors(count: int, seed: int = 0, *, dim: int) -> NDArray[np.float32]:
    """Return (count, dim) float32, L2-normalised, the same for a seed."""
    return unit(np.random.default_rng(seed).standard_normal((count, dim)))


def numbered_vectors(start: int, end: int, *, dim: int) -> NDArray[np.float32]:
    """Return the vectors of items `start` to `end`, (N, dim) float32; each depends on its number alone."""
    return unit(np.stack([np.random.default_rng(number).standard_normal(dim) for number in range(start, end)]))


def noise_images(count: int, size: int = 16, seed: int | None = None) -> NDArray[np.uint8]:
    """Return (count, size, size, 3) uint8; without a seed, another `count` gives other images."""
    return np.random.default_rng(count if seed is None else seed).integers(0, 256, (count, size, size, 3), np.uint8)


def png(pixels: NDArray[np.uint8]) -> bytes:
    """Return an image (H, W, 3) as a PNG file."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()
