"""`twinspire bench gate`: whether a change lost recall or speed, beyond noise.

Recall is compared query by query: the same queries of the same data, by the change of R@1 of each image's queries, with
a bootstrap over images. Speed differs between runs of one commit by more than within a run, so that a figure is the
ratio of two visits, and its interval is over pairs of visits (Student's t over their logarithms).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twinspire.errors import InputError
from twinspire_bench.tracking.history import Entry, figures, ranks, recalls
from twinspire_eval.statistics import STATISTICS, Interval, interval, paired_ratio

MINIMUM_VISITS = 3
TOLERANCE = 0.05
"""The share of speed that a change may lose without being a regression, however sure the loss is."""
CONFIDENCE = 0.99
TOGETHER = "all figures, geometric mean"
# Student's t for a two-sided interval of 99%, by degrees of freedom (Abramowitz and Stegun, table 26.10).
_T_99 = (63.657, 9.925, 5.841, 4.604, 4.032, 3.707, 3.499, 3.355, 3.250, 3.169, 3.106, 3.055, 3.012, 2.977, 2.947)
_T_99_MANY = 2.576


class Verdict(StrEnum):
    """What a comparison says."""

    REGRESSED = "regressed"
    IMPROVED = "improved"
    EQUAL = "no difference beyond noise"
    UNJUDGED = "too few visits"


@dataclass(frozen=True)
class Judgement:
    """One comparison of head with base.

    `change` is in points of R@1 for recall (`unit` "points"), and a ratio of head to base for speed, above 1 where head
    is better (`unit` "ratio"). `interval` is its 99% interval, None where there are too few visits for one.
    """

    name: str
    change: float
    interval: Interval | None
    unit: str
    verdict: Verdict


def judge(
    base: Sequence[Entry], head: Sequence[Entry], *, recall_only: bool = False, tolerance: float = TOLERANCE
) -> list[Judgement]:
    """Compare the records of two commits. Only equal measurements are compared: step, suite and what was measured.

    Raises InputError where nothing is comparable, where either side holds several machines or commits, and, unless
    `recall_only`, where the machines differ: speed can be compared on one machine alone.
    """
    sides = {"base": base, "head": head}
    for name, side in sides.items():
        for word, named in (("machines", {one.machine for one in side}), ("commits", {one.commit for one in side})):
            if len(named) > 1:
                raise InputError(
                    f"{name} holds records of {len(named)} {word}, {', '.join(sorted(named))}: name the folder of one"
                )
    machines = {one.machine for side in sides.values() for one in side}
    if len(machines) > 1 and not recall_only:
        raise InputError(
            f"base was measured on {base[0].machine} and head on {head[0].machine}: speed cannot be compared across "
            "machines. Measure both on one, or compare recall alone with --recall-only"
        )
    found = list(_recall(base, head))
    if not recall_only:
        found += _speed(base, head, tolerance)
    if not found:
        raise InputError(
            "base and head have no measurement in common: run the same suite, bundle and data for both"
            + (" (with recall, of which --recall-only takes nothing else)" if recall_only else "")
        )
    return found


def _recall(base: Sequence[Entry], head: Sequence[Entry]) -> Iterator[Judgement]:
    """Judge each engine over all of its languages and directions together."""
    earlier = {_data(one): one for one in base if one.record.kind == "recall"}  # the newest of each
    later = {_data(one): one for one in head if one.record.kind == "recall"}
    for data in earlier.keys() & later.keys():
        images = int(earlier[data].record.parameters["images"])
        before = {key[:3]: ranks(key[3]) for key in recalls(earlier[data].record.results)}
        changes: dict[str, list[NDArray[np.float64]]] = defaultdict(list)
        for engine, language, direction, found in recalls(later[data].record.results):
            known = before.get((engine, language, direction))
            if known is None:
                continue
            now = ranks(found)
            if len(now) != len(known):
                raise InputError(f"recall of {engine} in {language}: {len(known)} and {len(now)} queries, not the same")
            change = 100 * ((now <= 1).astype(np.float64) - (known <= 1))
            if len(now) % images:  # images with different numbers of captions: queries stand for themselves
                changes[f"{engine} {language} {direction}"].append(change)
            else:  # the queries of an image stand together, and are no independent ones
                changes[engine].append(change.reshape(images, -1).mean(1))
        for name, each in changes.items():
            points = np.mean(each, axis=0)
            spread = interval(points, STATISTICS["mean"], confidence=CONFIDENCE)
            yield Judgement(
                f"R@1 {name}, {images} images", float(points.mean()), spread, "points", _verdict(spread, 0.0, 0.0)
            )


def _data(entry: Entry) -> tuple[str, str]:
    parameters = entry.record.parameters
    return str(parameters["data_sha256"]), str(parameters["captions"])


def _speed(base: Sequence[Entry], head: Sequence[Entry], tolerance: float) -> Iterator[Judgement]:
    earlier, later = _visits(base), _visits(head)
    for name, before in earlier.items():
        pairs = list(zip(before, later.get(name, ()), strict=False))  # visits in the order of time
        if not pairs or min(min(pair) for pair in pairs) <= 0:
            continue
        logarithms = np.log([after / earlier_ for earlier_, after in pairs])
        change = math.exp(float(logarithms.mean()))
        if len(pairs) < MINIMUM_VISITS:
            yield Judgement(name, change, None, "ratio", Verdict.UNJUDGED)
            continue
        freedom = len(pairs) - 1
        t = _T_99[freedom - 1] if freedom <= len(_T_99) else _T_99_MANY
        half = t * float(logarithms.std(ddof=1)) / math.sqrt(len(pairs))
        spread = Interval(change * math.exp(-half), change * math.exp(half))
        yield Judgement(name, change, spread, "ratio", _verdict(spread, 1.0, tolerance))


def _visits(side: Sequence[Entry]) -> dict[str, list[float]]:
    """Return the values of each figure of speed by visit, turned so that more is better."""
    found: dict[str, list[float]] = defaultdict(list)
    for entry in side:
        if entry.record.kind == "recall":
            continue
        for figure in figures(entry.record):
            if figure.is_derived:
                continue
            value = figure.value if figure.more_is_better else 1 / figure.value
            found[f"{figure.name} ({entry.suite} {entry.what})"].append(value)
    return found


def judge_rounds(speeds: Mapping[str, tuple[Sequence[float], Sequence[float]]], tolerance: float) -> list[Judgement]:
    """Judge speeds of base and head that were measured in turn, round by round, in one process."""
    by_name = {name: (np.asarray(before), np.asarray(after)) for name, (before, after) in speeds.items()}
    if len(by_name) > 1:  # of a round: less noise than each of them has
        sides = (np.exp(np.mean([np.log(pair[side]) for pair in by_name.values()], axis=0)) for side in (0, 1))
        by_name[TOGETHER] = next(sides), next(sides)
    found = []
    for name, (before, after) in by_name.items():
        ratio = paired_ratio(after, before, confidence=CONFIDENCE)
        verdict = _verdict(ratio.interval, 1.0, tolerance)
        found.append(Judgement(name, ratio.value, ratio.interval, "ratio", verdict))
    return found


def _verdict(spread: Interval, nothing: float, tolerance: float) -> Verdict:
    if spread.high < nothing - tolerance:
        return Verdict.REGRESSED
    return Verdict.IMPROVED if spread.low > nothing + tolerance else Verdict.EQUAL


def as_document(judgements: Sequence[Judgement]) -> list[dict[str, Any]]:
    """Return the judgements as JSON."""
    return [
        {
            "name": one.name,
            "change": one.change,
            "interval": None if one.interval is None else [one.interval.low, one.interval.high],
            "unit": one.unit,
            "verdict": one.verdict.value,
        }
        for one in judgements
    ]
