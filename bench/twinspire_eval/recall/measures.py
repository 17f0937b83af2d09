"""What is said about a ranking in one number."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from twinspire_eval.recall.ranking import Ranking


class Measure(StrEnum):
    """Figures of a ranking; all but the median rank are means over the queries, 0 to 1, and better if greater.

    `R1`, `R5`, `R10`: the share of queries that find an own item among the first k. `MEDIAN_RANK`: of the best own
    item, from 1. `MRR`: the mean of 1 / that rank. `MAP`: the mean of the average precision over all own items.
    """

    R1 = "r1"
    R5 = "r5"
    R10 = "r10"
    MEDIAN_RANK = "median_rank"
    MRR = "mrr"
    MAP = "map"


_WITHIN = {Measure.R1: 1, Measure.R5: 5, Measure.R10: 10}
_MEANS: list[Measure] = [measure for measure in Measure if measure is not Measure.MEDIAN_RANK]


def measured(ranking: Ranking) -> Mapping[Measure, float]:
    """Return all measures of a ranking."""
    once = np.ones((1, ranking.image_count))
    return {measure: float(values[0]) for measure, values in weighted(ranking, once).items()}


def weighted(ranking: Ranking, weights: NDArray[np.float64]) -> Mapping[Measure, NDArray[np.float64]]:
    """Return all measures, (R,) float64 each, of R rankings in which image n counts `weights[r, n]` times.

    `weights` is (R, N), whole numbers. An image's queries count as often as it does. NaN where no query counts.
    """
    per_query = np.stack([_values(ranking, measure) for measure in _MEANS] + [np.ones(len(ranking))])  # (M + 1, Q)
    per_image = np.stack(
        [np.bincount(ranking.pictures, row, minlength=ranking.image_count) for row in per_query], axis=1
    )  # (N, M + 1)
    sums = weights @ per_image  # (R, M + 1)
    with np.errstate(invalid="ignore"):
        means = sums[:, :-1] / sums[:, -1:]
    return {
        measure: _medians(ranking, weights) if measure is Measure.MEDIAN_RANK else means[:, _MEANS.index(measure)]
        for measure in Measure
    }


def _values(ranking: Ranking, measure: Measure) -> NDArray[np.float64]:
    if measure in _WITHIN:
        return (ranking.first_ranks <= _WITHIN[measure]).astype(np.float64)
    return 1 / ranking.first_ranks if measure is Measure.MRR else ranking.average_precisions


def _medians(ranking: Ranking, weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """The middle rank, or the mean of the two in the middle, where every query stands as often as it counts: (R,)."""
    order = np.argsort(ranking.first_ranks, kind="stable")
    sorted_ranks = ranking.first_ranks[order]
    last = np.flatnonzero(np.diff(sorted_ranks, append=sorted_ranks[-1] + 1))  # where each different rank ends
    up_to = np.cumsum(weights[:, ranking.pictures[order]], axis=1)[:, last]  # (R, ranks)
    total = up_to[:, -1:]
    lower, upper = (
        sorted_ranks[last][np.argmax(up_to >= middle, axis=1)] for middle in ((total + 1) // 2, total // 2 + 1)
    )
    return np.where(total[:, 0] > 0, (lower + upper) / 2, np.nan)
