"""Percentiles, intervals and ratios, against SciPy and against known distributions."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from twinspire.errors import InputError
from twinspire_eval.statistics import STATISTICS, interval, paired_ratio, percentiles, ratio, statistic_of


def test_percentiles_are_those_of_scipy() -> None:
    """p50, p90, p95 and p99 are the scores at these percentiles."""
    samples = np.random.default_rng(0).exponential(size=317)
    found = percentiles(samples)
    expected = [scipy.stats.scoreatpercentile(samples, percent) for percent in (50, 90, 95, 99)]
    assert [found.p50, found.p90, found.p95, found.p99] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", STATISTICS)
def test_an_interval_is_scipys_percentile_bootstrap(name: str) -> None:
    """The interval's ends are SciPy's, up to the draws' chance: within a tenth of the interval's width."""
    samples = np.random.default_rng(1).normal(10, 2, size=400)
    found = interval(samples, STATISTICS[name], resamples=4000)

    def statistic(values: np.ndarray, axis: int) -> np.ndarray:
        return STATISTICS[name](np.moveaxis(values, axis, 1))

    rng = np.random.default_rng(2)
    bootstrap = scipy.stats.bootstrap(
        (samples,), statistic, method="percentile", n_resamples=4000, vectorized=True, random_state=rng
    )
    low, high = bootstrap.confidence_interval
    tolerance = 0.1 * (high - low)
    assert [found.low, found.high] == pytest.approx([low, high], abs=tolerance)


def test_an_interval_covers_the_truth_as_often_as_it_says() -> None:
    """Of 400 intervals of 80% about the mean of 60 normal samples, 73 to 87% hold the true mean."""
    rng = np.random.default_rng(3)
    mean = STATISTICS["mean"]
    intervals = [interval(rng.normal(5, 1, 60), mean, seed=seed, resamples=400, confidence=0.8) for seed in range(400)]
    covered = np.mean([each.low <= 5 <= each.high for each in intervals])
    assert 0.73 <= covered <= 0.87


def test_the_same_seed_gives_the_same_interval() -> None:
    """An interval is a function of samples and seed."""
    samples = np.random.default_rng(4).normal(size=30)
    assert interval(samples, seed=5) == interval(samples, seed=5)
    assert interval(samples, seed=5) != interval(samples, seed=6)


def test_rows_are_drawn_whole() -> None:
    """A statistic of rows sees rows that were measured together: their quotient is constant."""
    counts = np.random.default_rng(5).integers(1, 9, size=50)
    rows = np.stack([counts, 3 * counts], axis=1)
    found = interval(rows, lambda draws: draws[:, :, 1].sum(axis=1) / draws[:, :, 0].sum(axis=1))
    assert (found.low, found.high) == (3.0, 3.0)


def test_many_samples_are_drawn_in_parts() -> None:
    """The interval of 30,000 samples, whose 1,000 draws are not in memory at once, is about the normal one."""
    samples = np.random.default_rng(6).normal(7, 3, size=30_000)
    found = interval(samples, STATISTICS["mean"], resamples=1000)
    half = 1.96 * 3 / 30_000**0.5
    assert [found.low, found.high] == pytest.approx([samples.mean() - half, samples.mean() + half], abs=0.1 * half)


def test_a_paired_ratio_is_not_moved_by_what_slows_whole_rounds() -> None:
    """Rounds of very different speed, one variant always 1.5 times the other: 1.5 exactly, an interval of no width."""
    rounds = np.random.default_rng(7).uniform(1, 100, size=12)
    found = paired_ratio(1.5 * rounds, rounds)
    assert [found.value, found.interval.low, found.interval.high] == pytest.approx([1.5] * 3, rel=1e-12)


def test_an_unpaired_ratio_knows_less_of_the_same_rounds() -> None:
    """Compared as independent samples the same rounds leave a wide interval about the ratio."""
    rounds = np.random.default_rng(7).uniform(1, 100, size=12)
    found = ratio(1.5 * rounds, rounds)
    assert found.value == pytest.approx(1.5)
    assert found.interval.low < 1.2
    assert found.interval.high > 1.8


def test_a_ratio_of_any_statistic_covers_the_truth() -> None:
    """The p90 of exponential samples of twice the scale is twice as large."""
    rng = np.random.default_rng(8)
    found = ratio(rng.exponential(2, 4000), rng.exponential(1, 3000), STATISTICS["p90"])
    assert found.interval.low < 2 < found.interval.high
    assert found.interval.high - found.interval.low < 0.4


@pytest.mark.parametrize(
    ("samples", "word"),
    [([], "shape"), ([1.0, float("nan")], "finite"), ([float("inf")], "finite"), (3.0, "shape")],
)
def test_what_is_no_sample_is_refused(samples: object, word: str) -> None:
    """No samples, a number alone and numbers that are not finite raise InputError."""
    for function in (percentiles, interval):
        with pytest.raises(InputError, match=word):
            function(samples)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=word):
        statistic_of(samples, STATISTICS["mean"])  # type: ignore[arg-type]


def test_ratios_refuse_what_cannot_be_divided() -> None:
    """Rounds of two lengths and a denominator of 0 raise InputError."""
    with pytest.raises(InputError, match="rounds"):
        paired_ratio([1, 2], [1, 2, 3])
    with pytest.raises(InputError, match="denominator"):
        paired_ratio([1, 2], [1, 0])
    with pytest.raises(InputError, match="denominator"):
        ratio([1, 2], [0, 0])
    with pytest.raises(InputError, match="confidence"):
        interval([1, 2], confidence=95)
    with pytest.raises(InputError, match="resamples"):
        interval([1, 2], resamples=0)
