"""An index of some kind over the first rows of a vector file: built, extended, searched, written and read."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twinspire.errors import IndexStoreError, InputError
from twinspire.index.ann.batching import GatheringThread
from twinspire.index.ann.coarse import ListRanking
from twinspire.index.ann.factory import fill, trained
from twinspire.index.ann.faiss_support import checked_threads, faiss_library, require_gpu
from twinspire.index.ann.gpu import MOST_RESULTS, built_on_gpu, gpu_searcher
from twinspire.index.ann.rescoring import best, rescored
from twinspire.index.ann.selection import Selection
from twinspire.index.ann.spec import Family, IndexSpec, Scheme
from twinspire.index.faiss_support import computed
from twinspire.index.flat import Found
from twinspire.index.parallel import search_threads, shared
from twinspire.index.vectors import Vectors

_PIECE_BYTES = 1 << 20
_GREATEST_SHARE = 1.5  # of the results wanted, which a GPU is asked for more where rows are left out
_GROWN = 4.0
_PARTS_A_THREAD = 4  # so that one whose core is taken away does less


class AnnIndex:
    """An index of one kind. Rows count from 0, as they lie in the vector file. Made by `build` and `read`.

    Searches may run side by side in any number of threads: what they ask for is passed with each call and never set on
    the index. `add` may not run beside them.
    """

    def __init__(self, kind: IndexSpec, index: Any) -> None:  # noqa: ANN401
        self.kind = kind
        self._index = index
        self._ranking = None if kind.family.needs_gpu else ListRanking.of(index)
        self._owner: GatheringThread | None = None
        if kind.family.needs_gpu:
            self._owner = gpu_searcher(kind, index)
            weakref.finalize(self, self._owner.end)  # when the last search that has it is done

    @classmethod
    def build(cls, kind: IndexSpec, vectors: Vectors, *, threads: int | None = None, seed: int = 0) -> AnnIndex:
        """Build an index of `kind` over `vectors`, (N, D), L2-normalised, by so many threads (all cores).

        Equal seeds, threads and vectors give the same index but for the order in which threads add to a graph. Raises
        `InputError` where the kind does not suit the vectors, `MissingDependencyError` and `ProviderError` for
        a GPU's without one.
        """
        if kind.family is Family.AUTO or kind.is_exact:
            raise InputError(f"the kind {kind} is nothing to build: exact search reads the vector file itself")
        kind.check(vectors.shape[1])

        def built() -> Any:  # noqa: ANN401
            if kind.family.needs_gpu:
                return built_on_gpu(kind, vectors, seed)
            index = trained(kind, vectors, seed)
            fill(index, vectors)
            return index

        return cls(kind, computed(built, checked_threads(threads)))

    @classmethod
    def read(cls, path: Path, kind: IndexSpec) -> AnnIndex:
        """Read a file of what `write` gave, whose checksum is right. Raises `IndexStoreError` for what is none."""
        if kind.family.needs_gpu:
            require_gpu(kind)
        try:
            index = faiss_library().read_index(str(path))
        except RuntimeError as error:
            raise IndexStoreError(f"{path} holds no index of kind {kind}: {error}") from error
        return cls(kind, index)

    def write(self, take: Callable[[bytes], int]) -> None:
        """Give what has to be stored to `take`, piece by piece; it returns how many bytes it took, all of them."""
        faiss = faiss_library()
        faiss.write_index(self._index, faiss.PyCallbackIOWriter(take, _PIECE_BYTES))

    def __len__(self) -> int:
        """How many rows it covers."""
        return int(self._index.ntotal)

    @property
    def most_effort(self) -> int:
        """The effort that finds the most: all lists, or a search as broad as the index, within a GPU's limit."""
        lists = self.lists
        most = max(1, len(self)) if lists is None else lists
        return min(most, MOST_RESULTS) if self.kind.family.needs_gpu else most

    @property
    def usual_effort(self) -> int:
        """The effort of a search that says nothing: a 32nd of the lists, or a breadth of 64."""
        lists = self.lists
        return 64 if lists is None else max(1, min(lists, max(8, lists // 32)))

    @property
    def usual_reach(self) -> int:
        """How many candidates there are for each result wanted, if nothing is said; they are scored again."""
        return usual_reach(self.kind)

    def outgrown(self, count: int) -> bool:
        """Whether it was trained for so much fewer vectors than `count` that it should be built anew."""
        lists = self.lists
        return lists is not None and self.kind.nlist is None and self.kind.lists(count) >= _GROWN * lists

    def add(self, vectors: Vectors) -> None:
        """Append `vectors`, (N, D), as the rows that follow. Not while it is searched."""
        assert self._owner is None, "a GPU's is built anew"
        computed(lambda: fill(self._index, vectors), checked_threads(None))

    def search(
        self,
        queries: NDArray[np.float32],
        k: int,
        vectors: Vectors,
        *,
        selection: Selection | None = None,
        effort: int | None = None,
        reach: int | None = None,
    ) -> Found:
        """Return scores and rows of about the k best for `queries` (Q, D), each (Q, k).

        `vectors` are those it was built from, or more: coded kinds read their candidates' exact scores there. Best
        first, equal scores in the order of rows, -1 for no row. Only rows that `selection` keeps are found; where
        it keeps a small share, more effort is made. `effort` is how many lists are looked at, or how broad a
        graph is searched; `reach` how many candidates are scored again for each result.
        """
        effort = self.usual_effort if effort is None else min(effort, self.most_effort)
        reach = self.usual_reach if reach is None else reach
        wanted = min(k * reach if self.kind.is_lossy else k, max(1, len(self)))
        if selection is not None:
            effort = min(self.most_effort, math.ceil(effort / max(selection.share, 1e-6)))
        scores = np.full((len(queries), k), -np.inf, np.float32)
        rows = np.full((len(queries), k), -1, np.int64)

        def find(slices: Iterator[slice]) -> None:
            for some in slices:
                found = self._candidates(queries[some], wanted, selection, effort)
                if self.kind.is_lossy:
                    found = rescored(vectors, queries[some], found[1]), found[1]
                found[0][found[1] < 0] = -np.inf
                best_scores, best_rows = best(*found, k)
                scores[some, : best_rows.shape[1]], rows[some, : best_rows.shape[1]] = best_scores, best_rows

        threads = 1 if self._owner is not None else min(search_threads(), len(queries))
        shared(self._slices(len(queries), threads), find, threads)
        return scores, rows

    def _slices(self, count: int, threads: int) -> Iterator[slice]:
        """Cut `count` queries into parts for so many threads."""
        fast_scan = self.kind.code is not None and self.kind.code.bits == 4  # takes lists for all queries at once
        parts = threads if fast_scan or threads == 1 else _PARTS_A_THREAD * threads
        size = max(1, math.ceil(count / parts))
        return (slice(start, min(start + size, count)) for start in range(0, count, size))

    def _candidates(self, queries: NDArray[np.float32], wanted: int, selection: Selection | None, effort: int) -> Found:
        """Return what the index says are the `wanted` best."""
        if self._owner is not None:
            return self._gathered(self._owner, queries, wanted, selection, effort)
        selector = selection.selector() if selection is not None else None
        if self._ranking is not None:
            return self._ranking.search(queries, wanted, effort, selector)
        scores, rows = self._index.search(queries, wanted, params=self._parameters(self._index, selector, effort))
        return scores, rows

    def _gathered(
        self,
        owner: GatheringThread,
        queries: NDArray[np.float32],
        wanted: int,
        selection: Selection | None,
        effort: int,
    ) -> Found:
        """Ask a GPU for so much more that enough is left of what `selection` keeps."""
        if selection is not None:
            wanted = math.ceil(wanted * _GREATEST_SHARE / max(selection.share, 1e-6))
        scores, rows = owner.search(queries, min(wanted, len(self), MOST_RESULTS), effort)
        if selection is not None:
            rows = np.where((rows >= 0) & selection.mask[rows], rows, -1)
        return scores.copy(), rows

    def _parameters(self, index: Any, selector: Any, effort: int) -> Any:  # noqa: ANN401
        faiss = faiss_library()
        chosen = {} if selector is None else {"sel": selector}
        if isinstance(index, faiss.IndexPreTransform):
            inner = self._parameters(faiss.downcast_index(index.index), selector, effort)
            return faiss.SearchParametersPreTransform(index_params=inner)
        if isinstance(index, faiss.IndexHNSW):
            return faiss.SearchParametersHNSW(efSearch=effort, **chosen)
        if isinstance(index, faiss.IndexIVF | faiss.IndexIVFFastScan):
            return faiss.SearchParametersIVF(nprobe=effort, **chosen)
        return faiss.SearchParameters(**chosen)

    @property
    def lists(self) -> int | None:
        """How many lists there are; None for kinds without."""
        faiss = faiss_library()
        index = self._index
        if isinstance(index, faiss.IndexPreTransform):
            index = faiss.downcast_index(index.index)
        return int(index.nlist) if self.kind.family in (Family.IVF, Family.GPU_IVF) else None


def usual_reach(kind: IndexSpec) -> int:
    """Return how many candidates are scored again for each result, for the less the coarser the codes are."""
    if kind.code is not None and kind.code.scheme is Scheme.PQ:
        return 20
    if kind.pca is not None:
        return 10
    return 3 if kind.is_lossy else 1
