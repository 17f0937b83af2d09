"""Load generators: closed loops, open loops, and interleaved rounds.

A closed loop keeps a number of calls in flight and sends the next when one is answered; it measures throughput. An open
loop sends calls at the times of its schedule, answered or not; it measures the latency that callers would see. Its
latency starts when a call is due: a system that stalls for a second is charged with all calls of that second, and not
only with the one that was in flight (G. Tene, How NOT to Measure Latency: "coordinated omission").
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

# Maximum calls in flight of an open loop; further ones wait, and their latency includes the wait.
SENDERS = 64


class Payloads(Protocol[Payload_co]):
    """Arguments of the calls: a list, or an object that makes each payload when it is read."""

    def __len__(self) -> int:
        """Return the number of payloads."""

    def __getitem__(self, index: int, /) -> Payload_co:
        """Return the payload at a position. No latency includes its time."""


class Clock(Protocol):
    """Clock to read and to sleep on; tests replace it."""

    def now(self) -> float:
        """Return seconds since a fixed moment."""

    def sleep(self, seconds: float) -> None:
        """Wait. `seconds` is positive."""


class SystemClock:
    """Monotonic clock of this machine."""

    def now(self) -> float:
        """Return seconds since a fixed moment; they never decrease."""
        return time.perf_counter()

    def sleep(self, seconds: float) -> None:
        """Wait at least `seconds`."""
        time.sleep(seconds)


@dataclass(frozen=True, eq=False)
class LoadResult:
    """Result of a load.

    `latencies_ms` (N,) float64 are those of the successful calls, in the order in which they were sent. `duration_s` is
    the time from the start to the last answer. `failures` counts the other calls by the name of their error.
    """

    latencies_ms: NDArray[np.float64]
    duration_s: float
    failures: Mapping[str, int]

    @property
    def throughput_per_s(self) -> float:
        """Successful calls a second; 0.0 where all failed."""
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

    End after `requests` calls, or with the calls in flight after `duration_s` seconds, after at least one call: give
    one of the two. A call that raises a TwinspireError is a failure; any other error ends the loop and is raised. There
    is no warm-up. Raises InputError for no payloads and for numbers that are not positive.
    """
    _check(payloads, in_flight=in_flight, requests=requests, duration_s=duration_s)
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
    """Call with each payload in turn, with Poisson arrivals at a mean rate of `rate_per_s`.

    The same seed gives the same arrivals. Make `requests` calls, or all that are due within `duration_s` seconds. At
    most `senders` calls are in flight; a latency starts when the call is due, not when it is sent. Errors are those of
    `closed_loop`.
    """
    _check(payloads, rate_per_s=rate_per_s, requests=requests, duration_s=duration_s, senders=senders)
    clock = clock or SystemClock()
    schedule = arrivals(rate_per_s, seed=seed, requests=requests, duration_s=duration_s)
    start = clock.now()

    def due(index: int) -> float | None:
        return start + schedule[index] if index < len(schedule) else None

    return _run(call, payloads, due, workers=min(senders, max(1, len(schedule))), clock=clock)


def arrivals(
    rate_per_s: float, *, seed: int, requests: int | None = None, duration_s: float | None = None
) -> NDArray[np.float64]:
    """Return the arrival times of a Poisson process in seconds: the first `requests`, or those in `duration_s`."""
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
    """Measure variants in turn, so that load on the machine affects all alike; return (rounds,) float64 by name.

    Each function measures its variant once and returns the result. Every round begins with another variant. `warmup`
    rounds come first and are dropped. `on_round` receives "warm-up", "round 1 of 10" and so on. Compare two variants
    with `paired_ratio`.
    """
    if rounds < 1 or warmup < 0 or not variants:
        raise InputError(
            f"{len(variants)} variants, rounds {rounds}, warmup {warmup}: expected at least one variant and one round"
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
    """Make calls from `workers` threads. `due` returns when a call is due, None after the last one."""
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
    """Numbers from 0 up, each taken by one thread."""

    def __init__(self) -> None:
        self._numbers, self._lock = count(), threading.Lock()

    def __iter__(self) -> Iterator[int]:
        while True:
            with self._lock:
                number = next(self._numbers)
            yield number


def _check(payloads: Payloads[Any], *, requests: int | None, duration_s: float | None, **numbers: float | None) -> None:
    if (requests is None) == (duration_s is None):
        raise InputError(f"requests {requests} and duration_s {duration_s}: expected one of them")
    if len(payloads) == 0:
        raise InputError("no payloads: expected at least one")
    for name, number in {**numbers, "requests": requests, "duration_s": duration_s}.items():
        if number is not None and not number > 0:
            raise InputError(f"{name} {number}: expected more than 0")
