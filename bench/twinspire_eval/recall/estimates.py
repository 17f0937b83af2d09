"""Confidence intervals of metrics, and of the difference between two models on the same queries.

A percentile bootstrap (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13) that resamples images
with replacement, each with all its captions: captions of one image are not independent queries. The searched set stays
the same. Two models are compared on the same resamples, and so are pooled languages and directions.

Where all queries have the same value, all resamples are equal: an interval without width says nothing about other
queries.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from twinspire.errors import InputError
from twinspire_eval.recall.metrics import METRICS, metrics_of, weighted_metrics
from twinspire_eval.recall.ranking import Ranking
from twinspire_eval.statistics import CONFIDENCE, Estimate, Interval

RESAMPLES = 1_000
# How many weights, and how many weighted queries, are in memory at a time.
_AT_ONCE = 1 << 22


def estimates(ranking: Ranking, *, resamples: int = RESAMPLES, seed: int = 0) -> dict[str, Estimate]:
    """Return all registered metrics of a ranking, with their intervals; the same seed gives the same intervals.

    Raises InputError where `resamples` is not positive.
    """
    values, draws = metrics_of(ranking), _draws([ranking], resamples, seed)
    return {name: _estimate(values[name], draws[name][0]) for name in METRICS}


def difference(
    reference: Sequence[Ranking], candidate: Sequence[Ranking], *, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, Estimate]:
    """Return `candidate` minus `reference` in each metric, with intervals.

    Both are of the same queries, ranking by ranking: of two engines, for example, in two languages and both directions.
    Several rankings are averaged with equal weights.

    Raises InputError where the two are not of the same queries, or the rankings not of the same images.
    """
    _check_same(reference, candidate)
    before, after = [metrics_of(ranking) for ranking in reference], [metrics_of(ranking) for ranking in candidate]
    draws_before, draws_after = _draws(reference, resamples, seed), _draws(candidate, resamples, seed)
    return {
        name: _estimate(
            float(np.mean([new[name] - old[name] for old, new in zip(before, after, strict=True)])),
            (draws_after[name] - draws_before[name]).mean(axis=0),
        )
        for name in METRICS
    }


def _draws(rankings: Sequence[Ranking], resamples: int, seed: int) -> Mapping[str, NDArray[np.float64]]:
    """Compute the metrics of K rankings of the same N images on the same R resamples: (K, R) for each metric."""
    if resamples < 1:
        raise InputError(f"resamples {resamples}: expected at least 1")
    count = rankings[0].image_count
    generator = np.random.default_rng(seed)
    resampled = {name: np.empty((len(rankings), resamples)) for name in METRICS}
    rows = max(1, _AT_ONCE // max(count, *(len(ranking) for ranking in rankings)))
    for start in range(0, resamples, rows):
        part = min(rows, resamples - start)
        weights = _weights(generator, part, count)
        for place, ranking in enumerate(rankings):
            for name, values in weighted_metrics(ranking, weights).items():
                resampled[name][place, start : start + part] = values
    return resampled


def _weights(generator: np.random.Generator, rows: int, count: int) -> NDArray[np.float64]:
    """Return how often each of `count` images occurs in `rows` resamples of as many: (rows, count)."""
    chosen = generator.integers(count, size=(rows, count)) + count * np.arange(rows)[:, None]
    return np.bincount(chosen.ravel(), minlength=rows * count).reshape(rows, count).astype(np.float64)


def _estimate(value: float, draws: NDArray[np.float64]) -> Estimate:
    outside = 50 * (1 - CONFIDENCE)
    # A resample may lack the few images that have a caption in a language; its NaN is left out.
    low, high = np.percentile(draws[np.isfinite(draws)], (outside, 100 - outside))
    return Estimate(value, Interval(float(low), float(high)))


def _check_same(reference: Sequence[Ranking], candidate: Sequence[Ranking]) -> None:
    if not reference or len(reference) != len(candidate):
        raise InputError(f"{len(reference)} and {len(candidate)} rankings: expected equally many, at least one")
    for old, new in zip(reference, candidate, strict=True):
        if old.image_count != new.image_count or not np.array_equal(old.images, new.images):
            raise InputError(f"rankings of {len(old):,} and {len(new):,} queries: expected the same queries in both")
    if len({ranking.image_count for ranking in reference}) > 1:
        raise InputError("rankings of different images: expected the same images; or compare the rankings one by one")
