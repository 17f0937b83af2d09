"""A bounded queue between Triton and an engine.

Triton's own bound, `default_queue_policy`, cannot be used. With any of it Triton takes a batch only when an instance
waits for one, and nothing wakes its batcher at that moment: it looks again after 500 ms (WaitForPayloadSlotAvailable
in dynamic_batch_scheduler.cc of triton-inference-server/core, 2.51 and later). The sample on two cores answered 3
instead of 240 images a second with it. So under load requests are taken from Triton faster than they are computed,
wait in this queue, and are refused when it is full.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from twinspire_server.repository.telemetry import Observation


@dataclass(frozen=True, eq=False)
class QueuedRequest:
    """A request of Triton with its rows (n, ...). It expires at `expires_s`, on the clock time.monotonic.

    `observation` is None where it is not to appear in metrics.
    """

    request: Any
    rows: NDArray[Any]
    expires_s: float
    observation: Observation | None = None


class Backlog:
    """A queue of requests and the thread that computes them, oldest first, in batches of at most `max_batch` rows.

    `compute` answers all requests of a batch and raises nothing. At most `max_rows` rows wait. Only one thread may
    submit.
    """

    def __init__(self, compute: Callable[[Sequence[QueuedRequest]], object], *, max_batch: int, max_rows: int) -> None:
        self._compute, self._max_batch, self._max_rows = compute, max_batch, max_rows
        self._changed = threading.Condition()
        self._queue: deque[QueuedRequest] = deque()
        self._rows = 0
        self._closed = False
        self._began_s: float | None = None
        self._thread = threading.Thread(target=self._run, name="backlog", daemon=True)
        self._thread.start()

    @property
    def is_idle(self) -> bool:
        """Whether the queue is empty and no batch is being computed."""
        with self._changed:
            return not self._queue and self._began_s is None

    @property
    def computing_s(self) -> float:
        """Seconds since the current batch began to be computed; 0 where there is none."""
        began_s = self._began_s
        return 0.0 if began_s is None else time.monotonic() - began_s

    def submit(self, requests: Sequence[QueuedRequest]) -> list[QueuedRequest]:
        """Queue requests. Return those that do not fit."""
        refused = []
        with self._changed:
            for queued in requests:
                if self._rows + len(queued.rows) > self._max_rows:
                    refused.append(queued)
                else:
                    self._queue.append(queued)
                    self._rows += len(queued.rows)
            self._changed.notify_all()
        return refused

    def wait_until_idle(self, timeout_s: float | None = None) -> None:
        """Wait until the queue is empty and no batch is being computed, for `timeout_s` at most."""
        with self._changed:
            self._changed.wait_for(lambda: self.is_idle, timeout_s)

    def close(self) -> None:
        """Compute the queued requests, then end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    def _run(self) -> None:
        while batch := self._take():
            self._compute(batch)
            with self._changed:
                self._began_s = None
                self._changed.notify_all()

    def _take(self) -> list[QueuedRequest]:
        """Wait for requests and return those of the next batch; none when closed."""
        batch: list[QueuedRequest] = []
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._closed)
            rows = 0
            while self._queue and (not batch or rows + len(self._queue[0].rows) <= self._max_batch):
                batch.append(self._queue.popleft())
                rows += len(batch[-1].rows)
            self._rows -= rows
            self._began_s = time.monotonic() if batch else None
        return batch
