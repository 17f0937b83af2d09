"""Percentiles, bootstrap intervals and ratios.

The intervals are percentile bootstraps (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13): the
samples are resampled with replacement, and the interval holds the statistic of most resamples. The same seed gives the
same interval.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from twinspire.errors import InputError

# Reduces axis 1 of (R, N, ...), R resamples of N samples, to (R,).
Statistic: TypeAlias = Callable[[NDArray[Any]], NDArray[Any]]

RESAMPLES = 2000
CONFIDENCE = 0.95
# Resampled values in memory at a time: 32 MB of float64.
_VALUES_AT_ONCE = 1 << 22


def _percentile(percent: float) -> Statistic:
    return lambda draws: np.percentile(draws, percent, axis=1)


# Statistics by their names in records.
STATISTICS: MappingProxyType[str, Statistic] = MappingProxyType(
    {
        "mean": lambda draws: draws.mean(axis=1),
        "median": lambda draws: np.median(draws, axis=1),
        **{f"p{percent}": _percentile(percent) for percent in (50, 90, 95, 99)},
    }
)
_MEDIAN = STATISTICS["median"]


@dataclass(frozen=True)
class Percentiles:
    """Percentiles 50, 90, 95 and 99, interpolated between samples as NumPy does.

    With fewer than 100 samples p99 lies between the two largest.
    """

    p50: float
    p90: float
    p95: float
    p99: float


@dataclass(frozen=True)
class Interval:
    """Confidence interval of a statistic, 95% by default."""

    low: float
    high: float


@dataclass(frozen=True)
class Estimate:
    """Value of a statistic with its 95% confidence interval."""

    value: float
    interval: Interval

    def to_json(self) -> dict[str, float]:
        """Return `value`, `low` and `high`, as certificates and most records hold them."""
        return {"value": self.value, "low": self.interval.low, "high": self.interval.high}


class Ratio(Estimate):
    """A ratio with its confidence interval."""


def percentiles(samples: ArrayLike) -> Percentiles:
    """Return the percentiles of (N,) numbers. Raises InputError where N is 0 or one is not finite."""
    p50, p90, p95, p99 = np.percentile(_checked(samples), (50, 90, 95, 99))
    return Percentiles(float(p50), float(p90), float(p95), float(p99))


def statistic_of(samples: ArrayLike, statistic: Statistic) -> float:
    """Return a statistic of (N, ...) numbers. Raises InputError where N is 0 or one is not finite."""
    return float(statistic(_checked(samples)[None])[0])


def interval(
    samples: ArrayLike,
    statistic: Statistic = _MEDIAN,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
) -> Interval:
    """Return the confidence interval of a statistic of (N, ...) numbers; rows are resampled whole.

    Raises InputError where N is 0, a number is not finite, `resamples` is not positive or `confidence` not inside
    (0, 1).
    """
    return _between(_bootstrap(samples, statistic, seed, resamples), confidence)


def ratio(
    numerator: ArrayLike,
    denominator: ArrayLike,
    statistic: Statistic = _MEDIAN,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
) -> Ratio:
    """Return the ratio of a statistic of two independent sets of samples, (N, ...) and (M, ...).

    Compare measurements of the same rounds with `paired_ratio`: load that slows a whole round cancels out in it. Raises
    InputError as `interval` does, and where the denominator of a resample is not positive.
    """
    above = _bootstrap(numerator, statistic, seed, resamples)
    below = _bootstrap(denominator, statistic, seed + 1, resamples)
    bottom = statistic_of(denominator, statistic)
    if bottom <= 0 or not (below > 0).all():
        raise InputError("the denominator of the ratio is 0 or negative: expected positive samples")
    return Ratio(statistic_of(numerator, statistic) / bottom, _between(above / below, confidence))


def paired_ratio(
    numerator: ArrayLike,
    denominator: ArrayLike,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
) -> Ratio:
    """Return the median over rounds of the ratio of two measurements, (N,) each, one a round.

    Raises InputError as `interval` does, where the lengths differ, and where a denominator is not positive.
    """
    above, below = _checked(numerator), _checked(denominator)
    if above.shape != below.shape or above.ndim != 1:
        raise InputError(f"rounds of {above.shape} and {below.shape} samples: expected one of each in every round")
    if not (below > 0).all():
        raise InputError("the denominator of the ratio is 0 or negative: expected positive samples")
    ratios = above / below  # (N,)
    spread = interval(ratios, seed=seed, resamples=resamples, confidence=confidence)
    return Ratio(statistic_of(ratios, _MEDIAN), spread)


def _bootstrap(samples: ArrayLike, statistic: Statistic, seed: int, resamples: int) -> NDArray[np.float64]:
    checked = _checked(samples)
    if resamples < 1:
        raise InputError(f"resamples {resamples}: expected at least 1")
    generator = np.random.default_rng(seed)
    rows = max(1, _VALUES_AT_ONCE // checked.size)
    draws = np.empty(resamples)  # (resamples,)
    for start in range(0, resamples, rows):
        part = draws[start : start + rows]
        part[:] = statistic(checked[generator.integers(len(checked), size=(len(part), len(checked)))])
    return draws


def _between(draws: NDArray[np.float64], confidence: float) -> Interval:
    if not 0 < confidence < 1:
        raise InputError(f"confidence {confidence}: expected a number between 0 and 1, such as {CONFIDENCE}")
    outside = 50 * (1 - confidence)
    low, high = np.percentile(draws, (outside, 100 - outside))
    return Interval(float(low), float(high))


def _checked(samples: ArrayLike) -> NDArray[np.float64]:
    array = np.asarray(samples, np.float64)
    if array.ndim == 0 or array.size == 0:
        raise InputError(f"samples of shape {array.shape}: expected at least one")
    if not np.isfinite(array).all():
        raise InputError(f"{np.count_nonzero(~np.isfinite(array))} of {array.size} samples are not finite")
    return array


def row_cosines(left: NDArray[np.float32], right: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the cosine of each vector of `left` (..., D) with the same one of `right`: (V,) float64, -1 to 1.

    NaN where a row is zero or not finite.
    """
    a, b = (side.reshape(-1, side.shape[-1]).astype(np.float64) for side in (left, right))
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        cosines: NDArray[np.float64] = (a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
    # Rounding may carry a cosine slightly beyond 1, which would puzzle readers of a certificate.
    return np.clip(cosines, -1.0, 1.0)
