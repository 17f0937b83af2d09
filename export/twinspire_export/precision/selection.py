"""What was measured of each candidate, and which of them is best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from twinspire.bundle import Precision, Tower
from twinspire_eval.datasets import CaptionedImages
from twinspire_eval.recall import R1, Direction, Estimate, rank_both_ways
from twinspire_eval.recall.benchmark import UNDETERMINED, RecallReport
from twinspire_eval.statistics import Interval
from twinspire_export.certificate import row_cosines
from twinspire_export.precision.candidates import Candidate, Setting, Variant
from twinspire_export.precision.measurement import Embedded, Speed

AS_FAST = 0.02
"""Speeds that differ by less than this share, which rounds of some seconds do not tell apart for sure, are as good."""


@dataclass(frozen=True, kw_only=True)
class Cosines:
    """How near a tower's embeddings are to fp32's over a data set: over `samples` rows, -1 to 1."""

    samples: int
    least: float
    mean: float


@dataclass(frozen=True, kw_only=True)
class Recalled:
    """What a setting finds.

    `drop` is what it loses of fp32's R@1, pooled over languages and directions, and `worst_drop` what it loses in the
    one of them in which that is most; below 0 it finds more.
    """

    drop: Estimate
    worst_drop: float
    cosines: Mapping[Tower, Cosines]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A candidate with all that was measured of it."""

    candidate: Candidate
    speed: Speed
    recalled: Recalled

    def meets_recall(self, max_recall_drop: float) -> bool:
        """Whether it loses no more than that, by the point estimate."""
        return self.recalled.drop.value <= max_recall_drop


def rank(data: CaptionedImages, found: Mapping[Setting, Embedded], reference: Setting) -> RecallReport:
    """Rank a data set by the embeddings of each setting."""
    owners = {language or UNDETERMINED: data.said(language).owners for language in data.languages}
    rankings = {
        str(setting): {
            language: rank_both_ways(embedded.images, embedded.texts[language], owners[language]) for language in owners
        }
        for setting, embedded in found.items()
    }
    return RecallReport.of(data, rankings, reference=str(reference))


def recalled(report: RecallReport, setting: Setting, found: Embedded, fp32: Embedded) -> Recalled:
    """Draw what matters for the choice from a report."""
    languages = list(fp32.texts)
    cosines = {
        Tower.IMAGE: _cosines(found.images, fp32.images),
        Tower.TEXT: _cosines(
            np.concatenate([found.texts[language] for language in languages]),
            np.concatenate([fp32.texts[language] for language in languages]),
        ),
    }
    if str(setting) == report.reference:
        return Recalled(drop=Estimate(0.0, Interval(0.0, 0.0)), worst_drop=0.0, cosines=cosines)
    loss = report.losses[str(setting)]
    above = loss.pooled[R1]
    each = [both[way][R1].value for both in loss.by_language.values() for way in Direction]
    # From 0, so that nothing lost is 0.0 and not -0.0.
    drop = Estimate(0 - above.value, Interval(0 - above.interval.high, 0 - above.interval.low))
    return Recalled(drop=drop, worst_drop=0 - min(each), cosines=cosines)


def _cosines(rows: NDArray[np.float32], expected: NDArray[np.float32]) -> Cosines:
    found = row_cosines(rows, expected)
    return Cosines(samples=len(found), least=float(found.min()), mean=float(found.mean()))


def best_of(measured: Sequence[Measured], max_recall_drop: float) -> Measured:
    """Choose the fastest that keeps recall and is no baseline.

    Of those as fast within `AS_FAST` the one with the fewest streams, which cost memory, then the one that loses least.
    """
    kept = [
        each
        for each in measured
        if each.meets_recall(max_recall_drop) and not each.candidate.setting.variant.is_baseline
    ]
    fastest = max(kept, key=lambda each: each.speed.overall.value)
    enough = (1 - AS_FAST) * fastest.speed.overall.value
    near = [each for each in kept if each.speed.overall.value >= enough]
    return min(near, key=lambda each: (each.candidate.streams, each.recalled.drop.value))


def front(measured: Sequence[Measured]) -> list[Measured]:
    """List those that no other one beats in both speed and recall, the fastest first; no baselines."""
    found: list[Measured] = []
    own = [each for each in measured if not each.candidate.setting.variant.is_baseline]
    by_speed = sorted(own, key=lambda each: (-each.speed.overall.value, each.recalled.drop.value))
    for each in by_speed:
        if not found or each.recalled.drop.value < found[-1].recalled.drop.value:
            found.append(each)
    return found


def best_variants(measured: Sequence[Measured], max_recall_drop: float) -> dict[Precision, Variant]:
    """Choose the engines that the new bundle has of each precision: those of the fastest candidate that keeps recall.

    Where none does, the bundle's own stay, and those that were made here are left out.
    """
    chosen: dict[Precision, Variant] = {}
    measured = [each for each in measured if not each.candidate.setting.variant.is_baseline]
    for precision in dict.fromkeys(each.candidate.setting.variant.precision for each in measured):
        own = [each for each in measured if each.candidate.setting.variant.precision is precision]
        kept = [each for each in own if each.meets_recall(max_recall_drop)]
        if kept:
            chosen[precision] = best_of(kept, max_recall_drop).candidate.setting.variant
        else:
            variants = [each.candidate.setting.variant for each in own]
            chosen.update((precision, variant) for variant in variants if variant.recipe is None)
    return chosen


def rejected(
    measured: Sequence[Measured], chosen: Mapping[Precision, Variant], max_recall_drop: float
) -> list[Precision]:
    """List the precisions whose engines in the new bundle lose too much in every runtime."""
    keeping = {each.candidate.setting.variant for each in measured if each.meets_recall(max_recall_drop)}
    return [precision for precision, variant in chosen.items() if variant not in keeping]
