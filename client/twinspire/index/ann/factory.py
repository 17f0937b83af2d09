"""How an index of each kind is made with FAISS: trained on a sample, then filled block by block.

What differs from FAISS's own defaults, and why: to build in less time, k-means runs 8 rounds over 64 vectors a list
instead of 10 over 256 (what that costs in recall at equal effort was not measured); PCA does not subtract the mean, for
that would change which inner product is greatest, and what it gives is made length 1 again; in front of PQ stands a
scaled eigenvalue allocation instead of OPQ; lists have means for centroids, to which an item goes by distance, where
FAISS has spherical ones for inner products (see `coarse`); and codes of 4 bits hold residuals, which costs nothing to
search.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from twinspire.errors import InputError
from twinspire.index.ann.faiss_support import faiss_library
from twinspire.index.ann.spec import Code, Family, IndexSpec, Scheme
from twinspire.index.vectors import Vectors

BLOCK_ROWS = 65_536
_ROUNDS = 8
_PER_LIST = 64
_PER_CODE = 512
_ROUGH_SAMPLE = 16_384
_ROUGH_LISTS = 256
_ROUGH_ROUNDS = 4
_WEIGHT = 0.25  # as a power of the variance; 0 and 0.5 were tried (bench/LOG.md)
_FLOOR = 1e-3


def trained(kind: IndexSpec, vectors: Vectors, seed: int) -> Any:  # noqa: ANN401
    """Return an empty FAISS index of `kind`, one of flat, ivf and hnsw, trained on a sample of `vectors` (N, D)."""
    count, dim = vectors.shape
    require_enough(kind, count)
    sample = sampled(vectors, kind.sample(count), seed)
    chain = []
    if kind.pca is not None:
        chain = _projection(sample, kind.pca)
    width = kind.width(dim)
    if kind.code is not None and kind.code.scheme is Scheme.PQ:
        for step in chain:
            sample = step.apply(sample)
        chain.append(rotation := _allocation(sample, kind.code, width))
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


def linear_transform(matrix: NDArray[Any]) -> Any:  # noqa: ANN401
    """Return FAISS's transformation by `matrix` (to, from)."""
    faiss = faiss_library()
    linear = faiss.LinearTransform(matrix.shape[1], matrix.shape[0], False)
    faiss.copy_array_to_vector(np.ascontiguousarray(matrix, dtype=np.float32).ravel(), linear.A)
    linear.is_trained = True
    return linear


def require_enough(kind: IndexSpec, count: int) -> None:
    """Raise `InputError` where `count` vectors are too few to build `kind` from."""
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
    moments = sample.T @ sample  # (D, D)
    _, directions = np.linalg.eigh(moments.astype(np.float64))  # ascending
    linear = linear_transform(directions.T[::-1][:width])
    linear.set_is_orthonormal()
    return [linear, faiss.NormalizationTransform(width, 2.0)]


def _allocation(sample: NDArray[np.float32], code: Code, width: int) -> Any:  # noqa: ANN401
    """Return the linear transformation in front of product quantization, to a multiple of the parts.

    It turns vectors to their principal directions and scales these by the fourth root of the variance. What searches
    gives the query the inverse, which keeps inner products (see `coarse`): codes are then exact where queries are long,
    not equally exact in all directions. Then it distributes the directions over the parts so that the product of the
    variances is about equal: the eigenvalue allocation of Ge et al., Optimized Product Quantization, CVPR 2013. Those
    are the variances of residuals, here to rough centroids, since residuals are what is coded.
    """
    faiss = faiss_library()
    variances, directions = np.linalg.eigh((sample.T @ sample).astype(np.float64) / len(sample))
    weights = np.maximum(variances / variances.mean(), _FLOOR) ** _WEIGHT
    scaling = weights[:, None] * directions.T  # (D, D)
    scaled = (sample[:: max(1, len(sample) // _ROUGH_SAMPLE)] @ scaling.T).astype(np.float32)
    rough = faiss.Kmeans(width, min(_ROUGH_LISTS, len(scaled)), niter=_ROUGH_ROUNDS, min_points_per_centroid=1)
    rough.train(scaled)
    residuals = scaled - rough.centroids[rough.assign(scaled)[1]]
    kept = width // code.parts * code.parts
    return linear_transform(scaling[_allocated(residuals.var(axis=0), code.parts, kept)])


def _allocated(variances: NDArray[Any], parts: int, kept: int) -> NDArray[np.int64]:
    """Return the `kept` directions of the greatest `variances` (D,), those of the first of `parts` parts first."""
    order = np.argsort(-variances, kind="stable")[:kept]
    logs = np.log(np.maximum(variances, 1e-12))
    logs -= logs[order[-1]]
    members: list[list[int]] = [[] for _ in range(parts)]
    sums = np.zeros(parts)
    for direction in order:
        part = int(np.argmin(sums))
        members[part].append(int(direction))
        sums[part] = sums[part] + logs[direction] if len(members[part]) < kept // parts else np.inf
    return np.concatenate([np.array(part, np.int64) for part in members])


def _core(kind: IndexSpec, width: int, count: int, seed: int) -> Any:  # noqa: ANN401
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
