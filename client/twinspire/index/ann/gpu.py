"""Kinds that a GPU builds and searches: exact, lists, and CAGRA's graph. One thread owns each (see `gather`).

A GPU index is made from a FAISS index of the processor, which is also what the snapshot file holds.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from twinspire.index.ann.gather import GatheringThread, Searching
from twinspire.index.ann.kinds import Family, Kind
from twinspire.index.ann.library import require_gpu
from twinspire.index.ann.recipes import fill, sampled
from twinspire.index.flat import Found
from twinspire.index.vectors import Vectors

MOST_RESULTS = 2048
"""A GPU index gives no more results for a query: https://github.com/facebookresearch/faiss/wiki/Faiss-on-the-GPU"""


def built_on_gpu(kind: Kind, vectors: Vectors, seed: int) -> Any:  # noqa: ANN401
    """Return the processor's copy of a GPU index of `kind` over `vectors` (N, D)."""
    faiss = require_gpu(kind)
    count, dim = vectors.shape
    resources = faiss.StandardGpuResources()
    if kind.family is Family.CAGRA:
        config = faiss.GpuIndexCagraConfig()
        config.graph_degree = kind.neighbours()
        config.intermediate_graph_degree = max(kind.breadth(), kind.neighbours())
        graph = faiss.GpuIndexCagra(resources, dim, faiss.METRIC_L2, config)  # of unit vectors: the same order
        graph.train(np.ascontiguousarray(vectors, dtype=np.float32))
        copy = faiss.IndexHNSWCagra()
        graph.copyTo(copy)
        return copy
    if kind.family is Family.GPU_FLAT:
        index = faiss.IndexFlatIP(dim)
        fill(index, vectors)
        return index
    lists = faiss.GpuIndexIVFFlat(resources, dim, kind.lists(count), faiss.METRIC_INNER_PRODUCT)
    lists.cp.seed = 1 + seed
    lists.train(sampled(vectors, kind.sample(count), seed))
    fill(lists, vectors)
    return faiss.index_gpu_to_cpu(lists)


def gpu_searcher(kind: Kind, copy: Any) -> GatheringThread:  # noqa: ANN401
    """Put the processor's copy onto the GPU and return the thread that owns it. Raises as `require_gpu` does."""
    faiss = require_gpu(kind)

    def make() -> Searching:
        resources = faiss.StandardGpuResources()
        if kind.family is Family.CAGRA:
            index = faiss.GpuIndexCagra(resources, copy.d, faiss.METRIC_L2, faiss.GpuIndexCagraConfig())
            index.copyFrom(copy)
        else:
            index = faiss.index_cpu_to_gpu(resources, 0, copy)

        def search(queries: NDArray[np.float32], wanted: int, effort: int) -> Found:
            assert resources is not None  # lives as long as the index
            parameters = None
            if kind.family is Family.CAGRA:
                parameters = faiss.SearchParametersCagra()
                parameters.itopk_size = max(effort, wanted)
            elif kind.family is Family.GPU_IVF:
                parameters = faiss.SearchParametersIVF(nprobe=effort)
            scores, rows = index.search(queries, min(wanted, MOST_RESULTS), params=parameters)
            return scores, rows

        return search

    return GatheringThread(make)
