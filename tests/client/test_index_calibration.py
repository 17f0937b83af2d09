"""Calibration when an index is built: which queries it is measured with, what it reaches, what it says and keeps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from twinspire.index import Index, Item, ItemKind, snapshots
from twinspire.index.ann import AnnIndex, IndexSpec
from twinspire.index.ann.calibration import calibrated, held_out
from twinspire.index.ann.reports import BuildReport

pytestmark = pytest.mark.slow

SPACE, DIM, K = "space", 48, 10
IMAGES, TEXTS = 6_000, 3_000


def across_a_gap(counts: tuple[int, int], *, clusters: int, dim: int = DIM, seed: int = 0) -> list[NDArray[np.float32]]:
    """Generate two sets of unit vectors of the same clusters, shifted apart, as two towers shift theirs.

    Directions have the variance 1, 1/2, 1/3, ...; `clusters` 0: none.
    """
    draw = np.random.default_rng(seed)
    basis = np.linalg.qr(draw.standard_normal((dim, dim)))[0]
    scales = np.arange(1, dim + 1) ** -0.5
    shape = (scales / np.linalg.norm(scales))[:, None] * basis.T
    centres = draw.standard_normal((clusters, dim)) @ shape if clusters else np.zeros((1, dim))
    gap = draw.standard_normal(dim)
    gap *= 0.7 / np.linalg.norm(gap)
    found = []
    for count, shift in zip(counts, (gap, -gap), strict=True):
        spread = 0.7 if clusters else 1.0
        points = centres[draw.integers(0, len(centres), count)] + shift
        points += spread * (draw.standard_normal((count, dim)) @ shape)
        found.append((points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32))
    return found


def made(path: Path, images: NDArray[np.float32], texts: NDArray[np.float32] | None = None) -> Index:
    """Make an index of images and texts."""
    index = Index.create(path, space=SPACE, dim=images.shape[1])
    index.add(images, [Item(f"/{n}.jpg", ItemKind.IMAGE) for n in range(len(images))], space=SPACE)
    if texts is not None:
        index.add(texts, [Item(f"text {n}", ItemKind.TEXT) for n in range(len(texts))], space=SPACE)
    return index


def recall(index: Index, vectors: NDArray[np.float32], queries: NDArray[np.float32], kind: ItemKind | None) -> float:
    """Return the share of numpy's ten best scores that a search with its defaults reaches."""
    exact = -np.sort(-(queries @ vectors.T), axis=1)[:, K - 1]
    hits = index.search(queries, k=K, space=SPACE, kind=kind)
    return float(np.mean([[hit.score >= least - 1e-5 for hit in row] for row, least in zip(hits, exact, strict=True)]))


@pytest.fixture(autouse=True)
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let filters use the snapshot, and tails be caught up, in indexes of some thousand items."""
    monkeypatch.setattr(snapshots, "EXACT_KEPT", 50)
    monkeypatch.setattr(snapshots, "TAIL_ROWS", 500)


@pytest.mark.slow
@pytest.mark.parametrize("clusters", [0, 200])
@pytest.mark.parametrize(
    "kind", ["ivf", "ivf,sq8", "ivf,pq12x4", "ivf,pq12", "hnsw", "hnsw,sq8", "pca32,flat", "binary"]
)
def test_images_alone_are_found_by_queries_across_a_gap(kind: str, clusters: int, tmp_path: Path) -> None:
    """Queries that the build never saw, shifted by a modality gap, find 95% of numpy's ten best by default."""
    images, queries = across_a_gap((IMAGES, 400), clusters=clusters)
    with made(tmp_path / "index", images) as index:
        found = index.build(kind, threads=2).calibration
        assert found is not None
        assert found.reached, found
        assert recall(index, images, queries, None) >= 0.95, found
        assert recall(index, images, images[:100], None) >= 0.95


