"""Probes: the images and captions on which an engine is compared with torch."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from twinspire.errors import TextLengthError
from twinspire.text import Tokenizer, Truncation

PROBE_CAPTIONS = (
    "",
    "a cat",
    "a red car",
    "a photo of a dog",
    "two boats on the sea at night",
    "a blue house to the left of a green tree in a meadow",
    "Three people stand in the snow; one of them holds a yellow umbrella.",
    "12 apples & 3 pears, 50% off!",
    "一只猫",
    "一辆红色的汽车",
    "夜晚的海上有两艘小船",
    "草地上，绿树的左边有一座蓝色的房子。",
)


def probe_images(height: int, width: int) -> NDArray[np.uint8]:
    """Generate the probe images, the same on every machine: (8, H, W, 3) uint8; flat, smooth, sharp and noisy."""
    down, right = np.meshgrid(np.linspace(0, 1, height), np.linspace(0, 1, width), indexing="ij")
    noise = np.random.default_rng(20240229).integers(0, 256, (height, width, 3), dtype=np.uint8)
    cells = (np.floor(down * 7.999) + np.floor(right * 7.999)) % 2
    disc = (down - 0.45) ** 2 + (right - 0.55) ** 2 < 0.09
    ripples = 0.5 + 0.5 * np.sin(40 * down * right)
    images = [
        np.zeros((height, width, 3)),
        np.full((height, width, 3), 255.0),
        255 * np.stack([down, right, 1 - down], axis=-1),
        255 * np.stack([cells, cells, 1 - cells], axis=-1),
        np.where(disc[..., None], (220.0, 40.0, 30.0), (90.0, 160.0, 235.0)),
        255 * np.stack([ripples, down, 1 - ripples], axis=-1),
        noise.astype(np.float64),
        noise * down[..., None],
    ]
    generated: NDArray[np.uint8] = np.stack(images).astype(np.uint8)
    return generated


def probe_captions(tokenizer: Tokenizer) -> list[str]:
    """Return the captions of PROBE_CAPTIONS that are not longer than the context."""
    return [caption for caption in PROBE_CAPTIONS if _fits(tokenizer, caption)]


def _fits(tokenizer: Tokenizer, caption: str) -> bool:
    try:
        tokenizer.encode([caption], truncation=Truncation.ERROR)
    except TextLengthError:
        return False
    return True
