"""Latency and throughput of towers, in this process or on a server, by engine, batch, length and load.

A case is one combination of these. Every round measures each case briefly, so that changes of the machine's load
affect all of them; it runs a closed loop with some calls in flight, or an open loop at a rate.
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twinspire.bundle import Bundle, Precision, Tower
from twinspire.errors import InputError
from twinspire.towers import ModelStatistics, Towers
from twinspire_eval.load import LoadResult, Payloads, closed_loop, interleaved, open_loop
from twinspire_eval.payloads import Endless, image_payloads, text_payloads

# Payloads of a visit to engines in this process, used in turn.
_POOL = 4


@dataclass(frozen=True, kw_only=True)
class Load:
    """Load of calls: either a number in flight, or a rate of Poisson arrivals.

    Raises InputError where both or neither is given or a number is not positive.
    """

    in_flight: int | None = None
    rate_per_s: float | None = None

    def __post_init__(self) -> None:
        values = [value for value in (self.in_flight, self.rate_per_s) if value is not None]
        if len(values) != 1 or not values[0] > 0:
            raise InputError(
                f"in_flight {self.in_flight} and rate_per_s {self.rate_per_s}: expected exactly one of them, above 0"
            )

    def __str__(self) -> str:
        return f"in flight {self.in_flight}" if self.rate_per_s is None else f"{self.rate_per_s:g} calls a second"


@dataclass(frozen=True, kw_only=True)
class LatencySettings:
    """Cases to measure, and for how long.

    `batches` are images or texts a call, `lengths` token ids a text, start and end included; none without a text tower.
    `visit_s` is the duration of a case in each round, at least one call. Raises InputError for empty or repeated lists
    and numbers that are not positive.
    """

    lengths: tuple[int, ...] = ()
    batches: tuple[int, ...] = (1, 8, 32)
    loads: tuple[Load, ...] = (Load(in_flight=1),)
    towers: tuple[Tower, ...] = (Tower.IMAGE, Tower.TEXT)
    rounds: int = 10
    visit_s: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("batches", "loads", "towers", *(("lengths",) if Tower.TEXT in self.towers else ())):
            values = getattr(self, name)
            if not values or len(set(values)) != len(values):
                raise InputError(f"{name} {', '.join(map(str, values))!r}: expected at least one value, and none twice")
        numbers = {"rounds": self.rounds, "visit_s": self.visit_s}
        numbers |= {"batches": min(self.batches), "lengths": min(self.lengths, default=2) - 1}
        for name, number in numbers.items():
            if not number > 0:
                expected = {"lengths": "2 or more", "visit_s": "more than 0"}.get(name, "1 or more")
                raise InputError(f"{name} {getattr(self, name)}: expected {expected}")


@dataclass(frozen=True, kw_only=True, eq=False)
class LatencyTarget:
    """Towers to measure, under a name.

    `precision` is that of the engines if they run on this machine's processor, else None. `statistics` returns the
    server's counters for a tower; None without a server.
    """

    name: str
    towers: Towers
    precision: Precision | None = None
    statistics: Callable[[Tower], ModelStatistics] | None = None


@dataclass(frozen=True, kw_only=True)
class Case:
    """One combination to measure. `length` is None for images."""

    tower: Tower
    target: str
    batch: int
    length: int | None
    load: Load

    @property
    def setting(self) -> str:
        """All fields but tower and target as text: cases of different targets are compared where it is equal."""
        length = "" if self.length is None else f"length {self.length}, "
        return f"{length}batch {self.batch}, {self.load}"


@dataclass(frozen=True, kw_only=True, eq=False)
class CaseResult:
    """Measurements of a case.

    `items_per_s` (rounds,) float64 are the images or texts a second in each round, `latencies_ms` those of all
    successful calls. `failures` counts the others by the name of their error. `served` are the server's counters over
    the measurement, for all clients (without the last calls of a round: Triton counts after it responds); None without
    a server.
    """

    case: Case
    items_per_s: NDArray[np.float64]
    latencies_ms: NDArray[np.float64]
    failures: Mapping[str, int]
    served: ModelStatistics | None


def cases(targets: Sequence[LatencyTarget], settings: LatencySettings) -> list[Case]:
    """List every combination, with the targets of a combination next to each other."""
    return [
        Case(tower=tower, target=target.name, batch=batch, length=length, load=load)
        for tower in settings.towers
        for length in (settings.lengths if tower is Tower.TEXT else (None,))
        for batch in settings.batches
        for load in settings.loads
        for target in targets
    ]


def measure(
    bundle: Bundle,
    targets: Sequence[LatencyTarget],
    settings: LatencySettings,
    *,
    on_visit: Callable[[], None] = lambda: None,
) -> list[CaseResult]:
    """Measure every case in interleaved rounds, after one call of each to warm up.

    The targets hold towers of the bundle. `on_visit` is called after each visit: `rounds` times the number of cases.
    Raises the error of a first call, EngineError or ServerError; later failures are counted.
    """
    towers = {target.name: target for target in targets}
    if not targets or len(towers) != len(targets):
        raise InputError(
            f"the targets are {[target.name for target in targets]}: expected at least one, and none twice"
        )
    visits = [_Visit(case, towers[case.target], bundle, settings, on_visit) for case in cases(targets, settings)]
    for visit in visits:
        visit.warm_up()
    figures = interleaved({str(place): visit for place, visit in enumerate(visits)}, rounds=settings.rounds, warmup=0)
    return [visit.result(items_per_s) for visit, items_per_s in zip(visits, figures.values(), strict=True)]


class _Visit:
    """Measurement of one case, `visit_s` seconds at each call."""

    def __init__(
        self, case: Case, target: LatencyTarget, bundle: Bundle, settings: LatencySettings, on_visit: Callable[[], None]
    ) -> None:
        self._case, self._target, self._bundle = case, target, bundle
        self._settings, self._on_visit = settings, on_visit
        self._visits = 0
        self._latencies: list[NDArray[np.float64]] = []
        self._failures: Counter[str] = Counter()
        self._served: list[ModelStatistics] = []
        # Differs between runs, so that a server's response cache holds none of these requests.
        self._salt = secrets.randbits(64)

    def __call__(self) -> float:
        """Measure the case for a moment; return the images or texts a second."""
        before = self._statistics()
        found = self._load(self._payloads())
        after = self._statistics()
        if before is not None and after is not None:
            self._served.append(after.since(before))
        self._visits += 1
        self._latencies.append(found.latencies_ms)
        self._failures.update(found.failures)
        self._on_visit()
        return self._case.batch * found.throughput_per_s

    def warm_up(self) -> None:
        """Call once without load; its error is raised."""
        self._call(self._payloads()[0])
        self._visits += 1

    def result(self, items_per_s: NDArray[np.float64]) -> CaseResult:
        """Return the measurements of all visits."""
        return CaseResult(
            case=self._case,
            items_per_s=items_per_s,
            latencies_ms=np.concatenate(self._latencies),
            failures=dict(self._failures),
            served=_sum(self._served),
        )

    def _load(self, payloads: Payloads[Any]) -> LoadResult:
        load, settings = self._case.load, self._settings
        if load.rate_per_s is None:
            assert load.in_flight is not None
            return closed_loop(self._call, payloads, in_flight=load.in_flight, duration_s=settings.visit_s)
        seed = settings.seed + self._visits
        return open_loop(self._call, payloads, rate_per_s=load.rate_per_s, seed=seed, duration_s=settings.visit_s)

    def _call(self, payload: Any) -> object:  # noqa: ANN401 - of the case's tower
        towers = self._target.towers
        return towers.encode_images(payload) if self._case.length is None else towers.encode_texts(payload)

    def _payloads(self) -> Payloads[Any]:
        case, seed = self._case, (self._salt, self._visits)
        made: Endless[Any] = (
            image_payloads(self._bundle, batch=case.batch, seed=seed)
            if case.length is None
            else text_payloads(self._bundle, batch=case.batch, length=case.length, seed=seed)
        )
        # Engines in this process have no cache, and are so fast that making payloads would be measured too.
        return made if self._target.statistics is not None else [made[index] for index in range(_POOL)]

    def _statistics(self) -> ModelStatistics | None:
        return None if self._target.statistics is None else self._target.statistics(self._case.tower)


def _sum(parts: Sequence[ModelStatistics]) -> ModelStatistics | None:
    if not parts:
        return None
    return ModelStatistics(
        requests=sum(part.requests for part in parts),
        inferences=sum(part.inferences for part in parts),
        executions=sum(part.executions for part in parts),
    )
