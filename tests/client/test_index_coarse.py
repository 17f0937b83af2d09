"""Which lists of an IVF index are looked at: means and spread against FAISS's ranking by spherical centroids."""

from __future__ import annotations

from typing import Any

import faiss
import numpy as np
import pytest
from numpy.typing import NDArray

from twinspire.index.ann import AnnIndex, IndexSpec, Ivf, SearchParameters, Selection
from twinspire.index.ann.codes import allocated
from twinspire.index.ann.tuning import recall_by_score
from twinspire.index.flat import nearest

pytestmark = pytest.mark.slow

COUNT, DIM, LISTS, K = 20_000, 32, 128, 10


@pytest.fixture(scope="module")
def data() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """20,000 items of 2,000 clusters of power-law size, and 200 queries on the other side of a modality gap."""
    draw = np.random.default_rng(7)
    scales = (np.arange(1, DIM + 1) ** -0.5).astype(np.float32)
    scales /= np.linalg.norm(scales)
    centres = draw.standard_normal((2_000, DIM), dtype=np.float32) * scales
    share = 1 / np.arange(1, 2_001)
    gap = draw.standard_normal(DIM, dtype=np.float32)
    gap *= 0.7 / np.linalg.norm(gap)

    def points(count: int, shift: NDArray[np.float32]) -> NDArray[np.float32]:
        chosen = centres[draw.choice(2_000, count, p=share / share.sum())]
        found = chosen + 0.7 * draw.standard_normal((count, DIM), dtype=np.float32) * scales + shift
        unit: NDArray[np.float32] = (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)
        return unit

    return points(COUNT, gap), points(200, -gap)


def spherical(vectors: NDArray[np.float32]) -> Any:
    """Return the index that FAISS makes by itself for inner products: normalised centroids, ranked by these alone."""
    quantizer = faiss.IndexFlatIP(DIM)
    index = faiss.IndexIVFFlat(quantizer, DIM, LISTS, faiss.METRIC_INNER_PRODUCT)
    quantizer.this.disown()
    index.own_fields = True
    index.cp.seed = 1
    index.train(vectors)
    index.add(vectors)
    return index


def adopted(spec: str, index: Any) -> AnnIndex:
    """Search an index of FAISS's as one of ours."""
    family = Ivf(IndexSpec.parse(spec), threads=1)
    family.adopt(index)
    return AnnIndex(family)


def test_same_number_of_lists_finds_more(data: tuple[NDArray[np.float32], NDArray[np.float32]]) -> None:
    """In 6 of 128 lists lies 2% more of what is best for queries of another modality than in FAISS's first 6."""
    vectors, queries = data
    exact, _ = nearest(vectors, queries, K)
    ours = AnnIndex.build(IndexSpec.parse(f"ivf,nlist={LISTS}"), vectors, threads=2)
    theirs = adopted(f"ivf,nlist={LISTS}", spherical(vectors))
    found = recall_by_score(ours.search(queries, K, vectors, effort=6)[0], exact)
    by_centroids = recall_by_score(theirs.search(queries, K, vectors, effort=6)[0], exact)
    print(f"recall@10: {found:.3f}, {by_centroids:.3f} by spherical centroids")
    assert found > by_centroids + 0.02


def test_index_of_spherical_centroids_is_searched_as_before(
    data: tuple[NDArray[np.float32], NDArray[np.float32]],
) -> None:
    """An index file of an earlier version, whose centroids have length 1, finds what FAISS finds in it."""
    vectors, queries = data
    index = spherical(vectors)
    scores, rows = adopted("ivf", index).search(queries, K, vectors, effort=5)
    index.nprobe = 5
    expected_scores, expected_rows = index.search(queries, K)
    np.testing.assert_allclose(scores, expected_scores, atol=1e-6)
    assert (rows == expected_rows).mean() > 0.999  # equal scores in the order of rows


@pytest.mark.parametrize("name", ["ivf", "ivf,pq16x4", "pca24,ivf,sq8", "ivf,pq8"])
def test_all_lists_find_all_that_a_filter_keeps(
    name: str, data: tuple[NDArray[np.float32], NDArray[np.float32]]
) -> None:
    """With as many lists as there are every kind finds what exact search finds among the rows that are kept."""
    vectors, queries = data
    mask = np.arange(COUNT) % 3 == 0
    exact, _ = nearest(vectors, queries, K, allowed=mask)
    ann = AnnIndex.build(IndexSpec.parse(f"{name},nlist={LISTS}"), vectors, threads=2)
    scores, rows = ann.search(queries, K, vectors, selection=Selection.of(mask), effort=LISTS, rescore_factor=100)
    assert mask[rows].all()
    assert recall_by_score(scores, exact) > 0.99


def test_residuals_are_coded(data: tuple[NDArray[np.float32], NDArray[np.float32]]) -> None:
    """Fast-scan codes hold what an item differs from its list's mean by: estimates are nearer than of whole vectors."""
    vectors, queries = data
    ann = AnnIndex.build(IndexSpec.parse(f"ivf,pq16x4,nlist={LISTS}"), vectors, threads=2)
    exact, _ = nearest(vectors, queries, K)
    scores, _ = ann.search(queries, K, vectors, effort=LISTS, rescore_factor=4)
    plain = faiss.index_factory(DIM, f"IVF{LISTS},PQ16x4fs", faiss.METRIC_INNER_PRODUCT)
    plain.train(vectors)
    plain.add(vectors)
    before, _ = adopted("ivf,pq16x4", plain).search(queries, K, vectors, effort=LISTS, rescore_factor=4)
    assert recall_by_score(scores, exact) > recall_by_score(before, exact)


@pytest.mark.parametrize("name", ["ivf,pq16x4", "ivf,pq16", "ivf,pq15", "pca24,ivf,pq8"])
def test_scaled_directions_keep_inner_products(
    name: str, data: tuple[NDArray[np.float32], NDArray[np.float32]]
) -> None:
    """Items are coded with their directions scaled, queries with the inverse: estimates lie about the exact scores."""
    vectors, queries = data
    ann = AnnIndex.build(IndexSpec.parse(f"{name},nlist={LISTS}"), vectors, threads=2)
    estimates, rows = ann.index.search(queries, SearchParameters(50, 50, LISTS))
    exact = np.einsum("qd,qkd->qk", queries, vectors[rows])
    errors = estimates - exact
    print(f"{name}: errors of mean {errors.mean():.4f}, deviation {errors.std():.4f}")
    assert abs(errors.mean()) < 0.06
    assert errors.std() < 0.1


def test_directions_are_spread_over_the_parts() -> None:
    """Each part gets as many directions, great variances go with small ones, and the smallest are left out."""
    variances = 2.0 ** -np.arange(8)
    order = allocated(variances, 3, 6)
    assert sorted(order.tolist()) == [0, 1, 2, 3, 4, 5]
    assert sorted(order.reshape(3, 2).sum(axis=1).tolist()) == [5, 5, 5]
