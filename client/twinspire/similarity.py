"""Similarity of items of one vector or of several: the maximum of the inner products of their vectors."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

ROUNDING = 1e-6
"""What the inner product of a float32 vector of length 1 with itself may differ from 1 by."""
NEAR_EQUAL = 0.98
"""Minimum cosine of items that are near-equal by their vectors alone.

Chosen by `twinspire bench search` on generated scenes: of thresholds the best by F0.5, as it is worse to take another
image for a copy than to miss one.
"""


def similarities(left: NDArray[np.floating[Any]], right: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
    """Return the similarity of each item of `left` with each of `right`, (A, B), in their dtype.

    Each side is (N, D), or (N, Q, D) where an item has Q vectors. The similarity of two items is the largest inner
    product of a vector of the one and a vector of the other, as BLIP-2 scores an image and a text:
    https://github.com/salesforce/LAVIS/blob/main/lavis/models/blip2_models/blip2_qformer.py
    """
    scores: NDArray[np.floating[Any]] = left.reshape(-1, left.shape[-1]) @ right.reshape(-1, right.shape[-1]).T
    if left.ndim == right.ndim == 2:
        return scores
    best: NDArray[np.floating[Any]] = scores.reshape(
        len(left), vectors_per_item(left), len(right), vectors_per_item(right)
    ).max(axis=(1, 3))
    return best


def unit_rows(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return vectors (N, D) or (N, Q, D) scaled to length 1, to the precision of float32.

    A store's are so within 1e-3: their inner products are cosines only after this.
    """
    unit: NDArray[np.float32] = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    return unit


def vectors_per_item(embeddings: NDArray[Any]) -> int:
    """Return how many vectors each item of (N, D) or (N, Q, D) has."""
    return 1 if embeddings.ndim == 2 else int(embeddings.shape[1])
