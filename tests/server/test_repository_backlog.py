"""The queue in front of an engine: how what waits is divided among its threads, and when one waits for more."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from twinspire_server.repository.backlog import Backlog, QueuedRequest

LONG_S = 30.0


class _Engine:
    """Notes the rows of each batch and whether it is shared; holds a batch until it is released."""

    def __init__(self) -> None:
        self.backlog: Backlog | None = None
        self.batches: list[tuple[int, bool]] = []
        self._started = threading.Semaphore(0)
        self._released = threading.Semaphore(0)

    def compute(self, batch: Sequence[QueuedRequest]) -> None:
        assert self.backlog is not None
        self.batches.append((sum(len(queued.rows) for queued in batch), self.backlog.is_shared(batch)))
        self._started.release()
        assert self._released.acquire(timeout=LONG_S)

    def wait_for_batch(self, timeout_s: float = LONG_S) -> bool:
        return self._started.acquire(timeout=timeout_s)

    def release(self, batches: int = 1) -> None:
        self._released.release(batches)


@pytest.fixture
def engine() -> Iterator[_Engine]:
    """Make an engine, and let everything that it holds end after the test."""
    made = _Engine()
    yield made
    made.release(100)


@pytest.fixture
def open_backlog(engine: _Engine) -> Iterator[Callable[..., Backlog]]:
    """Open a backlog of two threads before the engine."""
    opened = []

    def open_backlog(**options: Any) -> Backlog:
        engine.backlog = Backlog(engine.compute, **{"max_batch": 32, "max_rows": 256, "workers": 2, **options})
        opened.append(engine.backlog)
        return engine.backlog

    yield open_backlog
    engine.release(100)
    for backlog in opened:
        backlog.close()


def _requests(*rows: int) -> list[QueuedRequest]:
    return [QueuedRequest(None, np.zeros((count, 4), np.uint8), time.monotonic() + LONG_S) for count in rows]


def test_what_waits_is_divided_among_the_threads(open_backlog: Callable[..., Backlog], engine: _Engine) -> None:
    """Two idle threads take half of what comes each, and know of each other."""
    open_backlog().submit(_requests(*[1] * 16))
    assert engine.wait_for_batch()
    assert engine.wait_for_batch()
    assert engine.batches == [(8, True)] * 2


def test_a_free_thread_leaves_the_other_its_part(open_backlog: Callable[..., Backlog], engine: _Engine) -> None:
    """While one thread computes few rows, the other takes no more than half of all."""
    backlog = open_backlog()
    backlog.submit(_requests(1))
    assert engine.wait_for_batch()
    backlog.submit(_requests(*[1] * 15))
    assert engine.wait_for_batch()
    assert engine.batches == [(1, False), (8, True)]


def test_a_request_of_many_rows_alone_may_use_all_threads(
    open_backlog: Callable[..., Backlog], engine: _Engine
) -> None:
    """A single request, of however many rows, is one batch, and no other is computed beside it."""
    open_backlog().submit(_requests(32))
    assert engine.wait_for_batch()
    assert engine.batches == [(32, False)]


def test_a_request_of_many_rows_is_shared_while_others_wait(
    open_backlog: Callable[..., Backlog], engine: _Engine
) -> None:
    """With a request behind it, a single one does not use all threads; the last one does."""
    open_backlog(workers=1).submit(_requests(32, 32))
    for _ in range(2):
        assert engine.wait_for_batch()
        engine.release()
    assert engine.batches == [(32, True), (32, False)]


def test_a_thread_waits_for_as_many_rows_as_it_answered(open_backlog: Callable[..., Backlog], engine: _Engine) -> None:
    """After a batch of 4, the thread takes nothing until 4 more have come, and then at once."""
    backlog = open_backlog(workers=1, pause=1e6)
    backlog.submit(_requests(1, 1, 1, 1))
    assert engine.wait_for_batch()
    engine.release()
    backlog.wait_until_idle(LONG_S)
    assert not backlog.is_idle
    backlog.submit(_requests(1, 1))
    assert not engine.wait_for_batch(0.3)
    backlog.submit(_requests(1, 1))
    assert engine.wait_for_batch()
    assert engine.batches == [(4, True)] * 2


@pytest.mark.parametrize("limit", [{"pause": 1e6, "pause_at_most_s": 0.05}, {"pause": 0.0}])
def test_the_pause_is_bounded(open_backlog: Callable[..., Backlog], engine: _Engine, limit: dict[str, float]) -> None:
    """Where fewer rows come than were answered, they are computed when the pause is over; without one at once."""
    backlog = open_backlog(workers=1, **limit)
    backlog.submit(_requests(1, 1, 1, 1))
    assert engine.wait_for_batch()
    engine.release()
    backlog.wait_until_idle(LONG_S)
    backlog.submit(_requests(1))
    assert engine.wait_for_batch()
    assert engine.batches == [(4, True), (1, False)]


def test_nobody_waits_after_a_lone_request(open_backlog: Callable[..., Backlog], engine: _Engine) -> None:
    """One caller alone is answered and asks again: there is nobody else to wait for."""
    backlog = open_backlog(pause=1e6)
    for _ in range(3):
        backlog.submit(_requests(1))
        assert engine.wait_for_batch()
        engine.release()
        backlog.wait_until_idle(LONG_S)
        assert backlog.is_idle
    assert engine.batches == [(1, False)] * 3


def test_what_waits_when_the_queue_is_closed_is_computed(open_backlog: Callable[..., Backlog], engine: _Engine) -> None:
    """Closing computes every request that was queued, without a pause."""
    backlog = open_backlog(workers=1, pause=1e6)
    backlog.submit(_requests(*[1] * 40))
    engine.release(2)
    backlog.close()
    assert engine.batches == [(32, True), (8, True)]
