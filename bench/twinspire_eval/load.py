"""Load: how fast calls are answered, one after the other, at a given rate, and side by side in rounds.

A closed loop keeps a number of calls in flight and sends the next when one is answered; it finds the throughput. An
open loop sends when callers would, whether or not there were answers; it finds the latency that they would see. Its
latency counts from when a call should have been sent: a system that stands still for a second is charged with
everything that came in that second, and not with the one call that noticed (G. Tene, How NOT to Measure Latency:
"coordinated omission").
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import count
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from twinspire.errors import InputError, TwinspireError

Payload = TypeVar("Payload")
Payload_co = TypeVar("Payload_co", covariant=True)

# Calls that an open loop may have in flight; what comes while all of them are waits, and its wait is counted.
SENDERS = 64


class Payloads(Protocol[Payload_co]):
    """What is called with: a list, or what makes each payload when it is wanted."""

    def __len__(self) -> int:
        """Count the payloads."""

    def __getitem__(self, index: int, /) -> Payload_co:
        """Give the payload at a place. The time this takes is in no latency."""


class Clock(Protocol):
    """What tells the time and lets it pass."""

    def now(self) -> float:
        """Return seconds since a fixed moment."""

    def sleep(self, seconds: float) -> None:
        """Wait. `seconds` is positive."""


class SystemClock:
    """The machine's own clock."""

    def now(self) -> float:
        """Return seconds since a fixed moment, which never go back."""
        return time.perf_counter()

    def sleep(self, seconds: float) -> None:
        """Wait at least so long."""
        time.sleep(seconds)


@dataclass(frozen=True, eq=False)
class LoadResult:
    """What a load saw.

    `latencies_ms` (N,) float64 are of the calls that were answered, in the order they were sent. `duration_s` runs
    from the start to the last answer. `failures` counts the calls that were not answered by the name of their error.
    """

    latencies_ms: NDArray[np.float64]
    duration_s: float
    failures: Mapping[str, int]

    @property
    def throughput_per_s(self) -> float:
        """Answered calls a second; 0.0 where none was."""
        return len(self.latencies_ms) / self.duration_s if len(self.latencies_ms) else 0.0


def closed_loop(
    call: Callable[[Payload], object],
    payloads: Payloads[Payload],
    *,
    in_flight: int,
    requests: int | None = None,
    duration_s: float | None = None,
    clock: Clock | None = None,
) -> LoadResult:
    """Call with each payload in turn, from the first again after the last, `in_flight` calls at a time.

    Ends after `requests` calls, or with the calls under way when `duration_s` seconds have passed, the first one at
    least: one of the two must be given. A call that raises a TwinspireError has failed; any other error ends the loop
    and is raised. It does not warm up. Raises InputError for no payloads and for numbers that are not positive.
    """
    if (requests is None) == (duration_s is None):
        raise InputError(f"requests {requests} and duration_s {duration_s}: expected one of them")
    _check_positive(payloads, in_flight=in_flight, requests=requests, duration_s=duration_s)
    clock = clock or SystemClock()
    end = None if duration_s is None else clock.now() + duration_s

    def due(index: int) -> float | None:
        now = clock.now()
        ended = index >= requests if requests is not None else end is not None and now >= end and index > 0
        return None if ended else now

    return _run(call, payloads, due, workers=in_flight, clock=clock)


def open_loop(
    call: Callable[[Payload], object],
    payloads: Payloads[Payload],
    *,
    rate_per_s: float,
    seed: int,
    requests: int | None = None,
    duration_s: float | None = None,
    senders: int = SENDERS,
    clock: Clock | None = None,
) -> LoadResult:
    """Call with each payload in turn, at random moments: Poisson arrivals, `rate_per_s` on average.

    The same seed gives the same moments. Either `requests` calls are made or all that fall due in `duration_s`
    seconds. At most `senders` are in flight; a latency counts from the moment the call was due, sent or not.
    Errors are as `closed_loop` has them.
    """
    if (requests is None) == (duration_s is None):
        raise InputError(f"requests {requests} and duration_s {duration_s}: expected one of them")
    _check_positive(payloads, rate_per_s=rate_per_s, requests=requests, duration_s=duration_s, senders=senders)
    clock = clock or SystemClock()
    schedule = arrivals(rate_per_s, seed=seed, requests=requests, duration_s=duration_s)
    start = clock.now()

    def due(index: int) -> float | None:
        return start + schedule[index] if index < len(schedule) else None

    return _run(call, payloads, due, workers=min(senders, max(1, len(schedule))), clock=clock)


