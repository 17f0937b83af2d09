"""Families that a GPU builds and searches: exact, lists, and CAGRA's graph. One thread owns each (see `batching`).

A GPU index is made from a FAISS index of the processor, which is also what a snapshot file holds.
"""

from __future__ import annotations

import weakref
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from twinspire.errors import ProviderError
from twinspire.index.ann.batching import BatchingThread, SearchBatch
from twinspire.index.ann.codes import Code
from twinspire.index.ann.faiss_families import FaissFamily, Flat, Hnsw, Ivf, fill, sampled
from twinspire.index.ann.family import IndexSpec, Option, SearchParameters, register
from twinspire.index.faiss_support import gpu_faiss_library, run_with_openmp
from twinspire.index.flat import ScoredRows
from twinspire.index.vectors import Vectors

MAXIMUM_RESULTS = 16_384
"""A GPU index returns no more results for a query and looks at no more lists, with cuVS; without it 2,048 each:
`getMaxKSelection` of https://github.com/facebookresearch/faiss/blob/main/faiss/gpu/impl/IndexUtils.cu"""


class OnGpu(FaissFamily):
    """What all families of a GPU share; mixed in before the processor's family whose options they take.

    Building, loading and searching raise what `require` raises, and `ProviderError` where FAISS fails on the GPU.
    """

    codes: ClassVar[tuple[type[Code], ...]] = ()
    takes_pca = False
    filters = False
    splits_queries = False
    can_add = False
    takes_several = False  # was not measured on a GPU
    maximum_results = MAXIMUM_RESULTS
    _owner: BatchingThread

    @classmethod
    def require(cls) -> None:
        """Import FAISS and find a GPU."""
        gpu_faiss_library(cls.name)

    @classmethod
    def is_exact(cls, spec: IndexSpec) -> bool:  # noqa: ARG003
        """Return False: the vectors have to be copied to the GPU."""
        return False

    def build(self, vectors: Vectors, *, seed: int) -> None:
        """Build on the GPU, and keep the processor's copy."""
        faiss = gpu_faiss_library(self.name)

        def build() -> Any:  # noqa: ANN401
            with _gpu_errors(self.spec, "build"):
                return self._built(faiss, vectors, seed)

        self.adopt(run_with_openmp(build, self.threads))

    def adopt(self, index: Any) -> None:  # noqa: ANN401
        """Copy an index of the processor to the GPU, where a thread owns it until this object goes."""
        self._index = self._core = index
        faiss, spec, cls = gpu_faiss_library(self.name), self.spec, type(self)

        def load() -> SearchBatch:
            resources = faiss.StandardGpuResources()
            with _gpu_errors(spec, "load"):
                on_gpu = cls._on_gpu(faiss, spec, resources, index)

            def search(queries: NDArray[np.float32], candidates: int, effort: int) -> ScoredRows:
                # Both live as long as the GPU's index, which frees neither; CAGRA's reads its vectors from the copy.
                assert resources is not None
                assert index is not None
                with _gpu_errors(spec, "search"):
                    parameters = cls._gpu_parameters(faiss, effort, candidates)
                    scores, rows = on_gpu.search(queries, candidates, params=parameters)
                return scores, rows

            return search

        self._owner = BatchingThread(load)
        weakref.finalize(self, self._owner.close)  # when the last search that has it is done

    def search(self, queries: NDArray[np.float32], parameters: SearchParameters) -> ScoredRows:
        """Let the owning thread search, in a batch with the queries of other threads."""
        return self._owner.search(queries, parameters.candidates, parameters.effort)

    @property
    def maximum_effort(self) -> int:
        """That of the processor's family, up to the GPU's limit."""
        return min(super().maximum_effort, MAXIMUM_RESULTS)

    @abstractmethod
    def _built(self, faiss: Any, vectors: Vectors, seed: int) -> Any:  # noqa: ANN401
        """Build over `vectors` (N, D) and return the processor's copy."""

    @classmethod
    def _on_gpu(cls, faiss: Any, spec: IndexSpec, resources: Any, copy: Any) -> Any:  # noqa: ANN401, ARG003
        """Return an index on the GPU with the content of `copy`; by cuVS, for its higher limits."""
        options = faiss.GpuClonerOptions()
        options.use_cuvs = True
        return faiss.index_cpu_to_gpu(resources, 0, copy, options)

    @classmethod
    def _gpu_parameters(cls, faiss: Any, effort: int, candidates: int) -> Any:  # noqa: ANN401, ARG003
        return None


