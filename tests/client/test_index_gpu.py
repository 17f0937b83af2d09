"""GPU index families, on the processor: what they ask FAISS for, within its limits, and its errors.

`_GpuFaiss` stands in for the GPU part of FAISS: it computes with NumPy and FAISS's processor indexes, and refuses,
keeps pointers and fails as FAISS 1.15.1 does (faiss/gpu/GpuIndexIVF.cu, impl/CuvsCagra.cu, impl/IndexUtils.cu).
"""

from __future__ import annotations

import gc
import sys
import threading
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import faiss
import numpy as np
import pytest
from numpy.typing import NDArray

from twinspire import _cuda
from twinspire.errors import InputError, MissingDependencyError, ProviderError
from twinspire.index.ann import AnnIndex, IndexSpec, Selection
from twinspire.index.ann.gpu_families import MAXIMUM_RESULTS

COUNT, DIM, K = 3_000, 16, 10
GPU_KINDS = ["cagra", "gpu-flat", "gpu-ivf"]


def _require_limit(wanted: int, *, use_cuvs: bool) -> None:
    most = 16_384 if use_cuvs else 2_048
    if not 0 < wanted <= most:
        raise RuntimeError(f"GPU index only supports selection up to {most} (requested {wanted})")


class _HnswCagra:
    """IndexHNSWCagra: the processor's copy of a graph."""

    d, ntotal = 0, 0


class _Cagra:
    """GpuIndexCagra, which keeps pointers to what it is given."""

    def __init__(self, fake: _GpuFaiss, dim: int, config: SimpleNamespace) -> None:
        self._fake, self._dim, self._config = fake, dim, config

    def train(self, vectors: NDArray[np.float32]) -> None:
        assert vectors.dtype == np.float32
        assert self._config.intermediate_graph_degree >= self._config.graph_degree
        self._fake.fail("build")
        self._trained_on = weakref.ref(vectors)

    def copyTo(self, copy: Any) -> None:  # noqa: N802 - FAISS's name
        vectors = self._trained_on()
        assert vectors is not None, "the training vectors were freed before they were read"
        copy.vectors, copy.d, copy.ntotal = vectors.copy(), self._dim, len(vectors)

    def copyFrom(self, copy: Any) -> None:  # noqa: N802 - FAISS's name
        self._fake.fail("load")
        self._read_from = weakref.ref(copy)

    def search(self, queries: NDArray[np.float32], k: int, *, params: Any) -> tuple[Any, Any]:
        self._fake.fail("search")
        _require_limit(k, use_cuvs=self._config.use_cuvs)
        assert k <= params.itopk_size <= MAXIMUM_RESULTS
        copy = self._read_from()
        assert copy is not None, "the copy that the vectors are read from was freed"
        distances = 2 - 2 * queries @ copy.vectors.T
        rows = np.argsort(distances, axis=1, kind="stable")[:, :k]
        return np.take_along_axis(distances, rows, axis=1), rows.astype(np.int64)


class _OnGpu:
    """A clone of a processor's index."""

    def __init__(self, fake: _GpuFaiss, copy: Any, options: SimpleNamespace) -> None:
        self._fake, self._copy, self._use_cuvs = fake, copy, options.use_cuvs

    def search(self, queries: NDArray[np.float32], k: int, *, params: Any) -> tuple[Any, Any]:
        self._fake.fail("search")
        _require_limit(k, use_cuvs=self._use_cuvs)
        if params is not None:
            _require_limit(params.nprobe, use_cuvs=self._use_cuvs)
            params = faiss.SearchParametersIVF(nprobe=min(params.nprobe, self._copy.nlist))
        # One by one: of two queries over 16,484 lists FAISS 1.15.1 at times gives one the same row several times.
        found = [self._copy.search(query[None], k, params=params) for query in queries]
        return np.concatenate([scores for scores, _ in found]), np.concatenate([rows for _, rows in found])


