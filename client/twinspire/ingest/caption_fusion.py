"""One vector of an image and what is said about it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from twinspire.errors import InputError

if TYPE_CHECKING:
    from twinspire.client import Client


def fuse(pictures: NDArray[np.float32], captions: NDArray[np.float32], weight: float) -> NDArray[np.float32]:
    """Return the unit vectors of (1 - weight) * image + weight * caption, (N, D) float32.

    `images` and `captions` are (N, D) float32, L2-normalised. Raises `InputError` for a weight that is not between
    0 and 1, and for an image and caption that cancel each other out.
    """
    check_weight(weight)
    mixed = (1 - weight) * pictures + weight * captions  # (N, D)
    lengths = np.linalg.norm(mixed, axis=1, keepdims=True)  # (N, 1)
    if (lengths < 1e-6).any():
        raise InputError("a picture and its caption cancel each other out: they are opposite at this weight")
    fused: NDArray[np.float32] = (mixed / lengths).astype(np.float32)
    return fused


def check_weight(weight: float) -> None:
    """Raise `InputError` for what is no weight of captions."""
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < 1:
        raise InputError(
            f"the captions' weight in the fused vectors must be above 0 and below 1, such as 0.3; got {weight!r}"
        )


def encode_captions(client: Client, captions: Sequence[Sequence[str]]) -> NDArray[np.float32]:
    """Return the unit mean of each image's captions, (N, D) float32; every image has one caption or more."""
    texts = [text for said in captions for text in said]
    vectors = client.encode_texts(texts)  # (T, D)
    starts = np.cumsum([0, *(len(said) for said in captions)])[:-1]
    means = np.add.reduceat(vectors, starts, axis=0)  # (N, D), sums: they are normalised anyway
    lengths = np.linalg.norm(means, axis=1, keepdims=True)
    if (lengths < 1e-6).any():
        raise InputError("a picture's captions cancel each other out: their mean is zero")
    unit: NDArray[np.float32] = (means / lengths).astype(np.float32)
    return unit
