"""Binary codes: one bit for each number of a vector, its sign, in 1/32 of the vectors' memory. Nothing is trained.

Only items are coded. A query keeps its numbers and scores an item by the sum of these, each with the sign of the
item's, which estimates more than the Hamming distance of two codes does. Candidates to be rescored per query for a
recall@10 of 0.95 (N x D; the first three are the distributions of `twinspire bench index`, then COCO's captions by
MiniLM-L6 and by the sample model, and its scenes found by captions):

    vectors                   Hamming    sign sum    of the difference to the mean
    clusters    100,000 x 512      47          33                               32
    power-law   100,000 x 512     296         128                              131
    spectrum    100,000 x 512   1,004         204                              205
    MiniLM-L6    24,714 x 384      40          23                               25
    sample       24,714 x 128     851         321                            1,969
    scenes        4,000 x 128      62          30                               30

A random rotation before changes nothing beyond its chance (31, 119, 202, 22, 334, 30). The difference to the mean has
another length for each item, which one bit does not hold: where all vectors lie around one direction, as the sample's
embeddings of photographs' captions (their mean has length 0.81), subtracting it loses more than it gains.

FAISS's fast scan of 4-bit product quantization computes the sums: each part is four numbers, and its 16 centroids are
their 16 combinations of signs. On the first of these sets, one thread: 0.10 ms a query for 100 candidates, where
FAISS's `knn_hamming` takes 0.16 ms, and exact search 0.9 ms.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from twinspire.index.ann.codes import Cost
from twinspire.index.ann.faiss_families import FaissFamily, chained
from twinspire.index.ann.family import IndexSpec, SearchParameters, register
from twinspire.index.faiss_support import faiss_library, linear_transform
from twinspire.index.flat import ScoredRows
from twinspire.index.vectors import Vectors

_NUMBERS = 4  # of a part: FAISS's fast scan looks up 4 bits at a time
_OPERATIONS = 28.0  # of a matrix product, in the time in which FAISS compares one number with that of a centroid
_SIGNS = np.array([[1 if code >> bit & 1 else -1 for bit in range(_NUMBERS)] for code in range(16)], np.float32)


@register
class Binary(FaissFamily):
    """One bit for each number of a vector; a search rescores the candidates that score best by them."""

    name = "binary"
    takes_pca = False  # a few principal directions have most of the variance, and one bit each like the others
    filters = False  # FAISS's fast scan takes no selection
    minimum_vectors = 1_000
    effort_name = "candidates"
    effort_is_candidates = True

    @classmethod
    def cost(cls, spec: IndexSpec, count: int, dim: int) -> Cost:  # noqa: ARG003
        """Predict the codes and their table of signs; coding compares each part with 16 centroids."""
        parts = -(-dim // _NUMBERS)
        return Cost(count * (-(-parts // 2)) + _SIGNS.nbytes * parts, _OPERATIONS * count * len(_SIGNS) * dim)

    def search(self, queries: NDArray[np.float32], parameters: SearchParameters) -> ScoredRows:
        """Score all codes.

        FAISS leaves out codes of the lowest sum that there can be, all of whose signs are the query's opposite. Where
        all items are such, there are fewer results than wanted, and the store searches exactly.
        """
        scores, rows = self._index.search(queries, parameters.candidates)
        return scores, rows

    @property
    def default_effort(self) -> int:
        """400 candidates."""
        return 400

    def _empty_core(self, width: int, count: int, seed: int) -> Any:  # noqa: ANN401, ARG002
        faiss = faiss_library()
        core = faiss.IndexPQFastScan(width, width // _NUMBERS, 4, faiss.METRIC_INNER_PRODUCT)
        faiss.copy_array_to_vector(np.tile(_SIGNS.ravel(), width // _NUMBERS), core.pq.centroids)
        core.is_trained = True
        return core

    def _trained(self, vectors: Vectors, seed: int) -> Any:  # noqa: ANN401
        """Return an empty index, behind zeros that fill up the last part."""
        dim = vectors.shape[1]
        width = -(-dim // _NUMBERS) * _NUMBERS
        filling = [] if width == dim else [linear_transform(np.eye(width, dim))]
        return chained(filling, self._empty_core(width, len(vectors), seed))
