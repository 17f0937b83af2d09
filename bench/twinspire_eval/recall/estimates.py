"""Intervals of measures, and of the difference between two models that answered the same queries.

A percentile bootstrap (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13) that draws images
with replacement, each with all its captions: captions of one image are no independent queries. What is searched
stays as it is. Two models are compared on the same draws, and so are languages and directions that are pooled.

Where all queries fare alike no draw differs from another: an interval without width says nothing of queries that were
not asked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from twinspire.errors import InputError
from twinspire_eval.recall.measures import Measure, measured, weighted
from twinspire_eval.recall.ranking import Ranking
from twinspire_eval.statistics import CONFIDENCE, Interval

RESAMPLES = 1_000
# How many weights, and how many weighted queries, are in memory at a time.
_AT_ONCE = 1 << 22


@dataclass(frozen=True)
class Estimate:
    """A figure, and where it lies with 95% confidence."""

    value: float
    interval: Interval


def estimates(ranking: Ranking, *, resamples: int = RESAMPLES, seed: int = 0) -> dict[Measure, Estimate]:
    """Return all measures of a ranking, with their intervals; the same seed gives the same.

    Raises InputError where `resamples` is not positive.
    """
    values, draws = measured(ranking), _draws([ranking], resamples, seed)
    return {measure: _estimate(values[measure], draws[measure][0]) for measure in Measure}


def difference(
    reference: Sequence[Ranking], candidate: Sequence[Ranking], *, resamples: int = RESAMPLES, seed: int = 0
) -> dict[Measure, Estimate]:
    """Return by how much `candidate` is above `reference` in each measure, with intervals.

    Both are of the same queries, ranking by ranking: two engines, say, asked in two languages and both directions. With
    several rankings each has the same weight, and the figures are those of their mean.

    Raises InputError where the two are not of the same queries, or the rankings not of the same images.
    """
    _check_same(reference, candidate)
    before, after = [measured(ranking) for ranking in reference], [measured(ranking) for ranking in candidate]
    draws_before, draws_after = _draws(reference, resamples, seed), _draws(candidate, resamples, seed)
    return {
        measure: _estimate(
            float(np.mean([new[measure] - old[measure] for old, new in zip(before, after, strict=True)])),
            (draws_after[measure] - draws_before[measure]).mean(axis=0),
        )
        for measure in Measure
    }


def _draws(rankings: Sequence[Ranking], resamples: int, seed: int) -> Mapping[Measure, NDArray[np.float64]]:
    """Measure K rankings of the same N images in the same draws of images: (K, R) for each measure."""
    if resamples < 1:
        raise InputError(f"resamples {resamples}: expected at least 1")
    count = rankings[0].image_count
    generator = np.random.default_rng(seed)
    drawn = {measure: np.empty((len(rankings), resamples)) for measure in Measure}
    rows = max(1, _AT_ONCE // max(count, *(len(ranking) for ranking in rankings)))
    for start in range(0, resamples, rows):
        part = min(rows, resamples - start)
        weights = _weights(generator, part, count)
        for place, ranking in enumerate(rankings):
            for measure, values in weighted(ranking, weights).items():
                drawn[measure][place, start : start + part] = values
    return drawn


def _weights(generator: np.random.Generator, rows: int, count: int) -> NDArray[np.float64]:
    """How often each of `count` images is drawn, in `rows` draws of as many: (rows, count)."""
    chosen = generator.integers(count, size=(rows, count)) + count * np.arange(rows)[:, None]
    return np.bincount(chosen.ravel(), minlength=rows * count).reshape(rows, count).astype(np.float64)


def _estimate(value: float, draws: NDArray[np.float64]) -> Estimate:
    outside = 50 * (1 - CONFIDENCE)
    # A language that few images have a caption in may be missing from a draw, which then says nothing.
    low, high = np.percentile(draws[np.isfinite(draws)], (outside, 100 - outside))
    return Estimate(value, Interval(float(low), float(high)))


def _check_same(reference: Sequence[Ranking], candidate: Sequence[Ranking]) -> None:
    if not reference or len(reference) != len(candidate):
        raise InputError(f"{len(reference)} and {len(candidate)} rankings: expected as many of each, at least one")
    for old, new in zip(reference, candidate, strict=True):
        if old.image_count != new.image_count or not np.array_equal(old.pictures, new.pictures):
            raise InputError(f"rankings of {len(old):,} and {len(new):,} queries: expected the same ones in both")
    if len({ranking.image_count for ranking in reference}) > 1:
        raise InputError("the rankings are of different pictures: expected the same ones, or compare them one by one")
