"""Kinds that a GPU builds and searches: exact, lists, and CAGRA's graph. One thread owns each (see `gather`).

A GPU index is made from a FAISS index of the processor, which is also what the snapshot file holds.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twinspire.errors import ProviderError
from twinspire.index.ann.batching import GatheringThread, Searching
from twinspire.index.ann.factory import fill, require_enough, sampled
from twinspire.index.ann.faiss_support import require_gpu
from twinspire.index.ann.spec import Family, IndexSpec
from twinspire.index.flat import Found
from twinspire.index.vectors import Vectors

MOST_RESULTS = 16_384
"""A GPU index gives no more results for a query and looks at no more lists, with cuVS; without it 2,048 each:
`getMaxKSelection` of https://github.com/facebookresearch/faiss/blob/main/faiss/gpu/impl/IndexUtils.cu"""


def built_on_gpu(kind: IndexSpec, vectors: Vectors, seed: int) -> Any:  # noqa: ANN401
    """Return the processor's copy of a GPU index of `kind` over `vectors` (N, D).

    Raises what `require_gpu` raises, `InputError` for too few vectors, `ProviderError` where FAISS fails on the GPU.
    """
    faiss = require_gpu(kind)
    require_enough(kind, len(vectors))
    with _gpu_errors(kind, "build"):
        if kind.family is Family.CAGRA:
            return _built_graph(faiss, kind, vectors)
        if kind.family is Family.GPU_FLAT:
            index = faiss.IndexFlatIP(vectors.shape[1])
            fill(index, vectors)
            return index
        return _built_lists(faiss, kind, vectors, seed)


def gpu_searcher(kind: IndexSpec, copy: Any) -> GatheringThread:  # noqa: ANN401
    """Put the processor's copy onto the GPU and return the thread that owns it.

    A search takes at most `MOST_RESULTS` as results and as effort. Raises what `require_gpu` raises, and
    `ProviderError` where FAISS fails on the GPU, as its searches do.
    """
    faiss = require_gpu(kind)

    def make() -> Searching:
        resources = faiss.StandardGpuResources()
        with _gpu_errors(kind, "load"):
            index = _on_gpu(faiss, kind, resources, copy)

        def search(queries: NDArray[np.float32], wanted: int, effort: int) -> Found:
            # Both live as long as the index, which frees neither; CAGRA's reads its vectors from the copy.
            assert resources is not None
            assert copy is not None
            parameters = None
            if kind.family is Family.CAGRA:
                parameters = faiss.SearchParametersCagra()
                parameters.itopk_size = max(effort, wanted)
            elif kind.family is Family.GPU_IVF:
                parameters = faiss.SearchParametersIVF(nprobe=effort)
            with _gpu_errors(kind, "search"):
                scores, rows = index.search(queries, wanted, params=parameters)
            return scores, rows

        return search

    return GatheringThread(make)


def _built_graph(faiss: Any, kind: IndexSpec, vectors: Vectors) -> Any:  # noqa: ANN401
    resources, metric = faiss.StandardGpuResources(), faiss.METRIC_L2  # of unit vectors: the order of inner products
    graph = faiss.GpuIndexCagra(resources, vectors.shape[1], metric, _cagra_config(faiss, kind))
    # `CuvsCagra::train` keeps a pointer to these floats, which `copyTo` reads: of a float16 vector file they are a copy
    # that nothing else holds (https://github.com/facebookresearch/faiss/blob/main/faiss/gpu/impl/CuvsCagra.cu).
    floats = np.ascontiguousarray(vectors, dtype=np.float32)
    graph.train(floats)
    copy = faiss.IndexHNSWCagra()
    graph.copyTo(copy)
    del floats  # not before
    return copy


def _built_lists(faiss: Any, kind: IndexSpec, vectors: Vectors, seed: int) -> Any:  # noqa: ANN401
    count, dim = vectors.shape
    config = faiss.GpuIndexIVFFlatConfig()
    config.use_cuvs = False  # its k-means takes no seed
    resources = faiss.StandardGpuResources()
    lists = faiss.GpuIndexIVFFlat(resources, dim, kind.lists(count), faiss.METRIC_INNER_PRODUCT, config)
    lists.cp.seed = 1 + seed
    lists.train(sampled(vectors, kind.sample(count), seed))
    fill(lists, vectors)
    return faiss.index_gpu_to_cpu(lists)


def _on_gpu(faiss: Any, kind: IndexSpec, resources: Any, copy: Any) -> Any:  # noqa: ANN401
    """Return an index on the GPU with the content of `copy`; by cuVS, for its higher limits."""
    if kind.family is Family.CAGRA:
        index = faiss.GpuIndexCagra(resources, copy.d, faiss.METRIC_L2, _cagra_config(faiss, kind))
        index.copyFrom(copy)
        return index
    options = faiss.GpuClonerOptions()
    options.use_cuvs = True
    return faiss.index_cpu_to_gpu(resources, 0, copy, options)


def _cagra_config(faiss: Any, kind: IndexSpec) -> Any:  # noqa: ANN401
    config = faiss.GpuIndexCagraConfig()
    config.use_cuvs = True  # CAGRA is always cuVS's, but FAISS checks its limits by this
    config.graph_degree = kind.neighbours()
    config.intermediate_graph_degree = max(kind.breadth(), kind.neighbours())
    return config


@contextmanager
def _gpu_errors(kind: IndexSpec, doing: str) -> Iterator[None]:
    """Raise `ProviderError` for what FAISS and cuVS raise inside.

    Memory that is used up is a RuntimeError of FAISS and a MemoryError of cuVS. Most other errors of CUDA end the
    process.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        cause = " ".join(str(error).split())
        raise ProviderError(
            f"the GPU failed to {doing} an index of kind {kind}: {cause}. If its memory is used up, free some or build "
            "another kind, such as `twinspire index build INDEX --kind auto`"
        ) from error
