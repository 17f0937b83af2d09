"""Exact search by inner product, by FAISS.

FAISS searches the mapping of the vector file itself (`faiss.knn`, the kernel behind `IndexFlatIP`, same
results at the same speed). So there is no second copy of the vectors in memory, processes share one through
the page cache, and a snapshot file would hold nothing that the vector file does not: a flat index has none.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from twinspire.errors import MissingDependencyError


def nearest(
    vectors: NDArray[np.float32], queries: NDArray[np.float32], k: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return scores and rows of the k best of `vectors` (N, D) for `queries` (Q, D), each (Q, min(k, N)).

    Best first; equal scores in the order of rows, at the cut as well.
    Raises `MissingDependencyError` where FAISS is not installed.
    """
    faiss = _faiss()
    count = len(vectors)
    k = min(k, count)
    # Of several that tie for the last place FAISS keeps any. Look further until the tie is seen to end.
    reach = min(k + 1, count)
    while True:
        scores, rows = faiss.knn(queries, vectors, reach, metric=faiss.METRIC_INNER_PRODUCT)
        if reach == count or bool((scores[:, -1] < scores[:, k - 1]).all()):
            break
        reach = min(2 * reach, count)
    order = np.lexsort((rows, -scores), axis=1)[:, :k]
    return np.take_along_axis(scores, order, axis=1), np.take_along_axis(rows, order, axis=1)


def _faiss() -> Any:  # noqa: ANN401  FAISS ships no types
    try:
        import faiss
    except ModuleNotFoundError as error:
        if error.name != "faiss":
            raise
        raise MissingDependencyError("faiss-cpu", "cpu", "searching an index") from error
    return faiss
