"""Exact search by inner product, by FAISS.

FAISS searches the mapping of the vector file itself (`faiss.knn`, the kernel behind `IndexFlatIP`, same
results at the same speed). So there is no second copy of the vectors in memory, processes share one through
the page cache, and a snapshot file would hold nothing that the vector file does not: a flat index has none.
Rows that are picked, and float16, are copied block by block into a buffer that fits the processor's cache.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from twinspire.errors import MissingDependencyError
from twinspire.index.vectors import Vectors

Found = tuple[NDArray[np.float32], NDArray[np.int64]]
"""Scores and rows, each (Q, n), best first. A row of -1, with a score of -inf, is no hit."""
_BLOCK_BYTES = 4 << 20


def nearest(
    vectors: Vectors,
    queries: NDArray[np.float32],
    k: int,
    *,
    allowed: NDArray[np.bool_] | None = None,
    order: NDArray[np.int64] | None = None,
    start: int = 0,
) -> Found:
    """Return scores and rows of the k best of `vectors` (N, D) for `queries` (Q, D), from row `start` up.

    Each is (Q, n), n the smaller of k and the rows searched. Best first; equal scores in the order of `order`
    (N,), which defaults to that of rows, at the cut as well. Where `allowed` (N,) is given, only rows that it has
    True for. Raises `MissingDependencyError` where FAISS is not installed.
    """
    if allowed is not None:
        rows = np.flatnonzero(allowed[start:]) + start
        return _nearest_of(vectors, queries, k, rows, order)
    if vectors.dtype != np.float32:
        return _nearest_of(vectors, queries, k, np.arange(start, len(vectors)), order)
    part = vectors[start:]
    scores, places = _best(part, queries, k, order[start : len(vectors)] if order is not None else None)
    return scores, places + start


def merge(parts: list[Found], k: int, order: NDArray[np.int64] | None = None) -> Found:
    """Return the k best of all `parts`, each of other rows, equal scores in the order of `order` or of rows."""
    scores = np.concatenate([part[0] for part in parts], axis=1)
    rows = np.concatenate([part[1] for part in parts], axis=1)
    keys = rows if order is None else np.where(rows >= 0, order[rows], -1)
    best = np.lexsort((keys, -scores), axis=1)[:, :k]
    return np.take_along_axis(scores, best, axis=1), np.take_along_axis(rows, best, axis=1)


def _nearest_of(
    vectors: Vectors, queries: NDArray[np.float32], k: int, rows: NDArray[np.int64], order: NDArray[np.int64] | None
) -> Found:
    """Search the vectors at `rows`, block by block."""
    size = max(256, _BLOCK_BYTES // (4 * vectors.shape[1]))
    found: Found = (np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64))
    for first in range(0, len(rows), size):
        some = rows[first : first + size]
        block = np.ascontiguousarray(vectors[some], dtype=np.float32)
        scores, places = _best(block, queries, k, order[some] if order is not None else None)
        found = merge([found, (scores, some[places])], k, order)
    return found


def _best(vectors: Vectors, queries: NDArray[np.float32], k: int, order: NDArray[np.int64] | None) -> Found:
    faiss = _faiss()
    count = len(vectors)
    k = min(k, count)
    if k == 0:
        return np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
    # Of several that tie for the last place FAISS keeps any. Look further until the tie is seen to end.
    reach = min(k + 1, count)
    while True:
        scores, places = faiss.knn(queries, vectors, reach, metric=faiss.METRIC_INNER_PRODUCT)
        if reach == count or bool((scores[:, -1] < scores[:, k - 1]).all()):
            break
        reach = min(2 * reach, count)
    keys = places if order is None else order[places]
    best = np.lexsort((keys, -scores), axis=1)[:, :k]
    return np.take_along_axis(scores, best, axis=1), np.take_along_axis(places, best, axis=1)


def _faiss() -> Any:  # noqa: ANN401  FAISS ships no types
    try:
        import faiss
    except ModuleNotFoundError as error:
        if error.name != "faiss":
            raise
        raise MissingDependencyError("faiss-cpu", "cpu", "searching an index") from error
    return faiss
