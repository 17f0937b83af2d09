"""Recall, against `ir_measures`, a ranking done by sorting, and the intervals of independent samples."""

from __future__ import annotations

from collections.abc import Iterator

import ir_measures
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ir_measures import AP, RR, Success

from twinspire.errors import EmbeddingError, InputError
from twinspire_eval.recall import (
    MAP,
    MEDIAN_RANK,
    METRICS,
    MRR,
    P1,
    R1,
    R5,
    R10,
    Direction,
    MeanMetric,
    Metric,
    Ranking,
    both_ways,
    difference,
    estimates,
    metrics_of,
    pair_accuracy,
    query_figures,
    rank_both_ways,
    rank_queries,
    recall,
    register_metric,
)
from twinspire_eval.statistics import interval


def _unit(rng: np.random.Generator, rows: int, dim: int) -> np.ndarray:
    vectors = rng.standard_normal((rows, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_a_model_that_answers_everything_alike_has_no_recall() -> None:
    """Ties count against the query: a constant embedding is not right by luck of the order."""
    same = np.tile(np.float32([1, 0]), (50, 1))
    assert recall(same, same).r1 == 0.0


def test_recall_counts_the_first_1_5_and_10() -> None:
    """With the own item at rank i for query i, recall at k is k of the number of queries."""
    size = 20
    scores = np.zeros((size, size), np.float32)
    for query in range(size):
        scores[query, query] = 0.5
        others = [item for item in range(size) if item != query][:query]
        scores[query, others] = 1.0
    # Items as the identity: the scores are the queries themselves.
    result = recall(scores, np.eye(size, dtype=np.float32))
    assert (result.r1, result.r5, result.r10) == (1 / 20, 5 / 20, 10 / 20)


def test_both_ways_are_two_recalls() -> None:
    """Text to image ranks images for captions; image to text is the other way round."""
    rng = np.random.default_rng(0)
    images, texts = _unit(rng, 30, 8), _unit(rng, 30, 8)
    result = both_ways(images, texts)
    assert result.text_to_image == recall(texts, images)
    assert result.image_to_text == recall(images, texts)


def test_pair_accuracy_needs_both_members() -> None:
    """A pair counts only where both captions, or both images, find their own partner."""
    images = np.float32([[1, 0], [0, 1], [1, 0], [0, 1]])
    texts = np.float32([[1, 0], [0, 1], [1, 0], [0.9, 0.1]])
    assert pair_accuracy(images, texts) == (0.5, 1.0)


def test_recall_of_nothing_is_an_error() -> None:
    """No queries, or another number of items, is no recall of 1."""
    with pytest.raises(ValueError, match=r"\(0, 4\)"):
        recall(np.zeros((0, 4), np.float32), np.zeros((0, 4), np.float32))


def _drawn(seed: int, pictures: int, most_captions: int, *, noise: float = 1.0, dim: int = 6) -> tuple[np.ndarray, ...]:
    """Images, captions near them, and owners in no order: as a model would give them."""
    rng = np.random.default_rng(seed)
    images = _unit(rng, pictures, dim)
    owners = rng.permutation(np.repeat(np.arange(pictures), rng.integers(1, most_captions + 1, pictures)))
    texts = images[owners] + noise * rng.standard_normal((len(owners), dim)).astype(np.float32)
    return images, texts / np.linalg.norm(texts, axis=1, keepdims=True), owners


def _asked_of_ir_measures(
    scores: np.ndarray, relevant: np.ndarray, wanted: list[ir_measures.Measure]
) -> dict[ir_measures.Measure, dict[int, float]]:
    """Each measure of each query by `ir_measures` (trec_eval); `scores` and `relevant` are (queries, items)."""
    run = {f"{query}": {f"{item}": float(score) for item, score in enumerate(row)} for query, row in enumerate(scores)}
    truth = {f"{query}": {f"{item}": int(own) for item, own in enumerate(row)} for query, row in enumerate(relevant)}
    found: dict[ir_measures.Measure, dict[int, float]] = {measure: {} for measure in wanted}
    for each in ir_measures.iter_calc(wanted, truth, run):
        found[each.measure][int(each.query_id)] = each.value
    return found


def _agrees(ranking: Ranking, scores: np.ndarray, relevant: np.ndarray) -> None:
    wanted = {R1: Success @ 1, R5: Success @ 5, R10: Success @ 10, MRR: RR} | {MAP: AP}
    theirs = _asked_of_ir_measures(scores, relevant, list(wanted.values()))
    asked = np.flatnonzero(relevant.any(axis=1))
    assert len(asked) == len(ranking)
    expected_rr = np.array([theirs[RR][int(query)] for query in asked])
    expected_ap = np.array([theirs[AP][int(query)] for query in asked])
    np.testing.assert_allclose(1 / ranking.first_ranks, expected_rr, rtol=1e-6)
    np.testing.assert_allclose(ranking.average_precisions, expected_ap, rtol=1e-6)
    for measure, name in wanted.items():
        expected = np.mean([theirs[name][int(query)] for query in asked])
        assert metrics_of(ranking)[measure] == pytest.approx(expected, abs=1e-6)
    assert metrics_of(ranking)[MEDIAN_RANK] == pytest.approx(np.median(1 / expected_rr))


@given(st.integers(0, 2**32 - 1), st.integers(1, 25), st.integers(1, 5), st.floats(0.05, 3))
@settings(max_examples=60, deadline=None)
def test_all_measures_are_those_of_ir_measures(seed: int, pictures: int, captions: int, noise: float) -> None:
    """Both directions, several captions an image: query by query as trec_eval has it."""
    images, texts, owners = _drawn(seed, pictures, captions, noise=noise)
    both = rank_both_ways(images, texts, owners)
    scores = texts.astype(np.float64) @ images.T.astype(np.float64)  # (T, N)
    relevant = owners[:, None] == np.arange(pictures)
    _agrees(both[Direction.TEXT_TO_IMAGE], scores, relevant)
    _agrees(both[Direction.IMAGE_TO_TEXT], scores.T, relevant.T)


@given(st.integers(0, 2**32 - 1), st.integers(1, 25), st.integers(1, 5), st.integers(1, 4))
@settings(max_examples=30, deadline=None)
def test_the_best_of_several_vectors_scores(seed: int, pictures: int, captions: int, several: int) -> None:
    """Images with several vectors each are ranked by the maximum of their inner products, both ways."""
    images, texts, owners = _drawn(seed, pictures, captions)
    rng = np.random.default_rng(seed + 1)
    vectors = np.stack([images, *(_unit(rng, pictures, images.shape[1]) for _ in range(several - 1))], axis=1)
    both = rank_both_ways(vectors, texts, owners)
    scores = np.einsum("td,nqd->tnq", texts.astype(np.float64), vectors.astype(np.float64)).max(axis=2)  # (T, N)
    relevant = owners[:, None] == np.arange(pictures)
    _agrees(both[Direction.TEXT_TO_IMAGE], scores, relevant)
    _agrees(both[Direction.IMAGE_TO_TEXT], scores.T, relevant.T)


@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_ties_count_against_the_model(seed: int, pictures: int, captions: int) -> None:
    """Among equal scores the own items come last, those of one image in any order."""
    rng = np.random.default_rng(seed)
    _, _, owners = _drawn(seed, pictures, captions)
    images = rng.integers(-1, 2, (pictures, 3)).astype(np.float32)
    texts = rng.integers(-1, 2, (len(owners), 3)).astype(np.float32)
    both = rank_both_ways(images, texts, owners)
    relevant = owners[:, None] == np.arange(pictures)
    scores = texts @ images.T - 0.1 * relevant  # whole numbers, own ones a little less
    # trec_eval breaks the ties that are left by name: between own items they change nothing.
    _agrees(both[Direction.TEXT_TO_IMAGE], scores, relevant)
    _agrees(both[Direction.IMAGE_TO_TEXT], scores.T, relevant.T)


@pytest.mark.parametrize("dim", [7, 64, 512])
def test_equal_embeddings_tie_at_any_place_of_any_block(dim: int) -> None:
    """A constant model finds nothing among more items than a block holds, whatever order sums are taken in."""
    rng = np.random.default_rng(dim)
    pictures, owners = 1_100, np.repeat(np.arange(1_100), 4)
    both = rank_both_ways(
        np.repeat(_unit(rng, 1, dim), pictures, axis=0), np.repeat(_unit(rng, 1, dim), len(owners), axis=0), owners
    )
    assert (both[Direction.TEXT_TO_IMAGE].first_ranks == pictures).all()
    assert (both[Direction.IMAGE_TO_TEXT].first_ranks == len(owners) - 4 + 1).all()


def test_blocks_do_not_change_ranks() -> None:
    """More images and captions than a block holds are ranked as one sort does it."""
    images, texts, owners = _drawn(3, 1_500, 6, noise=0.5, dim=16)
    assert len(texts) > 4_096
    both = rank_both_ways(images, texts, owners)
    scores = texts.astype(np.float64) @ images.T.astype(np.float64)
    own = scores[np.arange(len(texts)), owners]
    assert np.array_equal(both[Direction.TEXT_TO_IMAGE].first_ranks, (scores > own[:, None]).sum(axis=1) + 1)
    best = np.full(len(images), -np.inf)
    np.maximum.at(best, owners, own)
    assert np.array_equal(both[Direction.IMAGE_TO_TEXT].first_ranks, (scores > best).sum(axis=0) + 1)


@given(st.integers(0, 2**32 - 1), st.integers(2, 20))
@settings(max_examples=40, deadline=None)
def test_the_order_of_captions_and_images_is_no_matter(seed: int, pictures: int) -> None:
    """Shuffled captions and images give the same measures."""
    images, texts, owners = _drawn(seed, pictures, 3)
    rng = np.random.default_rng(seed)
    turned, said = rng.permutation(pictures), rng.permutation(len(texts))
    shuffled = rank_both_ways(images[turned], texts[said], np.argsort(turned)[owners[said]])
    for direction, ranking in rank_both_ways(images, texts, owners).items():
        assert metrics_of(shuffled[direction]) == pytest.approx(metrics_of(ranking))


def test_a_image_without_captions_is_only_found() -> None:
    """It stands in the way of others' captions and asks nothing."""
    images = np.float32([[1, 0], [0.8, 0.6], [0, 1]])
    texts = np.float32([[0.9, 0.436], [0, 1]])
    both = rank_both_ways(images, texts, np.array([0, 2]))
    assert both[Direction.TEXT_TO_IMAGE].first_ranks.tolist() == [2, 1]
    assert both[Direction.IMAGE_TO_TEXT].images.tolist() == [0, 2]
    assert both[Direction.IMAGE_TO_TEXT].image_count == 3


@pytest.mark.parametrize(
    ("images", "texts", "owners", "error", "message"),
    [
        (np.zeros((2, 3), np.float32), np.zeros((2, 4), np.float32), [0, 1], EmbeddingError, r"\(2, 4\)"),
        (np.zeros((2, 3), np.float32), np.zeros((0, 3), np.float32), [], EmbeddingError, r"\(0, 3\)"),
        (np.full((2, 3), np.nan, np.float32), np.zeros((2, 3), np.float32), [0, 1], EmbeddingError, "finite"),
        (np.zeros((2, 3), np.float32), np.float32([[0, 0, 0], [0, np.inf, 0]]), [0, 1], EmbeddingError, "caption 1"),
        (np.zeros((2, 3), np.float32), np.zeros((2, 3), np.float32), [0, 2], InputError, "rows"),
        (np.zeros((2, 3), np.float32), np.zeros((2, 3), np.float32), [-1, 0], InputError, "-1"),
        (np.zeros((2, 3), np.float32), np.zeros((2, 3), np.float32), [0], InputError, r"\(1,\)"),
        (np.zeros((2, 3), np.float32), np.zeros((2, 3), np.float32), [0.0, 1.0], InputError, "float64"),
    ],
)
def test_embeddings_that_cannot_be_ranked_are_errors(
    images: np.ndarray, texts: np.ndarray, owners: list[float], error: type[Exception], message: str
) -> None:
    """A broken engine's embeddings, which compare with nothing, never pass for the first rank."""
    with pytest.raises(error, match=message):
        rank_both_ways(images, texts, np.array(owners))


@pytest.mark.parametrize("direction", [Direction.TEXT_TO_IMAGE, Direction.IMAGE_TO_TEXT])
def test_intervals_are_those_of_the_bootstrap_of_images(direction: Direction) -> None:
    """Weights of images give, draw by draw, what drawing the images' rows gives."""
    images, texts, owners = _drawn(5, 80, 4)
    ranking = rank_both_ways(images, texts, owners)[direction]
    found = estimates(ranking, resamples=300, seed=9)
    within = (ranking.first_ranks <= 5).astype(float)
    rows = np.stack(
        [np.bincount(ranking.images, weights, minlength=80) for weights in (within, np.ones(len(ranking)))], axis=1
    )
    expected = interval(
        rows, lambda draws: draws[..., 0].sum(axis=1) / draws[..., 1].sum(axis=1), seed=9, resamples=300
    )
    assert found[R5].value == pytest.approx(within.mean())
    assert (found[R5].interval.low, found[R5].interval.high) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_the_interval_of_a_median_is_that_of_the_bootstrap() -> None:
    """With a caption an image the median rank's interval is that of drawing ranks."""
    images, texts, owners = _drawn(6, 61, 1, noise=2.0)
    ranking = rank_both_ways(images, texts, owners)[Direction.TEXT_TO_IMAGE]
    by_image = np.empty(61)
    by_image[ranking.images] = ranking.first_ranks
    found, expected = estimates(ranking, seed=2)[MEDIAN_RANK], interval(by_image, seed=2, resamples=1_000)
    assert found.value == np.median(by_image)
    assert (found.interval.low, found.interval.high) == (expected.low, expected.high)


def test_captions_of_one_image_are_no_independent_queries() -> None:
    """Saying everything five times makes no interval narrower."""
    images, texts, owners = _drawn(7, 400, 1)
    once = Ranking(*_parts(rank_both_ways(images, texts, owners)[Direction.TEXT_TO_IMAGE]), image_count=400)
    five = Ranking(*(np.repeat(part, 5) for part in _parts(once)), image_count=400)
    for measure, found in estimates(once).items():
        repeated = estimates(five)[measure]
        assert repeated.value == pytest.approx(found.value)
        assert repeated.interval.low == pytest.approx(found.interval.low)
        assert repeated.interval.high == pytest.approx(found.interval.high)
    share = metrics_of(once)[R1]
    expected_width = 2 * 1.96 * np.sqrt(share * (1 - share) / 400)
    width = estimates(once)[R1].interval
    assert width.high - width.low == pytest.approx(expected_width, rel=0.1)


def _parts(ranking: Ranking) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return ranking.first_ranks, ranking.average_precisions, ranking.images


def test_an_engine_does_not_differ_from_itself() -> None:
    """The same ranking twice has a difference of 0, surely."""
    both = list(rank_both_ways(*_drawn(8, 50, 3)).values())
    for found in difference(both, both).values():
        assert (found.value, found.interval.low, found.interval.high) == (0, 0, 0)


def test_a_difference_on_the_same_queries_is_surer_than_two_intervals() -> None:
    """An engine that loses 20 of 1,000 queries: both figures are uncertain by 3 points, the loss by less than 1."""
    rng = np.random.default_rng(0)
    right = rng.random(1_000) < 0.5
    lost = right.copy()
    lost[np.flatnonzero(right)[:20]] = False
    before, after = (_of_ranks(np.where(found, 1, 3)) for found in (right, lost))
    found = difference([before], [after])[R1]
    assert found.value == pytest.approx(-0.02)
    alone = estimates(before)[R1].interval
    assert alone.high - alone.low > 0.055
    assert -0.03 < found.interval.low < -0.02 < found.interval.high < -0.011
    backwards = difference([after], [before])[R1]
    assert (backwards.value, backwards.interval.low) == pytest.approx((-found.value, -found.interval.high))


def test_pooled_differences_are_means() -> None:
    """Directions and languages weigh the same, however many queries each has, in the same draws of images."""
    rng = np.random.default_rng(1)
    before = [_of_ranks(rng.integers(1, 4, 300)) for _ in range(2)]
    after = [_of_ranks(rng.integers(1, 5, 300)) for _ in range(2)]
    pooled = difference(before, after, seed=4)
    singly = [difference([old], [new], seed=4) for old, new in zip(before, after, strict=True)]
    for measure in METRICS:
        assert pooled[measure].value == pytest.approx(np.mean([one[measure].value for one in singly]))
    per_image = np.mean(
        [(new.first_ranks == 1) * 1.0 - (old.first_ranks == 1) for old, new in zip(before, after, strict=True)], axis=0
    )
    expected = interval(per_image, lambda draws: draws.mean(axis=1), seed=4, resamples=1_000)
    assert pooled[R1].interval.low == pytest.approx(expected.low)
    assert pooled[R1].interval.high == pytest.approx(expected.high)


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """Of 300 samples about 95% have the true share in their interval."""
    rng = np.random.default_rng(2)
    held = 0
    for seed in range(300):
        found = estimates(_of_ranks(np.where(rng.random(200) < 0.7, 1, 2)), resamples=400, seed=seed)[R1]
        held += found.interval.low <= 0.7 <= found.interval.high
    assert 0.91 <= held / 300 <= 0.98


def test_draws_without_a_query_say_nothing() -> None:
    """One image of three speaks the language: draws that miss it are left out of the interval."""
    lone = Ranking(np.array([1]), np.array([1.0]), np.array([2]), image_count=3)
    found = estimates(lone)
    assert found[R1].interval == found[MRR].interval
    assert (found[MEDIAN_RANK].interval.low, found[MEDIAN_RANK].interval.high) == (1, 1)


@pytest.mark.parametrize("other", [[1, 2], [1, 2, 3, 4]])
def test_other_queries_are_not_compared(other: list[int]) -> None:
    """Rankings of other queries, or of another number of images, have no paired difference."""
    with pytest.raises(InputError, match="queries"):
        difference([_of_ranks(np.array([1, 2, 3]))], [_of_ranks(np.array(other))])
    both = [_of_ranks(np.array([1, 2, 3])), _of_ranks(np.array(other))]
    with pytest.raises(InputError, match="images"):
        difference(both, both)
    with pytest.raises(InputError, match="1 and 0"):
        difference([_of_ranks(np.array([1]))], [])


def test_no_resamples_are_an_error() -> None:
    """An interval needs draws."""
    with pytest.raises(InputError, match="resamples"):
        estimates(_of_ranks(np.array([1])), resamples=0)


def _of_ranks(found: np.ndarray) -> Ranking:
    """A ranking with a query an image."""
    return Ranking(found, 1 / found, np.arange(len(found)), image_count=len(found))


def test_the_short_form_stays_as_files_have_it() -> None:
    """Certificates and reports carry these keys."""
    rng = np.random.default_rng(0)
    document = both_ways(_unit(rng, 5, 4), _unit(rng, 5, 4)).to_json()
    assert {way: list(found) for way, found in document.items()} == {
        "text_to_image": ["r1", "r5", "r10"],
        "image_to_text": ["r1", "r5", "r10"],
    }


class _Worst(MeanMetric):
    """Share of queries whose first own item is not among the first two."""

    name, label = "worst", "worst"

    def per_query(self, ranking: Ranking) -> np.ndarray:
        """Return 1 for each query that failed."""
        return (ranking.first_ranks > 2).astype(float)


class _LastRank(Metric):
    """Largest rank of a first own item."""

    name, label, is_share = "last_rank", "last", False

    def weighted(self, ranking: Ranking, weights: np.ndarray) -> np.ndarray:
        """Return the largest rank among the images that count."""
        return np.where(weights[:, ranking.images] > 0, ranking.first_ranks, 0).max(axis=1).astype(float)


@pytest.fixture
def toy_metrics() -> Iterator[None]:
    """Register two metrics of this module, one of each sort, and forget them afterwards."""
    for metric in (_Worst(), _LastRank()):
        register_metric(metric)
    yield
    for name in ("worst", "last_rank"):
        del METRICS[name]


@pytest.mark.usefixtures("toy_metrics")
def test_a_metric_is_added_by_one_class() -> None:
    """A registered metric is computed, has an interval and stands in differences; its name can be taken once."""
    before, after = _of_ranks(np.array([1, 1, 3, 9])), _of_ranks(np.array([1, 4, 3, 7]))
    assert metrics_of(before)["worst"] == 0.5
    assert metrics_of(before)["last_rank"] == 9
    assert estimates(before)["worst"].interval.low < 0.5 < estimates(before)["worst"].interval.high
    assert difference([before], [after])["worst"].value == pytest.approx(0.25)
    assert difference([before], [after])["last_rank"].value == -2
    with pytest.raises(InputError, match="worst"):
        register_metric(_Worst())


# Queries with several right images


@given(seed=st.integers(0, 10_000), pictures=st.integers(2, 40), queries=st.integers(1, 12))
@settings(max_examples=30, deadline=None)
def test_queries_are_ranked_as_others_rank_them(seed: int, pictures: int, queries: int) -> None:
    """Ranks, R@k, MRR and mAP of queries with any number of right images are those of trec_eval."""
    rng = np.random.default_rng(seed)
    images, texts = _unit(rng, pictures, 6), _unit(rng, queries, 6)
    relevant = rng.random((queries, pictures)) < 0.3
    relevant[np.arange(queries), rng.integers(0, pictures, queries)] = True
    ranking = rank_queries(images, texts, [np.flatnonzero(row).tolist() for row in relevant])
    _agrees(ranking, texts.astype(np.float64) @ images.T.astype(np.float64), relevant)


def test_precision_at_1_is_the_share_whose_best_image_is_right() -> None:
    """P@1 is NumPy's share of queries whose argmax is right; its interval is that of as many independent samples."""
    rng = np.random.default_rng(7)
    images, texts = _unit(rng, 300, 16), _unit(rng, 400, 16)
    relevant = rng.random((400, 300)) < 0.4
    relevant[:, 0] = True
    right = relevant[np.arange(400), (texts @ images.T).argmax(axis=1)].astype(np.float64)
    found = query_figures(rank_queries(images, texts, [np.flatnonzero(row).tolist() for row in relevant]))[P1]
    assert found.value == right.mean()
    expected = interval(right, lambda draws: draws.mean(axis=1))
    assert found.interval.low == pytest.approx(expected.low, abs=0.01)
    assert found.interval.high == pytest.approx(expected.high, abs=0.01)


def test_equal_images_are_no_luck() -> None:
    """A wrong image with the score of the right ones stands before them."""
    same = np.tile(np.float32([1, 0]), (5, 1))
    ranking = rank_queries(same, same[:1], [[1, 3]])
    assert ranking.first_ranks.tolist() == [4]
    assert ranking.average_precisions.tolist() == [pytest.approx((1 / 4 + 2 / 5) / 2)]


@pytest.mark.parametrize(
    ("relevant", "message"), [([[0]], "1 queries"), ([[0], []], "query 1"), ([[0], [3]], "3"), ([[0], [-1]], "-1")]
)
def test_right_images_are_checked(relevant: list[list[int]], message: str) -> None:
    """Other numbers of queries, a query without a right image, and rows that are not there are errors."""
    with pytest.raises(InputError, match=message):
        rank_queries(np.eye(3, dtype=np.float32), np.eye(3, dtype=np.float32)[:2], relevant)
