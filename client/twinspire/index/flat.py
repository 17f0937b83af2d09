"""Exact search by inner product, by FAISS.

FAISS searches the mapping of the vector file itself (`knn`, the kernel behind `IndexFlatIP`). So there is no second
copy of the vectors in memory, processes share one through the page cache, and a snapshot file would hold nothing that
the vector file does not: a flat index has none.

It is given blocks of rows that stay in the processor's cache while all queries pass over them: of 100,000 x 512, two
cores, one query takes 8 ms instead of 15 ms in one piece, 32 queries take 50 ms instead of 105 ms. float16 is decoded
block by block (34 ms and 86 ms). Threads of `parallel` take the blocks, not OpenMP's, which met after each block.

A filter that keeps few rows has them copied together; of one that keeps many FAISS passes over the rest. On the same:

    queries   kept     copied together   passed over
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

from twinspire.index.faiss_support import faiss_library
from twinspire.index.parallel import search_threads, shared
from twinspire.index.vectors import Vectors

Found = tuple[NDArray[np.float32], NDArray[np.int64]]
"""Scores and rows, each (Q, n), best first. A row of -1, with a score of -inf, is no hit."""
_BLOCK_BYTES = 8 << 20
_BLOCK_ROWS_A_HIT = 64  # at least, for each block's hits are merged with those before
_BLOCKS_A_THREAD = 4  # at least, so that a thread whose core is taken away does less
_SHARED_FROM = 1 << 23  # products, below which one thread is done in about a millisecond
_FEW_QUERIES = 8
# The share of rows kept below which they are copied together.
_GATHER_BELOW_FOR_FEW = 0.08
_GATHER_BELOW = 0.4


class _Block(NamedTuple):
    """Rows to search, all or those of a slice that `allowed` has True for."""

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
) -> Found:
    """Return scores and rows of the k best of `vectors` (N, D) for `queries` (Q, D), from row `start` up.

    Each is (Q, n), n the smaller of k and the rows searched. Best first; equal scores in the order of `order`
    (N,), which defaults to that of rows, at the cut as well. Where `allowed` (N,) is given, only rows that it has
    True for. Raises `MissingDependencyError` where FAISS is not installed.
    """
    faiss = faiss_library()
    count, dim = vectors.shape
    threads = search_threads() if len(queries) * (count - start) * dim >= _SHARED_FROM else 1
    fitting = _BLOCK_BYTES // (4 * dim)
    if threads > 1:
        fitting = min(fitting, (count - start) // (_BLOCKS_A_THREAD * threads))
    size = max(fitting, _BLOCK_ROWS_A_HIT * k)
    below = _GATHER_BELOW_FOR_FEW if len(queries) < _FEW_QUERIES else _GATHER_BELOW

    def best(blocks: Iterator[_Block]) -> Found:
        found: Found = (np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64))
        for block in blocks:
            rows = block.places()
            scores, places = _best(faiss, vectors, block, queries, k, order[rows] if order is not None else None)
            if found[0].shape[1] == k and bool((scores[:, 0] < found[0][:, -1]).all()):
                continue  # nothing here comes near
            found = merge([found, (scores, rows[places])], k, order)
        return found

    blocks = list(_blocks(count, allowed, start, size, below))
    parts = shared(blocks, best, max(1, min(threads, len(blocks))))
    return parts[0] if len(parts) == 1 else merge(parts, k, order)


def merge(parts: list[Found], k: int, order: NDArray[np.int64] | None = None) -> Found:
    """Return the k best of all `parts`, each of other rows, equal scores in the order of `order` or of rows."""
    scores = np.concatenate([part[0] for part in parts], axis=1)
    rows = np.concatenate([part[1] for part in parts], axis=1)
    keys = rows if order is None else np.where(rows >= 0, order[rows], -1)
    best = np.lexsort((keys, -scores), axis=1)[:, :k]
    return np.take_along_axis(scores, best, axis=1), np.take_along_axis(rows, best, axis=1)


def _blocks(
    count: int, allowed: NDArray[np.bool_] | None, start: int, size: int, gather_below: float
) -> Iterator[_Block]:
    """Yield the rows to search, `size` at a time, in order."""
    if allowed is not None:
        kept = np.flatnonzero(allowed[start:]) + start
        if len(kept) < gather_below * (count - start):
            for first in range(0, len(kept), size):
                rows = kept[first : first + size]
                yield _Block(rows, None, len(rows))
            return
    for first in range(start, count, size):
        last = min(first + size, count)
        mask = allowed[first:last] if allowed is not None else None
        some = last - first if mask is None else int(np.count_nonzero(mask))
        if some:
            yield _Block(slice(first, last), None if some == last - first else mask, some)


def _decoded(faiss: Any, vectors: Vectors) -> NDArray[np.float32]:  # noqa: ANN401
    if vectors.dtype == np.float32:
        return np.asarray(vectors)
    codes = np.ascontiguousarray(vectors).view(np.uint8)  # numpy's own conversion is ten times slower
    decoded: NDArray[np.float32] = faiss.ScalarQuantizer(vectors.shape[1], faiss.ScalarQuantizer.QT_fp16).decode(codes)
    return decoded


def _best(
    faiss: Any,  # noqa: ANN401
    vectors: Vectors,
    block: _Block,
    queries: NDArray[np.float32],
    k: int,
    order: NDArray[np.int64] | None,
) -> Found:
    """Return scores and places in the block of its k best."""
    some = _decoded(faiss, vectors[block.rows])
    k = min(k, block.kept)
    # Of several that tie for the last place FAISS keeps any. Look further until the tie is seen to end.
    reach = min(k + 1, block.kept)
    while True:
        scores, places = _knn(faiss, some, block.allowed, queries, reach)
        if reach == block.kept or bool((scores[:, -1] < scores[:, k - 1]).all()):
            break
        reach = min(2 * reach, block.kept)
    keys = places if order is None else order[places]
    best = np.lexsort((keys, -scores), axis=1)[:, :k]
    return np.take_along_axis(scores, best, axis=1), np.take_along_axis(places, best, axis=1)


def _knn(
    faiss: Any,  # noqa: ANN401
    vectors: NDArray[np.float32],
    allowed: NDArray[np.bool_] | None,
    queries: NDArray[np.float32],
    k: int,
) -> Found:
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
