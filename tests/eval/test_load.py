"""Load, with clocks that only move when told to."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
import pytest
import scipy.stats

from twinspire.errors import InputError, ServerUnavailableError
from twinspire_eval.load import arrivals, closed_loop, interleaved, open_loop


class FakeClock:
    """Stands still but for `sleep`."""

    def __init__(self) -> None:
        self.time = 100.0

    def now(self) -> float:
        """Give the time."""
        return self.time

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        assert seconds > 0
        self.time += seconds


class _Slow:
    """Two payloads that take half a second to make."""

    def __init__(self, clock: FakeClock) -> None:
        self._clock = clock

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> int:
        self._clock.sleep(0.5)
        return index


def _takes(clock: FakeClock, seconds: Callable[[int], float]) -> Callable[[int], None]:
    return lambda payload: clock.sleep(seconds(payload))


def test_a_closed_loop_sends_each_payload_in_turn() -> None:
    """Seven calls over three payloads: each latency is what its payload takes, the sum is the duration."""
    clock = FakeClock()
    found = closed_loop(_takes(clock, lambda x: x / 1000), [10, 20, 40], in_flight=1, requests=7, clock=clock)
    assert found.latencies_ms == pytest.approx([10, 20, 40, 10, 20, 40, 10])
    assert found.duration_s == pytest.approx(0.15)
    assert found.throughput_per_s == pytest.approx(7 / 0.15)
    assert found.failures == {}


def test_a_closed_loop_ends_when_its_time_is_over() -> None:
    """In one second of calls of 0.3 s a fourth is begun and kept, a fifth is not."""
    clock = FakeClock()
    found = closed_loop(_takes(clock, lambda _: 0.3), [0], in_flight=1, duration_s=1.0, clock=clock)
    assert len(found.latencies_ms) == 4
    assert found.duration_s == pytest.approx(1.2)


def test_a_closed_loop_makes_one_call_in_no_time() -> None:
    """Where the time is over before the first payload was made, its call is still measured."""
    clock = FakeClock()
    found = closed_loop(lambda _: clock.sleep(0.2), _Slow(clock), in_flight=1, duration_s=0.1, clock=clock)
    assert found.latencies_ms == pytest.approx([200])


def test_a_closed_loop_keeps_as_many_in_flight_as_asked() -> None:
    """Five in flight meet at a barrier of five, again and again; more never are under way."""
    barrier, lock = threading.Barrier(5, timeout=30), threading.Lock()
    under_way, most = 0, 0

    def call(_: int) -> None:
        nonlocal under_way, most
        with lock:
            under_way += 1
            most = max(most, under_way)
        barrier.wait()
        with lock:
            under_way -= 1
        barrier.wait()

    found = closed_loop(call, [0], in_flight=5, requests=20)
    assert len(found.latencies_ms) == 20
    assert most == 5


def test_making_a_payload_is_in_no_latency() -> None:
    """A payload that takes 0.5 s to make and 0.1 s to answer has a latency of 0.1 s."""
    clock = FakeClock()
    found = closed_loop(lambda _: clock.sleep(0.1), _Slow(clock), in_flight=1, requests=3, clock=clock)
    assert found.latencies_ms == pytest.approx([100] * 3)


def test_failed_calls_are_counted_and_have_no_latency() -> None:
    """A TwinspireError counts by its name; throughput is of answered calls."""
    clock = FakeClock()

    def call(payload: int) -> None:
        clock.sleep(0.1)
        if payload == 1:
            raise ServerUnavailableError("gone")

    found = closed_loop(call, [0, 1], in_flight=1, requests=6, clock=clock)
    assert found.latencies_ms == pytest.approx([100] * 3)
    assert found.failures == {"ServerUnavailableError": 3}
    assert found.throughput_per_s == pytest.approx(3 / 0.6)


def test_a_load_of_failures_has_no_throughput() -> None:
    """Where nothing was answered the throughput is 0."""

    def call(_: int) -> None:
        raise ServerUnavailableError("gone")

    clock = FakeClock()
    assert closed_loop(call, [0], in_flight=1, requests=2, clock=clock).throughput_per_s == 0.0


def test_another_error_ends_the_load() -> None:
    """What is no TwinspireError is a defect: it is raised, and the other threads stop."""
    calls: list[int] = []

    def call(_: int) -> None:
        calls.append(1)
        if len(calls) > 10:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        closed_loop(call, [0], in_flight=4, duration_s=600)


def test_an_open_loop_sends_at_its_schedule() -> None:
    """With fast calls every call begins at its own moment."""
    clock, sent = FakeClock(), []

    def call(_: int) -> None:
        sent.append(clock.now() - 100.0)

    found = open_loop(call, [0], rate_per_s=50, seed=3, requests=40, senders=1, clock=clock)
    assert sent == pytest.approx(arrivals(50, seed=3, requests=40))
    assert found.latencies_ms == pytest.approx([0] * 40, abs=1e-6)


def test_an_open_loop_charges_the_wait_for_a_late_sender() -> None:
    """One sender, a call that stalls: each latency is what a queue of one server gives, from the moment it was due."""
    clock = FakeClock()
    took = [2.0] + [0.001] * 29
    times = iter(took)
    found = open_loop(
        lambda _: clock.sleep(next(times)), [0], rate_per_s=20, seed=1, requests=30, senders=1, clock=clock
    )
    free, expected = 0.0, []
    for due, taken in zip(arrivals(20, seed=1, requests=30), took, strict=True):
        free = max(free, due) + taken
        expected.append(1000 * (free - due))
    assert found.latencies_ms == pytest.approx(expected)
    # About 40 fell due in the two seconds: nearly all of the 30 calls waited, though only one call was slow.
    assert np.median(found.latencies_ms) > 500


def test_a_slow_call_is_charged_in_real_time_too() -> None:
    """Two senders that sleep for real: calls that take 0 wait for those that stall."""
    stall = threading.Event()

    def call(payload: int) -> None:
        if payload == 0:
            stall.wait(0.2)

    payloads = [0, 0] + [1] * 48
    found = open_loop(call, payloads, rate_per_s=1000, seed=0, requests=50, senders=2)
    waited = found.latencies_ms[2:]
    moments = 1000 * arrivals(1000, seed=0, requests=50)
    least = 200 + moments[0] - moments[2:]  # the first sender is free at the earliest then
    assert (waited >= least - 1e-6).all()


def test_arrivals_are_poisson() -> None:
    """Gaps are exponential (Kolmogorov-Smirnov), and the rate is the one that was asked for."""
    moments = arrivals(200.0, seed=4, duration_s=50.0)
    assert len(moments) == pytest.approx(10_000, abs=4 * 100)
    assert scipy.stats.kstest(np.diff(moments), "expon", args=(0, 1 / 200)).pvalue > 0.01
    assert moments.max() < 50
    np.testing.assert_array_equal(arrivals(200.0, seed=4, requests=100), arrivals(200.0, seed=4, requests=100))


def test_no_arrival_in_the_time_is_an_empty_result() -> None:
    """A rate so low that nothing falls due gives no latency and no throughput."""
    found = open_loop(lambda _: None, [0], rate_per_s=0.001, seed=0, duration_s=0.01, clock=FakeClock())
    assert found.latencies_ms.shape == (0,)
    assert found.throughput_per_s == 0.0


def test_interleaved_rounds_begin_with_each_variant_in_turn() -> None:
    """Three variants, four rounds after one to warm up: the order turns, and each figure has its round's place."""
    order: list[str] = []
    figures = iter(range(100))

    def variant(name: str) -> Callable[[], float]:
        def measure() -> float:
            order.append(name)
            return float(next(figures))

        return measure

    found = interleaved({name: variant(name) for name in "abc"}, rounds=4, warmup=1)
    assert "".join(order[3:]) == "abcbcacababc"
    assert sorted(order[:3]) == ["a", "b", "c"]
    assert found["a"].tolist() == [3, 8, 10, 12]
    assert found["b"].tolist() == [4, 6, 11, 13]
    assert found["c"].tolist() == [5, 7, 9, 14]


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"in_flight": 1}, "duration_s"),
        ({"in_flight": 1, "requests": 1, "duration_s": 1.0}, "duration_s"),
        ({"in_flight": 0, "requests": 1}, "in_flight"),
        ({"in_flight": 1, "requests": 0}, "requests"),
        ({"in_flight": 1, "duration_s": -1.0}, "duration_s"),
    ],
)
def test_a_closed_loop_refuses_what_it_cannot_do(arguments: dict[str, float], name: str) -> None:
    """Neither or both ends, and numbers that are not positive, raise InputError."""
    with pytest.raises(InputError, match=name):
        closed_loop(lambda _: None, [0], **arguments)  # type: ignore[arg-type]


def test_loads_refuse_no_payloads_and_no_rate() -> None:
    """No payloads, a rate of 0, no rounds and no variants raise InputError."""
    with pytest.raises(InputError, match="payloads"):
        closed_loop(lambda _: None, [], in_flight=1, requests=1)
    with pytest.raises(InputError, match="rate_per_s"):
        open_loop(lambda _: None, [0], rate_per_s=0, seed=0, requests=1)
    with pytest.raises(InputError, match="rounds"):
        interleaved({"a": lambda: 1.0}, rounds=0)
    with pytest.raises(InputError, match="variants"):
        interleaved({}, rounds=1)