@pytest.mark.parametrize("kind", ["ivf", "ivf,sq8", "ivf,pq12x4", "hnsw", "binary"])
def test_both_kinds_find_each_other(kind: str, tmp_path: Path) -> None:
    """In an index of both, texts find images and images find texts, by other items than those measured with."""
    (images, more_images), (texts, more_texts) = (
        np.split(part, [IMAGES if position == 0 else TEXTS])
        for position, part in enumerate(across_a_gap((IMAGES + 300, TEXTS + 300), clusters=200))
    )
    with made(tmp_path / "index", images, texts) as index:
        found = index.build(kind, threads=2).calibration
        assert found is not None
        across = set() if kind == "hnsw" else {"texts against images", "images against texts"}  # a graph's is exact
        assert {group.queries for group in found.measured} == {"held-out items"} | across
        assert found.reached
        assert recall(index, images, more_texts, ItemKind.IMAGE) >= 0.95
        assert recall(index, texts, more_images, ItemKind.TEXT) >= 0.95
        assert recall(index, np.concatenate([images, texts]), more_texts, None) >= 0.95


def test_clip_text_embeddings_are_found_by_images(tmp_path: Path) -> None:
    """Texts near one another in a narrow cone, as CLIP's are, are found by queries from outside of it."""
    draw = np.random.default_rng(4)
    cone, other = draw.standard_normal((2, 256))
    cone, other = cone / np.linalg.norm(cone), other / np.linalg.norm(other)
    texts = cone + 0.6 * draw.standard_normal((1_203, 256)) / 16  # a mean cosine of 0.74, as between "a {name}"
    queries = 0.1 * cone + 0.7 * other + 0.7 * draw.standard_normal((200, 256)) / 16
    texts, queries = (
        (part / np.linalg.norm(part, axis=1, keepdims=True)).astype(np.float32) for part in (texts, queries)
    )
    with Index.create(tmp_path / "index", space=SPACE, dim=256) as index:
        index.add(texts, [Item(f"text {n}", ItemKind.TEXT) for n in range(len(texts))], space=SPACE)
        for kind in ("ivf", "ivf,sq8", "hnsw"):
            index.build(kind)
            assert recall(index, texts, queries, None) >= 0.95


def built(path: Path, kind: str) -> tuple[Index, BuildReport]:
    """Build an index of images."""
    (images, _) = across_a_gap((IMAGES, 1), clusters=200)
    index = made(path, images)
    return index, index.build(kind)


def test_report_says_what_was_measured(tmp_path: Path) -> None:
    """Queries, k, recall, effort, candidates and time are reported; the setting is stored, and holds for searches."""
    index, report = built(tmp_path / "index", "ivf,pq12x4")
    with index:
        found, stats = report.calibration, index.stats().snapshot
    assert found is not None
    assert stats is not None
    assert (found.k, found.target, found.effort_name, found.lists) == (10, 0.95, "nprobe", 64)
    assert (stats.effort, stats.rescore_factor) == (found.effort, found.rescore_factor)
    assert found.rescored_candidates == 10 * found.rescore_factor
    assert sum(group.count for group in found.measured) >= 200
    assert found.recall == min(group.recall for group in found.measured)
    assert found.query_ms > 0
    assert report.calibration_s > 0


@pytest.mark.parametrize("kind", ["flat", "auto"])
def test_exact_search_needs_no_calibration(kind: str, tmp_path: Path) -> None:
    """Where searches are exact nothing is measured."""
    index, report = built(tmp_path / "index", kind)
    with index:
        assert report.calibration is None


