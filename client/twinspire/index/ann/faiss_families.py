"""Families that FAISS builds and searches on the processor: flat, lists (IVF) and graphs (HNSW).

What differs from FAISS's own defaults, and why: to build in less time, k-means runs 8 rounds over 64 vectors a list
instead of 10 over 256 (what that costs in recall at equal effort was not measured); PCA does not subtract the mean, for
that would change which inner product is greatest, and its output is normalised to length 1 again; in front of PQ stands
a scaled eigenvalue allocation instead of OPQ (see `codes`); lists have means for centroids, to which an item goes by
distance, where FAISS has spherical ones for inner products (see `coarse`); and codes of 4 bits hold residuals, which
costs nothing to search.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from twinspire.errors import IndexStoreError
from twinspire.index.ann.coarse import ListRanking
from twinspire.index.ann.codes import KMEANS_ROUNDS, Code, Cost, Pq, Sq8
from twinspire.index.ann.family import (
    IndexFamily,
    IndexSpec,
    Option,
    SearchParameters,
    Sink,
    graph_cost,
    register,
)
from twinspire.index.faiss_support import faiss_library, linear_transform, run_with_openmp
from twinspire.index.flat import ScoredRows, nearest
from twinspire.index.vectors import Vectors

_BLOCK_ROWS = 65_536
_PIECE_BYTES = 1 << 20
_POINTS_PER_LIST = 64
_ID_BYTES = 8


class FaissFamily(IndexFamily):
    """Index of FAISS's: optional transformations of the vectors, then a core that differs by family."""

    takes_pca = True
    filters = True
    splits_queries = True
    can_add = True
    faiss_parameters: ClassVar[str] = "SearchParameters"
    """FAISS's class of search parameters; its field for the effort is `effort_name`."""
    _index: Any  # FAISS's index with the transformations
    _core: Any  # FAISS's index without them

    @classmethod
    def require(cls) -> None:
        """Import FAISS, and search once to initialise it."""
        nearest(np.eye(2, dtype=np.float32), np.eye(2, dtype=np.float32), 1)

    @classmethod
    def cost(cls, spec: IndexSpec, count: int, dim: int) -> Cost:
        """Predict vectors or codes, and the projection."""
        width, sample = spec.width(dim), cls.sample_size(spec, count)
        cost = Cost(4 * count * width) if spec.code is None else spec.code.cost(count, sample, width)
        if spec.pca is not None:
            cost += Cost(4 * dim * width, 2.0 * sample * dim * dim + 2.0 * count * dim * width)
        return cost

    def build(self, vectors: Vectors, *, seed: int) -> None:
        """Train on a sample drawn by `seed`, then add block by block.

        Equal seeds, threads and vectors give the same index but for the order in which threads add to a graph.
        """

        def build() -> None:
            self.adopt(self._trained(vectors, seed))
            fill(self._index, vectors)

        run_with_openmp(build, self.threads)

    def adopt(self, index: Any) -> None:  # noqa: ANN401
        """Take an index of FAISS's that was built for this spec."""
        faiss = faiss_library()
        self._index = index
        self._core = faiss.downcast_index(index.index) if isinstance(index, faiss.IndexPreTransform) else index

    def add(self, vectors: Vectors) -> None:
        """Add block by block."""
        run_with_openmp(lambda: fill(self._index, vectors), self.threads)

    def search(self, queries: NDArray[np.float32], parameters: SearchParameters) -> ScoredRows:
        """Search with parameters that are passed with the call, never set on the index."""
        faiss = faiss_library()
        fields = {self.effort_name: parameters.effort} if self.is_tunable else {}
        if parameters.selection is not None:
            fields["sel"] = faiss.IDSelectorBitmap(parameters.selection.bits)  # reads the bits: must not outlive them
        options = getattr(faiss, self.faiss_parameters)(**fields)
        if self._core is not self._index:
            options = faiss.SearchParametersPreTransform(index_params=options)
        scores, rows = self._index.search(queries, parameters.candidates, params=options)
        return scores, rows

    def save(self, file: Sink) -> None:
        """Write FAISS's format."""
        faiss = faiss_library()
        faiss.write_index(self._index, faiss.PyCallbackIOWriter(file.write, _PIECE_BYTES))

    def load(self, path: Path) -> None:
        """Read FAISS's format. Raises `IndexStoreError` for a file of something else."""
        try:
            index = faiss_library().read_index(str(path))
        except RuntimeError as error:
            raise IndexStoreError(f"{path} holds no index {self.spec}: {error}") from error
        self.adopt(index)

    def __len__(self) -> int:
        return int(self._index.ntotal)

    @abstractmethod
    def _empty_core(self, width: int, count: int, seed: int) -> Any:  # noqa: ANN401
        """Return FAISS's index of the family for `count` vectors of `width` numbers, not trained yet."""

    def _trained(self, vectors: Vectors, seed: int) -> Any:  # noqa: ANN401
        """Return an empty index, trained on a sample of `vectors` (N, D)."""
        count = len(vectors)
        sample = sampled(vectors, self.sample_size(self.spec, count), seed)
        chain = [] if self.spec.pca is None else _projection(sample, self.spec.pca)
        for step in chain:
            sample = step.apply(sample)
        transform = None if self.spec.code is None else self.spec.code.transform(sample)
        if transform is not None:
            chain.append(transform)
            sample = transform.apply(sample)
        core = self._empty_core(sample.shape[1], count, seed)
        core.train(sample)
        return chained(chain, core)