@register
class Cagra(OnGpu, Hnsw):
    """CAGRA's graph; a search keeps the `itopk_size` best candidates on its way."""

    name = "cagra"
    examples = ("cagra",)
    # FAISS halves a graph's degree for the upper layers of the processor's copy and crashes where that is 1; cuVS's
    # search by several blocks keeps 32 candidates and the neighbours of one in 256 places.
    options = MappingProxyType({"m": Option(32, minimum=4, maximum=224), "ef_construction": Option(64)})
    effort_name = "itopk_size"
    rescore_factor = 3  # its scores are distances

    def _built(self, faiss: Any, vectors: Vectors, seed: int) -> Any:  # noqa: ANN401, ARG002
        resources, metric = faiss.StandardGpuResources(), faiss.METRIC_L2  # of unit vectors: as by inner product
        graph = faiss.GpuIndexCagra(resources, vectors.shape[1], metric, _cagra_config(faiss, self.spec))
        # `CuvsCagra::train` keeps a pointer to these floats, which `copyTo` reads: of a float16 vector file they are a
        # copy that nothing else holds (https://github.com/facebookresearch/faiss/blob/main/faiss/gpu/impl/CuvsCagra.cu)
        floats = np.ascontiguousarray(vectors, dtype=np.float32)
        graph.train(floats)
        copy = faiss.IndexHNSWCagra()
        graph.copyTo(copy)
        del floats  # not before
        return copy

    @classmethod
    def _on_gpu(cls, faiss: Any, spec: IndexSpec, resources: Any, copy: Any) -> Any:  # noqa: ANN401
        index = faiss.GpuIndexCagra(resources, copy.d, faiss.METRIC_L2, _cagra_config(faiss, spec))
        index.copyFrom(copy)
        return index

    @classmethod
    def _gpu_parameters(cls, faiss: Any, effort: int, candidates: int) -> Any:  # noqa: ANN401
        parameters = faiss.SearchParametersCagra()
        parameters.itopk_size = max(effort, candidates)
        return parameters


@register
class GpuFlat(OnGpu, Flat):
    """All vectors, searched exactly by the GPU."""

    name = "gpu-flat"

    def _built(self, faiss: Any, vectors: Vectors, seed: int) -> Any:  # noqa: ANN401, ARG002
        index = faiss.IndexFlatIP(vectors.shape[1])
        fill(index, vectors)
        return index


@register
class GpuIvf(OnGpu, Ivf):
    """Inverted lists around spherical centroids; a search looks at the `nprobe` best."""

    name = "gpu-ivf"
    examples = ("gpu-ivf",)

    def _built(self, faiss: Any, vectors: Vectors, seed: int) -> Any:  # noqa: ANN401
        count, dim = vectors.shape
        config = faiss.GpuIndexIVFFlatConfig()
        config.use_cuvs = False  # its k-means takes no seed
        resources, list_count = faiss.StandardGpuResources(), self.list_count(self.spec, count)
        lists = faiss.GpuIndexIVFFlat(resources, dim, list_count, faiss.METRIC_INNER_PRODUCT, config)
        lists.cp.seed = 1 + seed
        lists.train(sampled(vectors, self.sample_size(self.spec, count), seed))
        fill(lists, vectors)
        return faiss.index_gpu_to_cpu(lists)

    @classmethod
    def _gpu_parameters(cls, faiss: Any, effort: int, candidates: int) -> Any:  # noqa: ANN401, ARG003
        return faiss.SearchParametersIVF(nprobe=effort)


def _cagra_config(faiss: Any, spec: IndexSpec) -> Any:  # noqa: ANN401
    config = faiss.GpuIndexCagraConfig()
    config.use_cuvs = True  # CAGRA is always cuVS's, but FAISS checks its limits by this
    config.graph_degree = spec.option("m")
    config.intermediate_graph_degree = max(spec.option("ef_construction"), spec.option("m"))
    return config


@contextmanager
def _gpu_errors(spec: IndexSpec, action: str) -> Iterator[None]:
    """Raise `ProviderError` for what FAISS and cuVS raise inside.

    Memory that is used up is a RuntimeError of FAISS and a MemoryError of cuVS. Most other errors of CUDA end the
    process.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        cause = " ".join(str(error).split())
        raise ProviderError(
            f"the GPU failed to {action} an index {spec}: {cause}. If its memory is used up, free some or build "
            "an index for processors, such as `twinspire index build INDEX --spec auto`"
        ) from error