def test_codes_too_coarse_are_reported(tmp_path: Path) -> None:
    """Where codes cannot reach the target, the best that was measured is reported as that and stored."""
    draw = np.random.default_rng(0)
    vectors = draw.standard_normal((30_000, 64), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    with made(tmp_path / "index", vectors) as index:
        found = index.build("ivf,nlist=16,pq1x4").calibration
        stats = index.stats().snapshot
    assert found is not None
    assert stats is not None
    assert not found.reached
    assert 0 < found.recall < 0.95
    assert len(found.measured) == 2
    assert (stats.effort, stats.rescore_factor) == (found.effort, found.rescore_factor)


def test_calibrated_share_is_kept_when_it_is_built_anew(tmp_path: Path) -> None:
    """An index that outgrew its lists looks at the same share of the new ones, and still reaches the recall."""
    images, queries = across_a_gap((16 * 400, 300), clusters=200)
    with made(tmp_path / "index", images[:400]) as index:
        report = index.build("ivf").calibration
        index.add(images[400:], [Item(f"/more/{n}.jpg", ItemKind.IMAGE) for n in range(15 * 400)], space=SPACE)
        stats = index.stats().snapshot
        assert report is not None
        assert report.lists is not None
        assert stats is not None
        assert stats.effort is not None
        assert stats.rows == 16 * 400
        assert stats.effort >= report.effort * 64 / report.lists - 1
        assert recall(index, images, queries, None) >= 0.95


@pytest.mark.parametrize("count", [1, 2, 5])
def test_few_items_can_be_built(count: int, tmp_path: Path) -> None:
    """One item has nothing to be measured with, some have; none of it is an error."""
    (images, _) = across_a_gap((count, 1), clusters=0)
    with made(tmp_path / "index", images) as index:
        found = index.build("hnsw").calibration
        assert (found is None) == (count == 1)
        assert len(index.search(images, k=K, space=SPACE)[0]) == count


def test_removed_items_are_neither_asked_with_nor_found(tmp_path: Path) -> None:
    """Rows of removed items do not count: what is measured is what searches find."""
    images, queries = across_a_gap((IMAGES, 300), clusters=200)
    with made(tmp_path / "index", images) as index:
        index.remove(range(0, IMAGES, 2))
        found = index.build("ivf").calibration
        assert found is not None
        assert found.reached
        assert recall(index, images[1::2], queries, None) >= 0.95


def test_a_query_does_not_find_itself() -> None:
    """Each held-out query's own row is left out of what is to be found."""
    (images, _) = across_a_gap((2_000, 1), clusters=20)
    groups = held_out(images, {"images": np.ones(2_000, np.bool_)}, K, 50)
    assert [group.name for group in groups] == ["held-out items", "generated cross-modal queries against images"]
    for group in groups:
        assert group.own is not None
        scores = group.queries.astype(np.float64) @ images.T.astype(np.float64)
        scores[np.arange(len(scores)), group.own] = -np.inf
        assert np.abs(group.exact - -np.sort(-scores, axis=1)[:, :K]).max() < 1e-6
        np.testing.assert_allclose(np.linalg.norm(group.queries, axis=1), 1, atol=1e-5)


def test_small_kind_is_searched_exactly_by_its_filter() -> None:
    """A kind of so few items that a filter makes the search exact is not asked for; too few do not ask either."""
    images, texts = across_a_gap((2_000, 40), clusters=20)
    vectors = np.concatenate([images, texts])
    mask = np.arange(len(vectors)) < len(images)
    names = [group.name for group in held_out(vectors, {"images": mask, "texts": ~mask}, K, 50)]
    assert names == ["held-out items", "generated cross-modal queries against images"]


def test_equal_vectors_are_calibrated_alike() -> None:
    """The same vectors and kind give the same setting."""
    (images, _) = across_a_gap((3_000, 1), clusters=20)
    ann = AnnIndex.build(IndexSpec.parse("ivf"), images)
    kinds = {"images": np.ones(len(images), np.bool_)}
    first, second = (calibrated(ann, images, held_out(images, kinds, K, 50)) for _ in range(2))
    assert first.effort == second.effort
    assert first.recall == second.recall


def test_graph_is_passed_over_where_a_search_crosses_kinds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph answers without a filter, and by kind where all items are of it; across kinds the search is exact."""
    images, texts = across_a_gap((2_000, 600), clusters=50)
    searched, original = list[int](), AnnIndex.search

    def search(self: AnnIndex, queries: NDArray[np.float32], *arguments: object, **options: object) -> object:
        searched.append(len(queries))
        return original(self, queries, *arguments, **options)  # type: ignore[arg-type]

    with made(tmp_path / "alone", images) as alone, made(tmp_path / "both", images, texts) as both:
        alone.build("hnsw")
        both.build("hnsw")
        monkeypatch.setattr(AnnIndex, "search", search)
        alone.search(texts[:3], k=K, space=SPACE, kind=ItemKind.IMAGE)
        both.search(texts[:4], k=K, space=SPACE)
        assert searched == [3, 4]
        assert recall(both, images, texts[:50], ItemKind.IMAGE) == 1
        assert searched == [3, 4]
