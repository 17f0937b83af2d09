"""Lists of hits made one, and made various."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from twinspire.errors import InputError

RANK_CONSTANT = 60
"""The constant of reciprocal rank fusion, as its authors chose it."""


def reciprocal_ranks(rankings: Sequence[Sequence[int]], weights: Sequence[float]) -> dict[int, float]:
    """Fuse rankings of ids, best first: the weighted sum of 1 / (60 + rank) over them, 1 for the best in all.

    Cormack, Clarke and Büttcher, Reciprocal Rank Fusion Outperforms Condorcet and Individual Rank Learning Methods,
    2009; here scaled so that scores lie above 0 and up to 1.
    """
    most = sum(weights) / (RANK_CONSTANT + 1)
    fused: dict[int, float] = {}
    for ranking, weight in zip(rankings, weights, strict=True):
        for rank, number in enumerate(ranking, start=1):
            fused[number] = fused.get(number, 0.0) + weight / (RANK_CONSTANT + rank) / most
    return fused


def diversified(scores: Mapping[int, float], vectors: NDArray[np.float32], diversity: float, count: int) -> list[int]:
    """Choose `count` ids one after the other, each good and unlike those before: maximal marginal relevance.

    Each next one has the largest (1 - diversity) * relevance - diversity * (largest inner product with those chosen);
    relevance is the score, brought to 0 to 1 over all. `vectors` is (N, D) float32, L2-normalised, in the order of
    `scores`. Carbonell and Goldstein, The Use of MMR, 1998. Raises `InputError` for a diversity outside 0 to 1.
    """
    if not 0 <= diversity <= 1:
        raise InputError(f"diversity {diversity!r}: expected a number from 0, as they come, to 1, only unlike ones")
    ids = list(scores)
    if not ids:
        return []
    relevance = np.array([scores[number] for number in ids])
    spread = relevance.max() - relevance.min()
    relevance = (relevance - relevance.min()) / spread if spread > 0 else np.ones(len(ids))
    nearest = np.full(len(ids), -1.0)  # the largest inner product with one that is chosen
    chosen: list[int] = []
    left = np.ones(len(ids), dtype=bool)
    for _ in range(min(count, len(ids))):
        value = relevance if not chosen else (1 - diversity) * relevance - diversity * nearest
        best = int(np.argmax(np.where(left, value, -np.inf)))
        chosen.append(ids[best])
        left[best] = False
        nearest = np.maximum(nearest, vectors @ vectors[best])
    return chosen