@register
class Flat(FaissFamily):
    """All vectors: exact search over the vector file, or behind a projection over FAISS's copy."""

    name = "flat"
    is_tunable = False

    @classmethod
    def is_exact(cls, spec: IndexSpec) -> bool:
        """Whether there is no projection."""
        return spec.pca is None

    def _empty_core(self, width: int, count: int, seed: int) -> Any:  # noqa: ANN401, ARG002
        return faiss_library().IndexFlatIP(width)


@register
class Ivf(FaissFamily):
    """Inverted lists around centroids; a search looks at the `nprobe` best."""

    name = "ivf"
    examples: ClassVar[tuple[str, ...]] = ("ivf", "ivf,sq8", "ivf,pq64", "ivf,pq128x4")
    options = MappingProxyType({"nlist": Option(None)})
    codes: ClassVar[tuple[type[Code], ...]] = (Sq8, Pq)
    effort_name = "nprobe"
    faiss_parameters = "SearchParametersIVF"
    _ranking: ListRanking | None

    @classmethod
    def list_count(cls, spec: IndexSpec, count: int) -> int:
        """Return `nlist`, by default about the square root of `count`, as a power of two."""
        given = dict(spec.options).get("nlist")
        return 1 << max(round(math.log2(max(count, 1) ** 0.5)), 0) if given is None else given

    @classmethod
    def cost(cls, spec: IndexSpec, count: int, dim: int) -> Cost:
        """Predict ids and centroids, k-means and the assignment of all vectors too."""
        lists, width = cls.list_count(spec, count), spec.width(dim)
        clustered = min(cls.sample_size(spec, count), _POINTS_PER_LIST * lists)
        operations = 2.0 * lists * width * (KMEANS_ROUNDS * clustered + count)
        return super().cost(spec, count, dim) + Cost(count * _ID_BYTES + 4 * lists * width, operations)

    def adopt(self, index: Any) -> None:  # noqa: ANN401
        """Take an index of FAISS's, and rank its lists by their means where it has them."""
        super().adopt(index)
        self._ranking = ListRanking.of(index)

    def search(self, queries: NDArray[np.float32], parameters: SearchParameters) -> ScoredRows:
        """Search the lists that rank best."""
        if self._ranking is None:
            return super().search(queries, parameters)
        return self._ranking.search(queries, parameters)

    @property
    def lists(self) -> int:
        """Number of lists."""
        return int(self._core.nlist)

    @property
    def default_effort(self) -> int:
        """A 32nd of the lists, at least 8."""
        return max(1, min(self.lists, max(8, self.lists // 32)))

    @property
    def maximum_effort(self) -> int:
        """All lists."""
        return self.lists

    def _empty_core(self, width: int, count: int, seed: int) -> Any:  # noqa: ANN401
        faiss, lists = faiss_library(), self.list_count(self.spec, count)
        coarse = faiss.IndexFlatL2(width)  # of means: see `coarse`
        if self.spec.code is None:
            index = faiss.IndexIVFFlat(coarse, width, lists, faiss.METRIC_INNER_PRODUCT)
        else:
            index = self.spec.code.lists(coarse, width, lists)
        coarse.this.disown()  # the index frees it
        index.own_fields = True
        index.cp.min_points_per_centroid = 1  # else k-means prints that it would like more
        index.cp.niter = KMEANS_ROUNDS
        index.cp.max_points_per_centroid = _POINTS_PER_LIST
        index.cp.seed = 1 + seed
        index.cp.spherical = False
        return index


@register
class Hnsw(FaissFamily):
    """Graph of neighbours; a search keeps the `efSearch` best candidates on its way."""

    name = "hnsw"
    examples: ClassVar[tuple[str, ...]] = ("hnsw", "hnsw,sq8", "pca256,hnsw")
    options = MappingProxyType({"m": Option(16, minimum=2), "ef_construction": Option(100)})
    codes: ClassVar[tuple[type[Code], ...]] = (Sq8,)
    is_graph = True
    effort_name = "efSearch"
    faiss_parameters = "SearchParametersHNSW"

    @classmethod
    def cost(cls, spec: IndexSpec, count: int, dim: int) -> Cost:
        """Predict links, and the distances computed along the graph, too."""
        graph = graph_cost(count, spec.option("m"), spec.option("ef_construction"), spec.vector_bytes(dim))
        return super().cost(spec, count, dim) + graph

    def _empty_core(self, width: int, count: int, seed: int) -> Any:  # noqa: ANN401, ARG002
        faiss, m = faiss_library(), self.spec.option("m")
        if self.spec.code is None:
            graph = faiss.IndexHNSWFlat(width, m, faiss.METRIC_INNER_PRODUCT)
        else:
            graph = faiss.IndexHNSWSQ(width, faiss.ScalarQuantizer.QT_8bit, m, faiss.METRIC_INNER_PRODUCT)
        graph.hnsw.efConstruction = self.spec.option("ef_construction")
        return graph


def fill(index: Any, vectors: Vectors) -> None:  # noqa: ANN401
    """Add `vectors` (N, D) to a trained index of FAISS's, block by block, as float32."""
    for start in range(0, len(vectors), _BLOCK_ROWS):
        index.add(np.ascontiguousarray(vectors[start : start + _BLOCK_ROWS], dtype=np.float32))


def sampled(vectors: Vectors, count: int, seed: int) -> NDArray[np.float32]:
    """Return `count` of `vectors` drawn by `seed`, in their order, (count, D) float32."""
    if count >= len(vectors):
        return np.ascontiguousarray(vectors, dtype=np.float32)
    rows = np.sort(np.random.default_rng(seed).choice(len(vectors), count, replace=False))
    return np.ascontiguousarray(vectors[rows], dtype=np.float32)


def _projection(sample: NDArray[np.float32], width: int) -> list[Any]:
    """Return the steps that project to the `width` directions of the greatest variance, then normalise."""
    faiss = faiss_library()
    moments = sample.T @ sample  # (D, D)
    _, directions = np.linalg.eigh(moments.astype(np.float64))  # ascending
    linear = linear_transform(directions.T[::-1][:width])
    linear.set_is_orthonormal()
    return [linear, faiss.NormalizationTransform(width, 2.0)]


def chained(chain: list[Any], core: Any) -> Any:  # noqa: ANN401
    """Return `core` behind the transformations of `chain`."""
    if not chain:
        return core
    index = faiss_library().IndexPreTransform(core)
    for step in reversed(chain):
        index.prepend_transform(step)
        step.this.disown()
    core.this.disown()
    index.own_fields = True
    index.is_trained = True
    return index
