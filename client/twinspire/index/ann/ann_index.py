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
from twinspire.index.flat import ScoredRows, best_first
from twinspire.index.vectors import Vectors

_OVERFETCH = 1.5  # times the results expected to be dropped by a filter that the family does not apply
_OUTGROWN = 4.0
_PARTS_PER_THREAD = 4  # so that a thread whose core is taken away does less
_RESCORED_BYTES = 16 << 20


class AnnIndex:
    """An index with exact scores, made by `build` and `read`.

    Any number of threads may search at once: options are passed with each call and never set on the index. `add` must
    not run beside searches.
    """

    def __init__(self, index: IndexFamily) -> None:
        self.index = index
        self.spec = index.spec

    @classmethod
    def build(cls, spec: IndexSpec, vectors: Vectors, *, threads: int | None = None, seed: int = 0) -> AnnIndex:
        """Build an index over `vectors`, (N, D), L2-normalised, with `threads` threads (default: one per core).

        Raises `InputError` where the spec does not suit the vectors, `MissingDependencyError` and `ProviderError` for
        a GPU's without one.
        """
        if spec.is_exact:
            raise InputError(f"{spec} is exact search over the vector file itself: there is nothing to build")
        spec.check(vectors.shape[1])
        spec.require_vectors(len(vectors))
        index = spec.family(spec, threads=thread_count(threads))
        index.build(vectors, seed=seed)
        return cls(index)

    @classmethod
    def read(cls, path: Path, spec: IndexSpec, *, threads: int | None = None) -> AnnIndex:
        """Read a file that `save` wrote. Raises `IndexStoreError` for another file."""
        spec.family.require()
        index = spec.family(spec, threads=thread_count(threads))
        index.load(path)
        return cls(index)

    def save(self, file: Sink) -> None:
        """Write the index to `file`."""
        self.index.save(file)

    def __len__(self) -> int:
        """Return how many rows it covers."""
        return len(self.index)

    def is_outgrown(self, count: int) -> bool:
        """Whether it was trained for so much fewer vectors than `count` that it should be rebuilt."""
        lists, wanted = self.index.lists, self.spec.family.list_count(self.spec, count)
        return lists is not None and wanted is not None and wanted >= _OUTGROWN * lists

    def add(self, vectors: Vectors) -> None:
        """Append `vectors`, (N, D), as the rows that follow."""
        self.index.add(vectors)

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
        candidates = min(k * factor if self.spec.is_lossy else k, max(1, len(self)))
        if selection is not None:
            share = max(selection.share, 1e-6)
            effort = min(self.index.maximum_effort, math.ceil(effort / share))
            if not family.filters:
                candidates = min(math.ceil(candidates * _OVERFETCH / share), len(self))
        if family.maximum_results is not None:
            candidates = min(candidates, family.maximum_results)
        parameters = SearchParameters(k, candidates, effort, selection)
        scores = np.full((len(queries), k), -np.inf, np.float32)
        rows = np.full((len(queries), k), -1, np.int64)

        def find(parts: Iterable[slice]) -> None:
            for part in parts:
                found = self._candidates(queries[part], parameters, vectors)
                best_scores, best_rows = _best(*found, k)
                scores[part, : best_rows.shape[1]], rows[part, : best_rows.shape[1]] = best_scores, best_rows

        if family.splits_queries:
            threads = min(search_threads(), len(queries))
            share_tasks(self._parts(len(queries), threads), find, threads)
        else:
            find([slice(None)])
        return scores, rows

    def _parts(self, count: int, threads: int) -> Iterable[slice]:
        """Cut `count` queries into parts for `threads` threads."""
        whole = threads == 1 or (self.spec.code is not None and self.spec.code.scans_all_queries)
        size = max(1, math.ceil(count / (threads if whole else _PARTS_PER_THREAD * threads)))
        return (slice(start, min(start + size, count)) for start in range(0, count, size))

    def _candidates(self, queries: NDArray[np.float32], parameters: SearchParameters, vectors: Vectors) -> ScoredRows:
        """Return candidates (Q, n) that are selected, with exact scores; -inf for row -1."""
        scores, rows = self.index.search(queries, parameters)
        if parameters.selection is not None and not self.spec.family.filters:
            rows = np.where((rows >= 0) & parameters.selection.mask[rows], rows, -1)
        if self.spec.is_lossy and not self.spec.family.rescores_itself:
            scores = _rescored(vectors, queries, rows)
        return np.where(rows < 0, np.float32(-np.inf), scores), rows


def _rescored(vectors: Vectors, queries: NDArray[np.float32], rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return the inner products of `queries` (Q, D) with `vectors` (N, D) at `rows` (Q, n): (Q, n).

    float32 is read where it lies, in the mapping of the vector file; float16 is copied in blocks.
    """
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


def _best(scores: NDArray[np.float32], rows: NDArray[np.int64], k: int) -> ScoredRows:
    """Return the k best candidates, best first, equal scores in the order of rows."""
    if scores.shape[1] > 4 * k:  # sorting all takes longer than cutting and sorting the rest
        cut = np.argpartition(-scores, k - 1, axis=1)[:, :k]
        edge = np.take_along_axis(scores, cut, axis=1).min(axis=1, keepdims=True)
        if bool(((scores >= edge).sum(axis=1) <= k).all()):  # nothing ties for the last place
            scores, rows = np.take_along_axis(scores, cut, axis=1), np.take_along_axis(rows, cut, axis=1)
    return best_first(scores, rows, rows, k)