class _GpuFaiss:
    """The module `faiss` with its GPU part."""

    StandardGpuResources = object
    IndexHNSWCagra = _HnswCagra

    def __init__(self) -> None:
        self.gpus = 1
        self.failing: dict[str, Exception] = {}
        self.seeds: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(faiss, name)

    def fail(self, doing: str) -> None:
        if doing in self.failing:
            raise self.failing[doing]

    def get_num_gpus(self) -> int:
        return self.gpus

    def GpuIndexCagraConfig(self) -> SimpleNamespace:  # noqa: N802
        return SimpleNamespace(use_cuvs=False, graph_degree=64, intermediate_graph_degree=128)

    def GpuIndexIVFFlatConfig(self) -> SimpleNamespace:  # noqa: N802
        return SimpleNamespace(use_cuvs=False)

    def GpuClonerOptions(self) -> SimpleNamespace:  # noqa: N802
        return SimpleNamespace(use_cuvs=False)

    def SearchParametersCagra(self) -> SimpleNamespace:  # noqa: N802
        return SimpleNamespace(itopk_size=64)

    def GpuIndexCagra(self, resources: Any, dim: int, metric: int, config: Any) -> _Cagra:  # noqa: N802
        assert metric == faiss.METRIC_L2
        return _Cagra(self, dim, config)

    def GpuIndexIVFFlat(self, resources: Any, dim: int, lists: int, metric: int, config: Any) -> Any:  # noqa: N802
        self.fail("build")
        assert not config.use_cuvs, "cuVS takes no seed"
        quantizer = faiss.IndexFlatIP(dim)
        index = faiss.IndexIVFFlat(quantizer, dim, lists, metric)
        if lists > 1000:  # k-means would take seconds
            quantizer.add(_unit(lists, dim))
        quantizer.this.disown()  # the index frees it
        index.own_fields = True
        return index

    def index_gpu_to_cpu(self, index: Any) -> Any:
        self.seeds.append(index.cp.seed)
        return index

    def index_cpu_to_gpu(self, resources: Any, device: int, copy: Any, options: Any) -> _OnGpu:
        self.fail("load")
        return _OnGpu(self, copy, options)


@pytest.fixture
def gpu(fake_cuda_driver: Path, monkeypatch: pytest.MonkeyPatch) -> _GpuFaiss:
    """Give this process a GPU, by the driver's word, and the FAISS that uses it."""
    fake = _GpuFaiss()
    monkeypatch.setattr(_cuda, "LIBRARY", str(fake_cuda_driver))
    monkeypatch.setitem(sys.modules, "faiss", fake)  # type: ignore[arg-type]
    return fake