def arrivals(
    rate_per_s: float, *, seed: int, requests: int | None = None, duration_s: float | None = None
) -> NDArray[np.float64]:
    """Return the moments of a Poisson process in seconds, ascending: the first `requests`, or those in `duration_s`."""
    generator = np.random.default_rng(seed)
    if requests is not None:
        return np.cumsum(generator.exponential(1 / rate_per_s, requests))
    assert duration_s is not None
    moments: list[float] = []
    moment = generator.exponential(1 / rate_per_s)
    while moment < duration_s:
        moments.append(moment)
        moment += generator.exponential(1 / rate_per_s)
    return np.array(moments)


def interleaved(
    variants: Mapping[str, Callable[[], float]],
    *,
    rounds: int,
    warmup: int = 1,
    on_round: Callable[[str], None] = lambda _: None,
) -> dict[str, NDArray[np.float64]]:
    """Measure variants in turn, so that what changes on the machine meets all of them: name to (rounds,) float64.

    Each variant measures itself once and returns its figure. Every round begins with the next variant. `warmup`
    rounds come before and are not kept. `on_round` is told which round begins: "warm-up", "round 1 of 10". Compare two
    of them with `paired_ratio`.
    """
    if rounds < 1 or warmup < 0 or not variants:
        raise InputError(
            f"{len(variants)} variants, rounds {rounds}, warmup {warmup}: expected at least 1 variant and round"
        )
    names = list(variants)
    figures = {name: np.empty(rounds) for name in names}
    for turn in range(-warmup, rounds):
        on_round("warm-up" if turn < 0 else f"round {turn + 1} of {rounds}")
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            figure = variants[name]()
            if turn >= 0:
                figures[name][turn] = figure
    return figures


def _run(
    call: Callable[[Payload], object],
    payloads: Payloads[Payload],
    due: Callable[[int], float | None],
    *,
    workers: int,
    clock: Clock,
) -> LoadResult:
    """Make call after call from so many threads. `due` says when a call's time begins, None that there are no more."""
    tickets, stop = _Tickets(), threading.Event()
    start = clock.now()

    def work() -> tuple[list[tuple[int, float]], Counter[str], float]:
        latencies: list[tuple[int, float]] = []
        failures: Counter[str] = Counter()
        last = start
        for index in tickets:
            payload = payloads[index % len(payloads)]
            intended = due(index)
            if intended is None or stop.is_set():
                break
            early = intended - clock.now()
            if early > 0:
                clock.sleep(early)
            try:
                call(payload)
            except TwinspireError as error:
                failures[type(error).__name__] += 1
                last = clock.now()
            else:
                last = clock.now()
                latencies.append((index, 1000 * (last - intended)))
        return latencies, failures, last

    with ThreadPoolExecutor(workers, thread_name_prefix="load") as pool:
        futures = [pool.submit(work) for _ in range(workers)]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
        finally:
            stop.set()
    done = [future.result() for future in futures]
    ordered = sorted(entry for latencies, _, _ in done for entry in latencies)
    return LoadResult(
        latencies_ms=np.array([latency for _, latency in ordered], np.float64),
        duration_s=max(last for _, _, last in done) - start,
        failures=dict(sum((failures for _, failures, _ in done), Counter())),
    )


class _Tickets:
    """Numbers from 0 up, each given to one thread."""

    def __init__(self) -> None:
        self._numbers, self._lock = count(), threading.Lock()

    def __iter__(self) -> Iterator[int]:
        while True:
            with self._lock:
                number = next(self._numbers)
            yield number


def _check_positive(payloads: Payloads[Any], **numbers: float | None) -> None:
    if len(payloads) == 0:
        raise InputError("there are no payloads: expected at least one")
    for name, number in numbers.items():
        if number is not None and not number > 0:
            raise InputError(f"{name} {number}: expected more than 0")
