"""One vector for an image and its captions: their weighted mean."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from twinspire.errors import InputError

if TYPE_CHECKING:
    from twinspire.client import Client


def fuse(images: NDArray[np.float32], captions: NDArray[np.float32], weight: float) -> NDArray[np.float32]:
    """Return the unit vectors of (1 - weight) * image + weight * caption, float32, of the shape of `images`.

    `images` and `captions` are (N, D) float32, L2-normalised; of images (N, Q, D) with several vectors the caption is
    added to each. Raises `InputError` for a weight that is not between
    0 and 1, and for an image and a caption whose weighted sum is zero.
    """
    check_weight(weight)
    if images.ndim == 3:
        captions = captions[:, None]
    mixed = (1 - weight) * images + weight * captions  # (N, D) or (N, Q, D)
    return _normalised(mixed, "an image and its caption cancel each other out: they are opposite at this weight")


def check_weight(weight: float) -> None:
    """Raise `InputError` for a caption weight that is not between 0 and 1."""
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < 1:
        raise InputError(f"the caption weight must be above 0 and below 1, such as 0.3; got {weight!r}")


def encode_captions(client: Client, captions: Sequence[Sequence[str]]) -> NDArray[np.float32]:
    """Return the unit mean of each image's captions, (N, D) float32; every image has one caption or more."""
    vectors = client.encode_texts([text for texts in captions for text in texts])  # (T, D)
    starts = np.cumsum([0, *(len(texts) for texts in captions)])[:-1]
    sums = np.add.reduceat(vectors, starts, axis=0)  # (N, D), of the direction of the means
    return _normalised(sums, "the captions of an image cancel each other out: their mean is zero")


def _normalised(vectors: NDArray[np.float32], zero: str) -> NDArray[np.float32]:
    """Return (..., D) vectors at unit length. Raises `InputError` with the message `zero` for one of no length."""
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)  # (..., 1)
    if (lengths < 1e-6).any():
        raise InputError(zero)
    unit: NDArray[np.float32] = (vectors / lengths).astype(np.float32)
    return unit
