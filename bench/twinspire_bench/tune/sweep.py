"""The sweep: coarse to fine over the options, then the best points again, in turn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

from twinspire.errors import InputError
from twinspire_bench.tune.journal import Journal, Visit
from twinspire_bench.tune.knobs import DEFAULTS, STEPS, Point, shown, with_variants
from twinspire_bench.tune.measure import Load

_KEPT = 2
"""Best points of a step that the next step starts from."""
_AGAIN = 5
"""Best points that are measured again: the sweep measures each once, so the best of them was lucky too."""
_SIMPLER = 0.98
"""A point with fewer options than the best one is chosen where it has this share of its goodput."""


@dataclass(frozen=True)
class Swept:
    """A point that was measured: its goodput in the sweep, and again in the rounds at the end, if it was close."""

    options: Point
    sweep_per_s: float
    again_per_s: tuple[float, ...]

    @property
    def goodput_per_s(self) -> float:
        """The median of the last rounds, or the sweep's figure of a point that was not measured again."""
        return median(self.again_per_s) if self.again_per_s else self.sweep_per_s


def sweep(
    journal: Journal,
    measure: Callable[[Point, float | None, Callable[[Load], None]], float],
    *,
    cores: int,
    rounds: int,
    say: Callable[[str], None],
    steps: int = len(STEPS),
) -> list[Swept]:
    """Measure what the journal lacks; return all points, the chosen one first.

    Each step varies one group of options of the two best points so far. Then the best points and the defaults are
    measured again in turn, `rounds` times, and the best median is chosen, or a point with fewer options that is as
    good within 2%. Raises `InputError` where no point serves any rate within the budget.
    """

    def measured(visit: Visit) -> float:
        if visit not in journal.scores:
            loads: list[Load] = []
            near_per_s = journal.scores.get(Visit(visit.options, 0))
            journal.add(visit, measure(visit.options, near_per_s or None, loads.append), loads)
        return journal.scores[visit]

    tried: dict[Point, float] = {DEFAULTS: measured(Visit(DEFAULTS, 0))}
    say(f"defaults: {tried[DEFAULTS]:.1f}/s within the budget")
    best = [DEFAULTS]
    for step in STEPS[:steps]:
        for options in with_variants(best, step, cores):
            tried[options] = measured(Visit(options, 0))
            say(f"{step.name}: {shown(options)}: {tried[options]:.1f}/s within the budget")
        best = sorted(tried, key=lambda options: -tried[options])[:_KEPT]
    if not max(tried.values()):
        raise InputError(
            "no point serves any rate within the budget: expected a larger --p99-ms, a smaller model or more cores"
        )
    again = sorted((options for options in tried if tried[options]), key=lambda options: -tried[options])[:_AGAIN]
    again += [DEFAULTS] if DEFAULTS not in again else []
    for turn in range(1, rounds + 1):
        for place in range(len(again)):
            options = again[(place + turn) % len(again)]
            say(f"round {turn} of {rounds}: {shown(options)}: {measured(Visit(options, turn)):.1f}/s")
    points = [
        Swept(
            options,
            score,
            tuple(journal.scores[Visit(options, turn)] for turn in range(1, rounds + 1)) if options in again else (),
        )
        for options, score in tried.items()
    ]
    finals = [swept for swept in points if swept.again_per_s] or points
    highest = max(swept.goodput_per_s for swept in finals)
    good = [swept for swept in finals if swept.goodput_per_s >= _SIMPLER * highest]
    chosen = min(good, key=lambda swept: (len(swept.options), -swept.goodput_per_s))
    return [chosen, *sorted((swept for swept in points if swept is not chosen), key=lambda swept: -swept.goodput_per_s)]
