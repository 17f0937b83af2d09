"""How an index of each kind is made with FAISS: trained on a sample, then filled block by block.

What differs from FAISS's own defaults, and why: to build in less time, k-means runs 8 rounds over 64 vectors a list
instead of 10 over 256, and OPQ 6 rounds over 16,384 vectors instead of 50 over 65,536 (what that costs in recall at
equal effort was not measured); PCA does not subtract the mean, for that would change which inner product is greatest,
and what it gives is made length 1 again; lists have means for centroids, to which an item goes by distance, where FAISS
has spherical ones for inner products (see `coarse`); and codes of 4 bits hold residuals, which costs nothing to search.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from twinspire.errors import InputError
from twinspire.index.ann.kinds import Code, Family, Kind, Scheme
from twinspire.index.ann.library import faiss_library
from twinspire.index.vectors import Vectors

BLOCK_ROWS = 65_536
_ROUNDS = 8
_PER_LIST = 64
_PER_CODE = 128
_OPQ_ROUNDS = 6
_OPQ_SAMPLE = 16_384


def trained(kind: Kind, vectors: Vectors, seed: int) -> Any:  # noqa: ANN401
    """Return an empty FAISS index of `kind`, one of flat, ivf and hnsw, trained on a sample of `vectors` (N, D)."""
    count, dim = vectors.shape
    _require_enough(kind, count)
    sample = sampled(vectors, kind.sample(count), seed)
    chain = []
    if kind.pca is not None:
        chain = _projection(sample, kind.pca)
    width = kind.width(dim)
    if kind.code is not None and kind.code.scheme is Scheme.PQ:
        for step in chain:
            sample = step.apply(sample)
        chain.append(rotation := _rotation(sample, kind.code, width))
        sample = rotation.apply(sample)
        width = rotation.d_out
    else:
        for step in chain:
            sample = step.apply(sample)
    core = _core(kind, width, count, seed)
    core.train(sample)
    return _chained(chain, core)


def fill(index: Any, vectors: Vectors) -> None:  # noqa: ANN401
    """Add `vectors` (N, D) to a trained index, block by block, as float32."""
    for start in range(0, len(vectors), BLOCK_ROWS):
        index.add(np.ascontiguousarray(vectors[start : start + BLOCK_ROWS], dtype=np.float32))


def sampled(vectors: Vectors, count: int, seed: int) -> NDArray[np.float32]:
    """Return `count` of `vectors` drawn by `seed`, in their order, (count, D) float32."""
    if count >= len(vectors):
        return np.ascontiguousarray(vectors, dtype=np.float32)
    rows = np.sort(np.random.default_rng(seed).choice(len(vectors), count, replace=False))
    return np.ascontiguousarray(vectors[rows], dtype=np.float32)


def _require_enough(kind: Kind, count: int) -> None:
    least = kind.lists(count) if kind.family in (Family.IVF, Family.GPU_IVF) else 1
    if kind.code is not None and kind.code.scheme is Scheme.PQ:
        least = max(least, 1 << kind.code.bits)
    if kind.pca is not None:
        least = max(least, kind.pca)
    if count < least:
        raise InputError(
            f"an index of kind {kind} needs at least {least} vectors to be built from, there are {count}: "
            "search exactly (flat) until there are more"
        )


def _projection(sample: NDArray[np.float32], width: int) -> list[Any]:
    """Return the steps that take vectors to the `width` directions that hold most of them, and to length 1."""
    faiss = faiss_library()
    dim = sample.shape[1]
    moments = sample.T @ sample  # (D, D)
    _, directions = np.linalg.eigh(moments.astype(np.float64))  # ascending
    matrix = np.ascontiguousarray(directions.T[::-1][:width], dtype=np.float32)  # (width, D)
    linear = faiss.LinearTransform(dim, width, False)
    faiss.copy_array_to_vector(matrix.ravel(), linear.A)
    linear.is_trained = True
    linear.set_is_orthonormal()
    return [linear, faiss.NormalizationTransform(width, 2.0)]


def _rotation(sample: NDArray[np.float32], code: Code, width: int) -> Any:  # noqa: ANN401
    """Return OPQ's rotation to a multiple of the parts (Ge et al., Optimized Product Quantization, CVPR 2013)."""
    faiss = faiss_library()
    rotation = faiss.OPQMatrix(width, code.parts, width // code.parts * code.parts)
    rotation.niter = _OPQ_ROUNDS
    rotation.niter_pq_0 = _ROUNDS
    rotation.max_train_points = _OPQ_SAMPLE
    quantizer = faiss.ProductQuantizer(rotation.d_out, code.parts, code.bits)
    _quiet(quantizer.cp)
    rotation.pq = quantizer
    rotation.train(sample[:: max(1, len(sample) // _OPQ_SAMPLE)])
    rotation.pq = None  # it belongs to Python and goes with this function
    return rotation


def _core(kind: Kind, width: int, count: int, seed: int) -> Any:  # noqa: ANN401
    faiss = faiss_library()
    metric, eight_bits = faiss.METRIC_INNER_PRODUCT, faiss.ScalarQuantizer.QT_8bit
    if kind.family is Family.FLAT:
        return faiss.IndexFlatIP(width)
    if kind.family is Family.HNSW:
        if kind.code is None:
            graph = faiss.IndexHNSWFlat(width, kind.neighbours(), metric)
        else:
            graph = faiss.IndexHNSWSQ(width, eight_bits, kind.neighbours(), metric)
        graph.hnsw.efConstruction = kind.breadth()
        return graph
    assert kind.family is Family.IVF
    lists = kind.lists(count)
    coarse = faiss.IndexFlatL2(width)  # of means: see `coarse`
    if kind.code is None:
        index = faiss.IndexIVFFlat(coarse, width, lists, metric)
    elif kind.code.scheme is Scheme.SQ:
        index = faiss.IndexIVFScalarQuantizer(coarse, width, lists, eight_bits, metric)
    elif kind.code.bits == 4:
        index = faiss.IndexIVFPQFastScan(coarse, width, lists, kind.code.parts, 4, metric)
        index.by_residual = True
    else:
        index = faiss.IndexIVFPQ(coarse, width, lists, kind.code.parts, 8, metric)
    if kind.code is not None and kind.code.scheme is Scheme.PQ:
        _quiet(index.pq.cp)
        index.pq.cp.niter = _ROUNDS
        index.pq.cp.max_points_per_centroid = _PER_CODE
    coarse.this.disown()  # the index frees it
    index.own_fields = True
    _quiet(index.cp)
    index.cp.niter = _ROUNDS
    index.cp.max_points_per_centroid = _PER_LIST
    index.cp.seed = 1 + seed
    index.cp.spherical = False
    return index


def _chained(chain: list[Any], core: Any) -> Any:  # noqa: ANN401
    """Return `core` behind the steps of `chain`."""
    faiss = faiss_library()
    if not chain:
        return core
    index = faiss.IndexPreTransform(core)
    for step in reversed(chain):
        index.prepend_transform(step)
        step.this.disown()
    core.this.disown()
    index.own_fields = True
    index.is_trained = True
    return index


def _quiet(parameters: Any) -> None:  # noqa: ANN401
    """Keep k-means from printing that it would like more vectors."""
    parameters.min_points_per_centroid = 1
