"""Measurement of one point: the highest rate of an open loop whose p99 stays within the budget."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from twinspire.bundle import Bundle, Tower
from twinspire.errors import InputError
from twinspire.towers import TritonTowers
from twinspire_bench.scripts import TWINSPIRE, run, running_server
from twinspire_bench.tune.knobs import Point, flags
from twinspire_eval.load import SENDERS, LoadResult, closed_loop, open_loop
from twinspire_eval.payloads import Endless, image_payloads, text_payloads
from twinspire_eval.statistics import percentiles

_REFUSED = 0.01
"""Share of calls that may fail at a rate that counts as served."""
_TEXT_LENGTH = 16
_WARM_UP = 0.25  # of a visit
_FIRST = 0.9  # of the closed loop's throughput
_DOWN, _UP, _DOWN_NEAR = 0.75, 1.1, 0.92  # factors from a rate to the next
_TRIES, _HALVINGS = 6, 2


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What is asked for: `p99_ms` of the tower's calls, each of one image or text, over visits of `visit_s`."""

    tower: Tower
    p99_ms: float
    visit_s: float

    def __post_init__(self) -> None:
        if self.tower is Tower.AUDIO:
            raise InputError("tune measures images and texts: expected --tower image or text", option="--tower")
        for name, value in (("--p99-ms", self.p99_ms), ("--visit", self.visit_s)):
            if not 0 < value < 1e6:
                raise InputError(f"{name} {value:g}: expected a number above 0", option=name)


@dataclass(frozen=True, kw_only=True)
class Load:
    """One visit: a closed loop (`rate_per_s` None) or an open loop, and what its callers saw.

    Latencies are None where no call was answered. Goodput counts the answers within the budget.
    """

    rate_per_s: float | None
    sent: int
    failures: dict[str, int]
    duration_s: float
    throughput_per_s: float
    goodput_per_s: float
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None

    def is_within(self, budget: Budget) -> bool:
        """Whether the rate is served: p99 within the budget, and hardly a call refused."""
        answered = self.p99_ms is not None and self.p99_ms <= budget.p99_ms
        return answered and sum(self.failures.values()) <= _REFUSED * self.sent


def measure_point(
    bundle: Bundle,
    options: Point,
    budget: Budget,
    *,
    precision: str,
    repository: Path,
    seed: int,
    near_per_s: float | None,
    on_load: Callable[[Load], None],
) -> float:
    """Build, serve and measure; return the goodput at the highest rate within the budget, 0.0 where there is none.

    A closed loop finds about what the server can do, then open loops close in on the rate, from `near_per_s` where it
    was measured before: to 6%, then to 3%. `on_load` gets each visit.
    """
    run(*TWINSPIRE, "build", bundle.path, "-o", repository, f"--precision={precision}", *flags(options))
    deadline_s = max(1.0, 4 * budget.p99_ms / 1000)
    with (
        running_server(repository) as server,
        closing(TritonTowers(server.address, bundle, deadline_s=deadline_s, max_retries=0)) as towers,
    ):
        call = _call_of(towers, budget.tower)

        def visit(rate_per_s: float | None, share: float = 1.0) -> Load:
            payloads = _payloads(bundle, budget.tower, seed=(seed, time.monotonic_ns()))
            seconds = share * budget.visit_s
            if rate_per_s is None:
                found = closed_loop(call, payloads, in_flight=SENDERS // 2, duration_s=seconds)
            else:
                found = open_loop(call, payloads, rate_per_s=rate_per_s, seed=seed, duration_s=seconds)
            return _load_of(found, rate_per_s, budget)

        visit(None, _WARM_UP)
        at_most = visit(None)
        on_load(at_most)

        def goodput(rate_per_s: float) -> float:
            """Return the goodput at a rate, 0.0 beyond the budget."""
            found = visit(rate_per_s)
            on_load(found)
            return found.goodput_per_s if found.is_within(budget) else 0.0

        start_per_s = near_per_s or _FIRST * at_most.throughput_per_s
        return _highest(goodput, start_per_s, down=_DOWN_NEAR if near_per_s else _DOWN)


def _highest(goodput: Callable[[float], float], start_per_s: float, *, down: float) -> float:
    """Return the goodput at about the highest rate that has one: go down to one that has, or up, then halve."""
    low, high, best = 0.0, 0.0, 0.0
    rate = start_per_s
    for _ in range(_TRIES if rate > 0 else 0):
        found = goodput(rate)
        if found:
            low, best = rate, max(best, found)
            if high:
                break
            rate *= _UP
        else:
            high = rate
            if low:
                break
            rate *= down
    for _ in range(_HALVINGS if low and high else 0):
        rate = (low + high) / 2
        found = goodput(rate)
        if found:
            low, best = rate, max(best, found)
        else:
            high = rate
    return best


def _call_of(towers: TritonTowers, tower: Tower) -> Callable[[Any], object]:
    return towers.encode_images if tower is Tower.IMAGE else towers.encode_texts


def _payloads(bundle: Bundle, tower: Tower, *, seed: tuple[int, ...]) -> Endless[Any]:
    if tower is Tower.IMAGE:
        return image_payloads(bundle, batch=1, seed=seed)
    length = min(_TEXT_LENGTH, bundle.text.context_length)
    return text_payloads(bundle, batch=1, length=length, seed=seed)


def _load_of(found: LoadResult, rate_per_s: float | None, budget: Budget) -> Load:
    answered = len(found.latencies_ms)
    quantiles = asdict(percentiles(found.latencies_ms)) if answered else dict.fromkeys(("p50", "p95", "p99"))
    return Load(
        rate_per_s=rate_per_s,
        sent=answered + sum(found.failures.values()),
        failures=dict(found.failures),
        duration_s=found.duration_s,
        throughput_per_s=found.throughput_per_s,
        goodput_per_s=int(np.count_nonzero(found.latencies_ms <= budget.p99_ms)) / found.duration_s,
        p50_ms=quantiles["p50"],
        p95_ms=quantiles["p95"],
        p99_ms=quantiles["p99"],
    )
