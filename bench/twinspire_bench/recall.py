"""Recall: how often the right item is among the first k."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Recall:
    """Share of queries, 0 to 1, whose own item is among the first 1, 5 and 10."""

    r1: float
    r5: float
    r10: float


def ranks(scores: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    """Return each query's rank of its own item, from 0: (N,) int64.

    `scores` is (N, N) float32 with query i's own item in column i. An item that scores the same as the own one counts
    as ahead of it: a model that answers everything alike gets no recall for it.
    """
    own = np.diagonal(scores)[:, None]
    # The own item itself is among those counted.
    return np.asarray((scores >= own).sum(axis=1) - 1, dtype=np.int64)


def recall(queries: npt.NDArray[np.float32], items: npt.NDArray[np.float32]) -> Recall:
    """Return the recall of row i of `queries` finding row i of `items`, both (N, D) float32, L2-normalised."""
    if len(queries) == 0 or queries.shape != items.shape:
        raise ValueError(f"queries {queries.shape} and items {items.shape} must be equally many, at least one")
    found = ranks(queries @ items.T)
    r1, r5, r10 = (float((found < k).mean()) for k in (1, 5, 10))
    return Recall(r1, r5, r10)
