"""Exact scores for candidates, from the vectors themselves."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from twinspire.index.ann.faiss_support import faiss_library
from twinspire.index.flat import Found
from twinspire.index.vectors import Vectors

_BLOCK_BYTES = 16 << 20


def rescored(vectors: Vectors, queries: NDArray[np.float32], rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return the inner products of `queries` (Q, D) with `vectors` (N, D) at `rows` (Q, n): (Q, n); -inf for row -1.

    float32 is read where it lies, in the mapping of the vector file; float16 is copied in blocks.
    """
    faiss = faiss_library()
    count, wanted = rows.shape
    if vectors.dtype == np.float32:
        scores = np.empty(rows.shape, np.float32)
        rows = np.ascontiguousarray(rows)
        faiss.fvec_inner_products_by_idx(
            *map(faiss.swig_ptr, (scores, queries, vectors, rows)), queries.shape[1], count, wanted
        )
    else:
        scores = np.empty(rows.shape, np.float32)
        step = max(1, _BLOCK_BYTES // max(1, 4 * wanted * queries.shape[1]))
        for start in range(0, count, step):
            some = vectors[rows[start : start + step]].astype(np.float32)  # (step, n, D)
            scores[start : start + step] = np.einsum("qnd,qd->qn", some, queries[start : start + step], optimize=True)
    scores[rows < 0] = -np.inf
    return scores


def best(scores: NDArray[np.float32], rows: NDArray[np.int64], k: int) -> Found:
    """Return the k best of what was found, best first, equal scores in the order of rows."""
    if scores.shape[1] > 4 * k:  # a sort of all is dearer than a cut and a sort of the rest
        cut = np.argpartition(-scores, k - 1, axis=1)[:, :k]
        edge = np.take_along_axis(scores, cut, axis=1).min(axis=1, keepdims=True)
        if bool(((scores >= edge).sum(axis=1) <= k).all()):  # nothing ties for the last place
            scores, rows = np.take_along_axis(scores, cut, axis=1), np.take_along_axis(rows, cut, axis=1)
    order = np.lexsort((rows, -scores), axis=1)[:, :k]
    return np.take_along_axis(scores, order, axis=1), np.take_along_axis(rows, order, axis=1)
