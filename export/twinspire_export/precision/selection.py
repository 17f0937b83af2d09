"""The results of all candidates, and the choice of the best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from twinspire.bundle import Precision, Tower
from twinspire_eval.recall import R1, Estimate
from twinspire_eval.recall.benchmark import DatasetEmbeddings, RecallReport
from twinspire_eval.statistics import Interval, row_cosines
from twinspire_export.precision.candidates import EnginePair, PrecisionCandidate, RuntimeConfig
from twinspire_export.precision.measurement import Throughput

AS_FAST = 0.02
"""Speeds that differ by less than this share count as equal: rounds of some seconds do not separate them reliably."""


@dataclass(frozen=True, kw_only=True)
class Cosines:
    """Cosines of a tower's embeddings to fp32's over the `samples` of a data set, -1 to 1."""

    samples: int
    minimum: float
    mean: float


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """How accurate a configuration is.

    `recall_drop` is how much of fp32's R@1 it loses, pooled over languages and directions, `worst_recall_drop` how much
    it loses in the worst of them; below 0 it finds more.
    """

    recall_drop: Estimate
    worst_recall_drop: float
    cosines: Mapping[Tower, Cosines]


@dataclass(frozen=True, kw_only=True)
class CandidateResult:
    """A candidate with all that was measured of it."""

    candidate: PrecisionCandidate
    speed: Throughput
    accuracy: Accuracy

    @property
    def engines(self) -> EnginePair:
        """The candidate's engines."""
        return self.candidate.config.engines

    def meets_recall(self, max_recall_drop: float) -> bool:
        """Whether it loses no more than that, by the point estimate."""
        return self.accuracy.recall_drop.value <= max_recall_drop


def accuracy_of(
    report: RecallReport, config: RuntimeConfig, found: DatasetEmbeddings, fp32: DatasetEmbeddings
) -> Accuracy:
    """Extract what the choice depends on from a report."""
    languages = list(fp32.texts)
    cosines = {
        Tower.TEXT: _cosines(
            np.concatenate([found.texts[language] for language in languages]),
            np.concatenate([fp32.texts[language] for language in languages]),
        ),
    }
    if found.images is not None and fp32.images is not None:
        cosines[Tower.IMAGE] = _cosines(found.images, fp32.images)
    if str(config) == report.reference:
        return Accuracy(recall_drop=Estimate(0.0, Interval(0.0, 0.0)), worst_recall_drop=0.0, cosines=cosines)
    loss = report.losses[str(config)]
    above = loss.pooled[R1]
    gains = [found[R1].value for both in loss.by_language.values() for found in both.values()]
    # Subtracted from 0, so that no loss is 0.0 and not -0.0.
    drop = Estimate(0 - above.value, Interval(0 - above.interval.high, 0 - above.interval.low))
    return Accuracy(recall_drop=drop, worst_recall_drop=0 - min(gains), cosines=cosines)


def _cosines(rows: NDArray[np.float32], expected: NDArray[np.float32]) -> Cosines:
    found = row_cosines(rows, expected)
    return Cosines(samples=len(rows), minimum=float(found.min()), mean=float(found.mean()))


def best_of(results: Sequence[CandidateResult], max_recall_drop: float) -> CandidateResult:
    """Return the fastest that meets recall and is not a baseline.

    Of those as fast within `AS_FAST` the one with the fewest streams, which cost memory, then the most accurate.
    """
    eligible = [r for r in results if r.meets_recall(max_recall_drop) and not r.engines.is_baseline]
    enough = (1 - AS_FAST) * max(result.speed.overall.value for result in eligible)
    near = [result for result in eligible if result.speed.overall.value >= enough]
    return min(near, key=lambda result: (result.candidate.streams, result.accuracy.recall_drop.value))


def pareto_front(results: Sequence[CandidateResult]) -> list[CandidateResult]:
    """List those that no other one beats in both speed and recall, the fastest first; without baselines."""
    front: list[CandidateResult] = []
    own = [result for result in results if not result.engines.is_baseline]
    for result in sorted(own, key=lambda r: (-r.speed.overall.value, r.accuracy.recall_drop.value)):
        if not front or result.accuracy.recall_drop.value < front[-1].accuracy.recall_drop.value:
            front.append(result)
    return front


def best_engines(results: Sequence[CandidateResult], max_recall_drop: float) -> dict[Precision, EnginePair]:
    """Choose the new bundle's engines of each precision: those of the fastest candidate that meets recall.

    Where none does, the bundle's own stay, and those made by recipes are left out.
    """
    chosen: dict[Precision, EnginePair] = {}
    results = [result for result in results if not result.engines.is_baseline]
    for precision in dict.fromkeys(result.engines.precision for result in results):
        own = [result for result in results if result.engines.precision is precision]
        eligible = [result for result in own if result.meets_recall(max_recall_drop)]
        if eligible:
            chosen[precision] = best_of(eligible, max_recall_drop).engines
        else:
            chosen.update((precision, result.engines) for result in own if result.engines.recipe is None)
    return chosen


def rejected(
    results: Sequence[CandidateResult], chosen: Mapping[Precision, EnginePair], max_recall_drop: float
) -> list[Precision]:
    """List the precisions whose engines in the new bundle lose too much in every runtime."""
    accepted = {result.engines for result in results if result.meets_recall(max_recall_drop)}
    return [precision for precision, engines in chosen.items() if engines not in accepted]
