"""Exact search by inner product, by FAISS.

FAISS searches the mapping of the vector file itself (`knn`, the kernel behind `IndexFlatIP`). So there is no second
copy of the vectors in memory, processes share one through the page cache, and exact search needs no snapshot file.

Rows are searched in blocks that stay in the processor's cache while all queries pass over them: of 100,000 x 512, two
cores, one query takes 8 ms instead of 15 ms in one piece, 32 queries take 50 ms instead of 105 ms. float16 is decoded
block by block (34 ms and 86 ms). Our own threads take the blocks, not OpenMP's, which synchronise after each block.

Rows that a filter keeps are copied together where they are few; otherwise FAISS skips the others. On the same vectors:

    queries   kept     copied together     skipped
    1          1%          0.2 ms           1.4 ms
    1         10%          4.4 ms           3.5 ms
    1         90%           21 ms            11 ms
    32         1%          0.9 ms           5.8 ms
    32        30%           28 ms            31 ms
    32        90%           68 ms            58 ms
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from twinspire.index.faiss_support import faiss_library, search_threads, share_tasks
from twinspire.index.vectors import Vectors
from twinspire.similarity import vectors_per_item

ScoredRows = tuple[NDArray[np.float32], NDArray[np.int64]]
"""Scores and rows, each (Q, n), best first. A row of -1, with a score of -inf, is no result."""
_BLOCK_BYTES = 8 << 20
_MINIMUM_ROWS_PER_RESULT = 64  # of a block, since its results are merged with those before
_MINIMUM_BLOCKS_PER_THREAD = 4  # so that a thread whose core is taken away does less
_SHARED_FROM = 1 << 23  # multiplications: one thread does fewer in about a millisecond
_FEW_QUERIES = 8
# Share of rows kept below which they are copied together.
_COPY_BELOW_FOR_FEW = 0.08
_COPY_BELOW = 0.4


class _Block(NamedTuple):
    """Rows to search: all of them, or those of a slice for which `allowed` is True."""

    rows: NDArray[np.int64] | slice
    allowed: NDArray[np.bool_] | None
    kept: int

    def places(self) -> NDArray[np.int64]:
        """Return the row at each place of the block."""
        return np.arange(self.rows.start, self.rows.stop) if isinstance(self.rows, slice) else self.rows


def nearest(
    vectors: Vectors,
    queries: NDArray[np.float32],
    k: int,
    *,
    allowed: NDArray[np.bool_] | None = None,
    order: NDArray[np.int64] | None = None,
    start: int = 0,
) -> ScoredRows:
    """Return scores and rows of the k best of `vectors` (N, D) for `queries` (Q, D), from row `start` up.

    Of items with several vectors, (N, V, D), the score is the largest of their inner products. Scores and rows are
    (Q, n), n the smaller of k and the number of rows searched. Best first; equal scores in the order of
    `order` (N,), by default that of rows, also where some of them are cut off. With `allowed` (N,), only rows for which
    it is True. Raises `MissingDependencyError` where FAISS is not installed.
    """
    faiss = faiss_library()
    count, several = len(vectors), vectors_per_item(vectors)
    numbers = several * vectors.shape[-1]  # of a row
    threads = search_threads() if len(queries) * (count - start) * numbers >= _SHARED_FROM else 1
    fitting = _BLOCK_BYTES // (4 * numbers)
    if threads > 1:
        fitting = min(fitting, (count - start) // (_MINIMUM_BLOCKS_PER_THREAD * threads))
    size = max(fitting, _MINIMUM_ROWS_PER_RESULT * k // several, 1)
    below = _COPY_BELOW_FOR_FEW if len(queries) < _FEW_QUERIES else _COPY_BELOW

    def best(blocks: Iterator[_Block]) -> ScoredRows:
        found: ScoredRows = (np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64))
        for block in blocks:
            rows = block.places()
            scores, places = _best(faiss, vectors, block, queries, k, order[rows] if order is not None else None)
            if found[0].shape[1] == k and bool((scores[:, 0] < found[0][:, -1]).all()):
                continue  # all of it scores below the k best so far
            found = merge([found, (scores, rows[places])], k, order)
        return found

    blocks = list(_blocks(count, allowed, start, size, below))
    parts = share_tasks(blocks, best, max(1, min(threads, len(blocks))))
    return parts[0] if len(parts) == 1 else merge(parts, k, order)


def merge_queries(
    found: ScoredRows, vectors_per_query: int, k: int, order: NDArray[np.int64] | None = None
) -> ScoredRows:
    """Return the k best rows of each query of several vectors by the best score that a row has for one of them.

    `found` has the k best rows for each vector, (M * P, n), the vectors of a query one after the other.
    """
    queries = len(found[0]) // vectors_per_query
    scores, rows = found[0].reshape(queries, -1), found[1].reshape(queries, -1)  # (M, P * n)
    by_row = np.lexsort((-scores, rows), axis=1)
    scores, rows = np.take_along_axis(scores, by_row, axis=1), np.take_along_axis(rows, by_row, axis=1)
    again = np.zeros(rows.shape, np.bool_)
    again[:, 1:] = rows[:, 1:] == rows[:, :-1]
    scores[again], rows[again] = -np.inf, -1
    keys = rows if order is None else np.where(rows >= 0, order[rows], -1)
    return best_first(scores, rows, keys, k)


def merge(parts: list[ScoredRows], k: int, order: NDArray[np.int64] | None = None) -> ScoredRows:
    """Return the k best of `parts`, which have no row in common; equal scores in the order of `order` or of rows."""
    scores = np.concatenate([part[0] for part in parts], axis=1)
    rows = np.concatenate([part[1] for part in parts], axis=1)
    keys = rows if order is None else np.where(rows >= 0, order[rows], -1)
    return best_first(scores, rows, keys, k)


def cut_best_first(scores: NDArray[np.float32], rows: NDArray[np.int64], keys: NDArray[np.int64], k: int) -> ScoredRows:
    """Return what `best_first` does, faster where only a small part of many is kept."""
    if scores.shape[1] > 4 * k:  # sorting all takes longer than cutting and sorting the rest
        cut = np.argpartition(-scores, k - 1, axis=1)[:, :k]
        edge = np.take_along_axis(scores, cut, axis=1).min(axis=1, keepdims=True)
        if bool(((scores >= edge).sum(axis=1) <= k).all()):  # nothing ties for the last place
            scores = np.take_along_axis(scores, cut, axis=1)
            rows, keys = np.take_along_axis(rows, cut, axis=1), np.take_along_axis(keys, cut, axis=1)
    return best_first(scores, rows, keys, k)


def best_first(scores: NDArray[np.float32], rows: NDArray[np.int64], keys: NDArray[np.int64], k: int) -> ScoredRows:
    """Return the k best of `scores` and `rows`, (Q, n) each, best first; equal scores in the order of `keys` (Q, n)."""
    best = np.lexsort((keys, -scores), axis=1)[:, :k]
    return np.take_along_axis(scores, best, axis=1), np.take_along_axis(rows, best, axis=1)


def _blocks(
    count: int, allowed: NDArray[np.bool_] | None, start: int, size: int, copy_below: float
) -> Iterator[_Block]:
    """Yield the rows to search, `size` at a time, in order."""
    if allowed is not None:
        kept = np.flatnonzero(allowed[start:]) + start
        if len(kept) < copy_below * (count - start):
            for first in range(0, len(kept), size):
                rows = kept[first : first + size]
                yield _Block(rows, None, len(rows))
            return
    for first in range(start, count, size):
        last = min(first + size, count)
        mask = allowed[first:last] if allowed is not None else None
        kept_here = last - first if mask is None else int(np.count_nonzero(mask))
        if kept_here:
            yield _Block(slice(first, last), None if kept_here == last - first else mask, kept_here)


def _decoded(faiss: Any, vectors: Vectors) -> NDArray[np.float32]:  # noqa: ANN401
    if vectors.dtype == np.float32:
        return np.asarray(vectors)
    dim = vectors.shape[-1]
    codes = np.ascontiguousarray(vectors).reshape(-1, dim).view(np.uint8)  # NumPy's conversion takes ten times as long
    decoded: NDArray[np.float32] = faiss.ScalarQuantizer(dim, faiss.ScalarQuantizer.QT_fp16).decode(codes)
    return decoded.reshape(vectors.shape)


def _best(
    faiss: Any,  # noqa: ANN401
    vectors: Vectors,
    block: _Block,
    queries: NDArray[np.float32],
    k: int,
    order: NDArray[np.int64] | None,
) -> ScoredRows:
    """Return scores and places in the block of its k best."""
    decoded = _decoded(faiss, vectors[block.rows])
    k = min(k, block.kept)
    if decoded.ndim == 3:
        return _best_items(faiss, decoded, block.allowed, queries, k, order)
    # FAISS keeps any of several that tie for the last place: ask for more until the tie ends.
    count = min(k + 1, block.kept)
    while True:
        scores, places = _knn(faiss, decoded, block.allowed, queries, count)
        if count == block.kept or bool((scores[:, -1] < scores[:, k - 1]).all()):
            break
        count = min(2 * count, block.kept)
    return best_first(scores, places, places if order is None else order[places], k)


def _best_items(
    faiss: Any,  # noqa: ANN401
    vectors: NDArray[np.float32],
    allowed: NDArray[np.bool_] | None,
    queries: NDArray[np.float32],
    k: int,
    order: NDArray[np.int64] | None,
) -> ScoredRows:
    """Return scores and places of the k best items of `vectors` (n, V, D), of which `allowed` (n,) has k or more.

    All inner products of a block are computed by FAISS's kernel for one query, whose sums do not depend on the place of
    a vector: equal items tie.
    """
    count, several, dim = vectors.shape
    scores = np.empty((len(queries), count), np.float32)
    products = np.empty((count, several), np.float32)
    flat = np.ascontiguousarray(vectors)
    for query, row in zip(np.ascontiguousarray(queries), scores, strict=True):
        faiss.fvec_inner_products_ny(*map(faiss.swig_ptr, (products, query, flat)), dim, count * several)
        products.max(axis=1, out=row)
    if allowed is not None:
        scores[:, ~allowed] = -np.inf
    places = np.broadcast_to(np.arange(count), scores.shape)
    keys = places if order is None else np.broadcast_to(order, scores.shape)
    return cut_best_first(scores, places, keys, k)


def _knn(
    faiss: Any,  # noqa: ANN401
    vectors: NDArray[np.float32],
    allowed: NDArray[np.bool_] | None,
    queries: NDArray[np.float32],
    k: int,
) -> ScoredRows:
    if allowed is None:
        scores, places = faiss.knn(queries, vectors, k, metric=faiss.METRIC_INNER_PRODUCT)
        return scores, places
    scores = np.empty((len(queries), k), np.float32)
    places = np.empty((len(queries), k), np.int64)
    bits = np.packbits(allowed, bitorder="little")
    # `faiss.knn` takes no selector; the function behind it does.
    faiss.knn_inner_product(
        faiss.swig_ptr(queries),
        faiss.swig_ptr(vectors),
        queries.shape[1],
        len(queries),
        len(vectors),
        k,
        faiss.swig_ptr(scores),
        faiss.swig_ptr(places),
        faiss.IDSelectorBitmap(bits),
    )
    return scores, places
