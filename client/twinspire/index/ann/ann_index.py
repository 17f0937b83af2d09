"""Approximate search over the first rows of a vector file, by an index of any family."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from twinspire._cores import thread_count
from twinspire.errors import InputError
from twinspire.index.ann.family import IndexFamily, IndexSpec, SearchParameters, Selection, Sink
from twinspire.index.faiss_support import faiss_library, search_threads, share_tasks
from twinspire.index.flat import ScoredRows, cut_best_first
from twinspire.index.vectors import Vectors
from twinspire.similarity import vectors_per_item

_OVERFETCH = 1.5  # times the results expected to be dropped by a filter that the family does not apply
_RESULTS_OF_EFFORT = 10  # that an effort in candidates is for
_OUTGROWN = 4.0
_PARTS_PER_THREAD = 4  # so that a thread whose core is taken away does less
_CANDIDATES_AT_ONCE = 1 << 19  # of a part's queries together; each takes about 50 bytes until it is rescored
_RESCORED_BYTES = 16 << 20
_MINIMUM_FACTOR_OF_SEVERAL = 3
"""Items of several vectors that are rescored per result at least: the best vector of an item may not have been found,
as where it is in another list, so that others seem better."""


class AnnIndex:
    """An index with exact scores, made by `build` and `read`.

    Its rows are items. Where they have V vectors, (N, V, D), the family holds N * V vectors, those of an item one after
    the other; the items of V times as many candidates are rescored by the largest inner product of all their vectors.
    So k results have k items to choose from at least, whichever vectors are found first. Any number of threads may
    search at once: options are passed with each call and never set on the index. `add` must not run beside searches.
    """

    def __init__(self, index: IndexFamily, vectors_per_item: int = 1) -> None:
        self.index = index
        self.spec = index.spec
        self.vectors_per_item = vectors_per_item

    @classmethod
    def build(cls, spec: IndexSpec, vectors: Vectors, *, threads: int | None = None, seed: int = 0) -> AnnIndex:
        """Build an index over `vectors`, (N, D) or (N, V, D), L2-normalised, with `threads` threads (one per core).

        Raises `InputError` where the spec does not suit the vectors, `MissingDependencyError` and `ProviderError` for
        a GPU's without one.
        """
        if spec.is_exact:
            raise InputError(f"{spec} is exact search over the vector file itself: there is nothing to build")
        flat, several = _flat(vectors), vectors_per_item(vectors)
        if several > 1 and (spec.family.rescores_itself or not spec.family.takes_several):
            raise InputError(
                f"an index {spec} cannot search items of {several} vectors each: build one of the processor's kinds, "
                "such as ivf,sq8 or hnsw"
            )
        spec.check(flat.shape[1])
        spec.require_vectors(len(flat))
        index = spec.family(spec, threads=thread_count(threads))
        index.build(flat, seed=seed)
        return cls(index, several)

    @classmethod
    def read(cls, path: Path, spec: IndexSpec, *, threads: int | None = None, vectors_per_item: int = 1) -> AnnIndex:
        """Read a file that `save` wrote. Raises `IndexStoreError` for another file."""
        spec.family.require()
        index = spec.family(spec, threads=thread_count(threads))
        index.load(path)
        return cls(index, vectors_per_item)

    def save(self, file: Sink) -> None:
        """Write the index to `file`."""
        self.index.save(file)

    def __len__(self) -> int:
        """Return how many rows it covers."""
        return len(self.index) // self.vectors_per_item

    def is_outgrown(self, count: int) -> bool:
        """Whether it was trained for so much fewer rows than `count` that it should be rebuilt."""
        lists, wanted = self.index.lists, self.spec.family.list_count(self.spec, count * self.vectors_per_item)
        return lists is not None and wanted is not None and wanted >= _OUTGROWN * lists

    def add(self, vectors: Vectors) -> None:
        """Append `vectors`, (N, D) or (N, V, D), as the rows that follow."""
        self.index.add(_flat(vectors))

    def search(
        self,
        queries: NDArray[np.float32],
        k: int,
        vectors: Vectors,
        *,
        selection: Selection | None = None,
        effort: int | None = None,
        rescore_factor: int | None = None,
    ) -> ScoredRows:
        """Return scores and rows of about the k best for `queries` (Q, D), each (Q, k).

        `vectors` are those it was built from, or more: candidates of coded indexes are rescored there. Best first,
        equal scores in the order of rows, -1 for no row. Only rows of `selection` are returned; where it is a small
        share, more effort is made. `rescore_factor` is the number of candidates to rescore per result.
        """
        family = self.spec.family
        effort = self.index.default_effort if effort is None else min(effort, self.index.maximum_effort)
        factor = self.spec.default_rescore_factor if rescore_factor is None else rescore_factor
        several = self.vectors_per_item
        wanted = k * factor if self.spec.is_lossy else k
        if family.effort_is_candidates:
            wanted = max(k, math.ceil(effort * max(1, k / _RESULTS_OF_EFFORT)))
        if several > 1:
            wanted = max(wanted, k * max(factor, _MINIMUM_FACTOR_OF_SEVERAL))
        candidates = min(wanted * several, max(1, len(self.index)))
        if selection is not None:
            share = max(selection.share, 1e-6)
            effort = min(self.index.maximum_effort, math.ceil(effort / share))
            if not family.filters:
                candidates = min(math.ceil(candidates * _OVERFETCH / share), len(self.index))
        if family.maximum_results is not None:
            candidates = min(candidates, family.maximum_results)
        parameters = SearchParameters(k, candidates, effort, selection)
        scores = np.full((len(queries), k), -np.inf, np.float32)
        rows = np.full((len(queries), k), -1, np.int64)

        def find(parts: Iterable[slice]) -> None:
            for part in parts:
                found_scores, found_rows = self._candidates(queries[part], parameters, vectors, wanted)
                best_scores, best_rows = cut_best_first(found_scores, found_rows, found_rows, k)
                scores[part, : best_rows.shape[1]], rows[part, : best_rows.shape[1]] = best_scores, best_rows

        if family.splits_queries:
            threads = min(search_threads(), len(queries))
            share_tasks(self._parts(len(queries), candidates, threads), find, threads)
        else:
            find([slice(None)])
        return scores, rows

    def _parts(self, count: int, candidates: int, threads: int) -> Iterable[slice]:
        """Cut `count` queries, with `candidates` candidates each, into parts for `threads` threads."""
        whole = threads == 1 or (self.spec.code is not None and self.spec.code.scans_all_queries)
        size = math.ceil(count / (threads if whole else _PARTS_PER_THREAD * threads))
        size = max(1, min(size, _CANDIDATES_AT_ONCE // candidates))
        return (slice(start, min(start + size, count)) for start in range(0, count, size))

    def _candidates(
        self, queries: NDArray[np.float32], parameters: SearchParameters, vectors: Vectors, wanted: int
    ) -> ScoredRows:
        """Return candidates (Q, n) that are selected, with exact scores; -inf for row -1.

        Of items with several vectors, the `wanted` that were found first.
        """
        scores, rows = self.index.search(queries, parameters)
        several = self.vectors_per_item
        if several > 1:
            rows = rows // several  # -1 stays -1
        if parameters.selection is not None and not self.spec.family.filters:
            rows = np.where((rows >= 0) & parameters.selection.mask[rows], rows, -1)
        if several > 1:
            rows = _first_of_each(rows, wanted)
        if several > 1 or (self.spec.is_lossy and not self.spec.family.rescores_itself):
            scores = _rescored(vectors, queries, rows)
        return np.where(rows < 0, np.float32(-np.inf), scores), rows


def _flat(vectors: Vectors) -> Vectors:
    """Return (N, D) or (N, V, D) as (N * V, D), without a copy."""
    return vectors.reshape(-1, vectors.shape[-1])


def _first_of_each(rows: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Return the first `count` different ones of each of `rows` (Q, n), in their order; -1 where there are fewer."""
    by_row = np.argsort(rows, axis=1, kind="stable")
    ordered = np.take_along_axis(rows, by_row, axis=1)
    is_first = np.ones(rows.shape, np.bool_)
    is_first[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    kept = np.full(rows.shape, -1, np.int64)
    np.put_along_axis(kept, by_row, np.where(is_first, ordered, -1), axis=1)
    front = np.argsort(kept < 0, axis=1, kind="stable")[:, :count]
    return np.take_along_axis(kept, front, axis=1)


def _rescored(vectors: Vectors, queries: NDArray[np.float32], rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return the similarity of `queries` (Q, D) and `vectors`, (N, D) or (N, V, D), at `rows` (Q, n): (Q, n).

    float32 is read where it lies, in the mapping of the vector file; float16 is copied in blocks.
    """
    if vectors.ndim == 3:
        several = vectors.shape[1]
        places = np.where(rows < 0, -several, rows * several)[:, :, None] + np.arange(several)  # (Q, n, V)
        products = _rescored(_flat(vectors), queries, places.reshape(len(rows), -1))
        best: NDArray[np.float32] = products.reshape(places.shape).max(axis=2)
        return best
    count, candidates = rows.shape
    scores = np.empty(rows.shape, np.float32)
    if vectors.dtype == np.float32:
        faiss, rows = faiss_library(), np.ascontiguousarray(rows)
        faiss.fvec_inner_products_by_idx(
            *map(faiss.swig_ptr, (scores, queries, vectors, rows)), queries.shape[1], count, candidates
        )
        return scores
    step = max(1, _RESCORED_BYTES // max(1, 4 * candidates * queries.shape[1]))
    for start in range(0, count, step):
        part = vectors[rows[start : start + step]].astype(np.float32)  # (step, n, D)
        scores[start : start + step] = np.einsum("qnd,qd->qn", part, queries[start : start + step], optimize=True)
    return scores