def _unit(count: int, dim: int = DIM, seed: int = 1) -> NDArray[np.float32]:
    vectors = np.random.default_rng(seed).standard_normal((count, dim), dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def _best(vectors: NDArray[Any], queries: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    return np.argsort(-(queries.astype(np.float64) @ vectors.T.astype(np.float64)), axis=1)[:, :k]


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("name", GPU_KINDS)
def test_gpu_kinds_find_the_best(name: str, dtype: Any) -> None:
    """With all lists each kind finds NumPy's ten best, over float32 and float16 vector files, with exact scores."""
    vectors, queries = _unit(COUNT).astype(dtype), _unit(20, seed=2)
    scores, rows = AnnIndex.build(IndexSpec.parse(name), vectors).search(queries, K, vectors, effort=COUNT)
    expected = _best(vectors, queries, K)
    assert np.mean([len(set(a) & set(b)) / K for a, b in zip(rows.tolist(), expected.tolist(), strict=True)]) >= 0.99
    exact = np.einsum("qd,qkd->qk", queries.astype(np.float64), vectors[rows].astype(np.float64))
    assert np.abs(scores - exact).max() < 2e-6, np.abs(scores - exact).max()


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("name", GPU_KINDS)
def test_requests_stay_within_the_limits_of_faiss(name: str) -> None:
    """More results, candidates or lists than FAISS gives are cut to 16,384: what is missing comes as none."""
    count = MAXIMUM_RESULTS + 600
    vectors, queries = _unit(count, dim=4), _unit(2, dim=4, seed=2)
    kind = f"{name},nlist={MAXIMUM_RESULTS + 100}" if name == "gpu-ivf" else name
    ann = AnnIndex.build(IndexSpec.parse(kind), vectors)
    assert ann.index.maximum_effort == MAXIMUM_RESULTS
    _, rows = ann.search(queries, count, vectors, effort=count, rescore_factor=3)
    assert ((rows >= 0).sum(axis=1) == MAXIMUM_RESULTS).all()
    assert [len(set(found[found >= 0].tolist())) for found in rows] == [MAXIMUM_RESULTS] * 2
    _, rows = ann.search(queries, 3_000, vectors, effort=count)
    assert (rows >= 0).all()


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("name", GPU_KINDS)
def test_a_selection_asks_for_no_more_than_there_is(name: str) -> None:
    """A filter that keeps 1% asks the GPU for at most all rows, and only those that it keeps are found."""
    vectors, queries = _unit(COUNT), _unit(5, seed=2)
    mask = np.arange(COUNT) % 100 == 0
    _, rows = AnnIndex.build(IndexSpec.parse(name), vectors).search(
        queries, K, vectors, selection=Selection.of(mask), effort=COUNT
    )
    assert (rows >= 0).all()
    assert mask[rows].all()


def test_lists_are_seeded(gpu: _GpuFaiss) -> None:
    """The seed of a build reaches the k-means of the GPU's lists."""
    for seed in (0, 7):
        AnnIndex.build(IndexSpec.parse("gpu-ivf"), _unit(COUNT), seed=seed)
    assert gpu.seeds == [1, 8]


@pytest.mark.parametrize("doing", ["build", "load", "search"])
@pytest.mark.parametrize(
    "cause",
    [
        RuntimeError(
            "Error in allocMemory at StandardGpuResources.cpp:\n alloc fail (cudaMalloc error out of memory [2])"
        ),
        MemoryError("std::bad_alloc: out_of_memory: CUDA error"),
    ],
)
@pytest.mark.parametrize("name", ["cagra", "gpu-ivf"])
def test_failures_on_the_gpu_are_ours(gpu: _GpuFaiss, name: str, doing: str, cause: Exception) -> None:
    """What FAISS or cuVS raises while building, loading or searching is a ProviderError with the cause, on one line."""
    gpu.failing[doing] = cause
    vectors = _unit(COUNT)
    with pytest.raises(ProviderError, match=f"to {doing}") as caught:
        AnnIndex.build(IndexSpec.parse(name), vectors).search(vectors[:2], K, vectors)
    assert caught.value.__cause__ is cause
    assert "memory" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("gpu")
def test_the_thread_of_an_index_ends_with_it() -> None:
    """The thread that owns a GPU's index ends when the index is collected."""
    before = set(threading.enumerate())
    ann = AnnIndex.build(IndexSpec.parse("gpu-flat"), _unit(40))
    (owner,) = set(threading.enumerate()) - before
    del ann
    gc.collect()
    owner.join(10)
    assert not owner.is_alive()


@pytest.mark.usefixtures("gpu")
def test_too_few_vectors_for_the_lists_are_an_error() -> None:
    """Fewer vectors than lists are an InputError, before the GPU is asked."""
    with pytest.raises(InputError, match="500"):
        AnnIndex.build(IndexSpec.parse("gpu-ivf,nlist=500"), _unit(40))


@pytest.mark.parametrize("m", [1, 2, 3, 225, 1024])
def test_degrees_that_crash_cagra_are_refused(m: int) -> None:
    """FAISS crashes with a degree of 2 or 3, cuVS's search takes at most 224."""
    with pytest.raises(InputError, match=r"\bm\b"):
        IndexSpec.parse(f"cagra,m={m}")


def test_degrees_that_cagra_takes() -> None:
    """From 4 to 224."""
    assert [IndexSpec.parse(f"cagra,m={m}").option("m") for m in (4, 32, 224)] == [4, 32, 224]


# Without a GPU


@pytest.mark.parametrize("name", GPU_KINDS)
def test_the_processors_faiss_names_the_extra(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The FAISS of the processor has no GPU kinds: the error names the package and the extra that bring them."""
    monkeypatch.delattr(faiss, "StandardGpuResources", raising=False)
    with pytest.raises(MissingDependencyError) as caught:
        AnnIndex.build(IndexSpec.parse(name), _unit(40))
    assert (caught.value.package, caught.value.extra) == ("faiss-gpu-cuvs", "gpu")
    with pytest.raises(MissingDependencyError):
        AnnIndex.read(Path("none.faiss"), IndexSpec.parse(name))


@pytest.mark.parametrize("name", GPU_KINDS)
def test_no_driver_is_named(gpu: _GpuFaiss, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A FAISS that could use a GPU says what the driver says where there is none."""
    monkeypatch.setattr(_cuda, "LIBRARY", "libcuda-that-is-not-here.so.1")
    with pytest.raises(ProviderError, match="driver"):
        AnnIndex.build(IndexSpec.parse(name), _unit(40))
    with pytest.raises(ProviderError, match="driver"):
        AnnIndex.read(Path("none.faiss"), IndexSpec.parse(name))


def test_a_driver_that_faiss_cannot_use_is_named(gpu: _GpuFaiss) -> None:
    """A driver that reports a GPU which FAISS does not see is older than FAISS's CUDA."""
    gpu.gpus = 0
    with pytest.raises(ProviderError, match="older"):
        AnnIndex.build(IndexSpec.parse("cagra"), _unit(40))
