"""Ranking of the lists of an IVF index, and the transformation of its queries.

FAISS takes the lists whose centroids have the greatest inner product with the query. That ranks badly where lists
differ in spread and queries come from another modality than the items: the best items of a wide list lie far from its
centroid. So lists are ranked by what their best item may score: the inner product of query q with the mean c of the
list, plus 0.4 times the list's spread, the root mean square distance of its items from c. Items have length 1, so the
spread is sqrt(1 - |c|^2) and nothing more has to be stored.

The inner product of q with an item x of a list is q.c + q.(x - c). If q.(x - c) is about normal, its standard deviation
is the spread times the root of the share of the variance that lies along q: 0.1 to 0.2 for embeddings of 30 to 100
effective dimensions. The best of some hundred items lies about 2.7 standard deviations up, hence 0.4.
On 300,000 x 512 in 20,000 clusters of power-law size with a modality gap, 512 lists, a recall@10 of 0.95 needs 73,000
items looked at with FAISS's ranking, 46,000 with means instead of spherical centroids, 21,000 with the spread added
(23,000 with 0.3, 22,000 with 0.6). Without clusters (spectrum i^-0.4) it is 43,000 with each.

In front of product quantization items are rotated and scaled by a matrix W (see `codes`). Queries are multiplied with
the transposed inverse, which keeps inner products: (W x).(W^-T q) = x.q. A rotation is its own transposed inverse.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from twinspire.index.ann.family import SearchParameters
from twinspire.index.faiss_support import faiss_library, linear_transform
from twinspire.index.flat import ScoredRows

_SPREAD = 0.4


class ListRanking:
    """Search of an IVF index whose quantizer, of METRIC_L2, holds the means of its lists."""

    def __init__(self, index: Any, chain: list[Any]) -> None:  # noqa: ANN401
        self._index = index
        inverses = [_inverse(step) for step in chain]
        self._steps = [
            step if inverse is None else linear_transform(inverse)
            for step, inverse in zip(chain, inverses, strict=True)
        ]
        means = index.quantizer.reconstruct_n(0, index.nlist)
        whole = means if not inverses or inverses[-1] is None else means @ inverses[-1]  # where items have length 1
        self._bonus = (_SPREAD * np.sqrt(np.maximum(0, 1 - np.square(whole).sum(axis=1)))).astype(np.float32)
        self._means = np.ascontiguousarray(np.column_stack([means, self._bonus]))  # (L, D + 1)

    @classmethod
    def of(cls, index: Any) -> ListRanking | None:  # noqa: ANN401
        """Return the ranking of `index`, None for one without lists or with other centroids."""
        faiss = faiss_library()
        chain = []
        if isinstance(index, faiss.IndexPreTransform):
            chain = [faiss.downcast_VectorTransform(index.chain.at(number)) for number in range(index.chain.size())]
            index = faiss.downcast_index(index.index)
        if not isinstance(index, faiss.IndexIVF | faiss.IndexIVFFastScan):
            return None
        if index.metric_type == faiss.METRIC_L2 or index.quantizer.metric_type != faiss.METRIC_L2:
            return None
        return cls(index, chain)

    def search(self, queries: NDArray[np.float32], parameters: SearchParameters) -> ScoredRows:
        """Return scores and rows of the best candidates in the lists that rank best for `queries` (Q, D)."""
        faiss = faiss_library()
        queries = self._transformed(queries)
        lists, scores = self._best_lists(queries, parameters.effort)
        shape = (len(queries), parameters.candidates)
        found = np.empty(shape, np.float32), np.empty(shape, np.int64)
        fields = {"nprobe": parameters.effort}
        if parameters.selection is not None:
            fields["sel"] = faiss.IDSelectorBitmap(parameters.selection.bits)
        # The method of FAISS's Python layer takes no parameters.
        self._index.search_preassigned_c(
            len(queries),
            faiss.swig_ptr(queries),
            parameters.candidates,
            faiss.swig_ptr(lists),
            faiss.swig_ptr(scores),
            *map(faiss.swig_ptr, found),
            False,  # store_pairs
            faiss.SearchParametersIVF(**fields),
        )
        return found

    def _transformed(self, queries: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return `queries` (Q, D) so that inner products with transformed items are those of the items themselves."""
        for step in self._steps:
            queries = step.apply(queries)
        return np.ascontiguousarray(queries)

    def _best_lists(self, queries: NDArray[np.float32], nprobe: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return the lists that rank best, (Q, nprobe), and the inner products with their means."""
        extended = np.column_stack([queries, np.ones(len(queries), np.float32)])
        faiss = faiss_library()
        scores, lists = faiss.knn(extended, self._means, nprobe, metric=faiss.METRIC_INNER_PRODUCT)
        return lists, scores - self._bonus[lists]


def _inverse(step: Any) -> NDArray[np.float32] | None:  # noqa: ANN401
    """Return the matrix (to, from) for queries where items go through the linear `step`, None for another step."""
    faiss = faiss_library()
    if not isinstance(step, faiss.LinearTransform):
        return None
    matrix = faiss.vector_to_array(step.A).reshape(step.d_out, step.d_in).astype(np.float64)
    return np.ascontiguousarray(np.linalg.pinv(matrix).T, dtype=np.float32)
