"""A bounded queue between Triton and an engine.

Triton's own bound, `default_queue_policy`, cannot be used. With any of it Triton takes a batch only when an instance
waits for one, and nothing wakes its batcher at that moment: it looks again after 500 ms (WaitForPayloadSlotAvailable
in dynamic_batch_scheduler.cc of triton-inference-server/core, 2.51 and later). The sample on two cores answered 3
instead of 240 images a second with it. So under load requests are taken from Triton faster than they are computed,
wait in this queue, and are refused when it is full.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from twinspire_server.repository.telemetry import Observation

FULL, EXPIRED = "Exceeds maximum queue size", "Request timeout expired"
"""The messages of Triton's own queue policy, which clients know."""


@dataclass(frozen=True, eq=False)
class QueuedRequest:
    """A request of Triton. It expires at `expires_s`, on the clock time.monotonic.

    `rows` are its inputs in any form, their length the number of rows. `observation` is None where it is not to appear
    in metrics.
    """

    request: Any
    rows: Any
    expires_s: float
    observation: Observation | None = None


@dataclass(eq=False)
class _Worker:
    """A thread's batch: `rows` of it, since `began_s`; None between batches.

    After a batch it pauses until `pause_until_s`, while the callers that were answered send their next requests.
    """

    rows: int = 0
    began_s: float | None = None
    pause_until_s: float = 0.0


class Backlog:
    """A queue of requests and the threads that compute them, oldest first, in batches of at most `max_batch` rows.

    Each of `workers` threads computes batches of its own: while the callers of one are answered and send their next
    requests, the others compute. What waits is divided equally among them. `compute` answers all requests of a batch
    and raises nothing. At most `max_rows` rows wait. Only one thread may submit. `niceness` is added to that of the
    threads.

    `pause` is the part of a batch's time, and `pause_at_most_s` the time, that a thread waits at most after it for as
    many rows as it has just answered; 0 disables the pause. It ends as soon as they have come. A thread that finds
    nothing in its queue afterwards is idle and takes the next request at once.
    """

    def __init__(
        self,
        compute: Callable[[Sequence[QueuedRequest]], object],
        *,
        max_batch: int,
        max_rows: int,
        workers: int = 1,
        niceness: int = 0,
        pause: float = 0.0,
        pause_at_most_s: float = math.inf,
    ) -> None:
        self._compute, self._max_batch, self._max_rows = compute, max_batch, max_rows
        self._niceness = niceness
        self._pause, self._pause_at_most_s = pause, pause_at_most_s
        self._changed = threading.Condition()
        self._queue: deque[QueuedRequest] = deque()
        self._rows = 0
        self._closed = False
        self._workers = [_Worker() for _ in range(workers)]
        self._threads = [
            threading.Thread(target=self._run, args=(worker,), name="backlog", daemon=True) for worker in self._workers
        ]
        for thread in self._threads:
            thread.start()

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits, is computed, or is expected from callers that were just answered."""
        with self._changed:
            return not self._queue and all(worker.began_s is None for worker in self._workers) and not self._pausing()

    def is_shared(self, batch: Sequence[QueuedRequest]) -> bool:
        """Whether other threads have, or will at once get, requests to compute beside a batch."""
        return len(batch) > 1 or self._rows > 0

    @property
    def computing_s(self) -> float:
        """Seconds since the oldest batch that is being computed began; 0 where there is none."""
        began_s = [worker.began_s for worker in self._workers if worker.began_s is not None]
        return time.monotonic() - min(began_s) if began_s else 0.0

    def submit(self, requests: Sequence[QueuedRequest], *, gather_s: float = 0.0) -> list[QueuedRequest]:
        """Queue requests. Return those that do not fit.

        Where all fit, wait until a thread is free to take more, for `gather_s` at most: further requests gather
        meanwhile. Where some do not, return at once: Triton would hold in memory what comes faster than it is refused.
        """
        refused = []
        with self._changed:
            for queued in requests:
                if self._rows + len(queued.rows) > self._max_rows:
                    refused.append(queued)
                else:
                    self._queue.append(queued)
                    self._rows += len(queued.rows)
            self._changed.notify_all()
            if not refused and gather_s > 0:
                self._changed.wait_for(lambda: any(worker.began_s is None for worker in self._workers), gather_s)
        return refused

    def wait_until_idle(self, timeout_s: float | None = None) -> None:
        """Wait until the queue is empty and no batch is being computed, for `timeout_s` at most."""

        def idle() -> bool:
            return not self._queue and all(worker.began_s is None for worker in self._workers)

        with self._changed:
            self._changed.wait_for(idle, timeout_s)

    def close(self) -> None:
        """Compute the queued requests, then end the threads."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _run(self, worker: _Worker) -> None:
        os.nice(self._niceness)  # of this thread
        while batch := self._take(worker):
            is_shared, began_s = self.is_shared(batch), time.monotonic()
            self._compute(batch)
            with self._changed:
                now_s = time.monotonic()
                if is_shared:  # a lone caller's next request is computed at once
                    worker.pause_until_s = now_s + min(self._pause * (now_s - began_s), self._pause_at_most_s)
                worker.began_s = None
                self._changed.notify_all()

    def _take(self, worker: _Worker) -> list[QueuedRequest]:
        """Wait for requests and return those of the next batch; none when closed."""
        with self._changed:
            while not (self._closed and not self._queue):
                left_s = worker.pause_until_s - time.monotonic()
                if left_s > 0 and self._rows < self._share() and not self._closed:
                    self._changed.wait(left_s)
                elif self._queue:
                    return self._next_batch(worker)
                else:
                    worker.rows = 0
                    self._changed.wait()
        return []

    def _next_batch(self, worker: _Worker) -> list[QueuedRequest]:
        batch: list[QueuedRequest] = []
        share, rows = self._share(), 0
        while self._queue and (not batch or rows + len(self._queue[0].rows) <= share):
            batch.append(self._queue.popleft())
            rows += len(batch[-1].rows)
        self._rows -= rows
        worker.rows, worker.began_s, worker.pause_until_s = rows, time.monotonic(), 0.0
        return batch

    def _share(self) -> int:
        """Return how many rows the next batch takes at most: its part of all that wait, are computed or are expected.

        So the batches of all threads come to the same size. Half a batch takes longer a row: ViT-B/32 int8 on two Xeon
        cores computes 79 images/s in batches of 16, 74 of 8, 69 of 4 and 47 of 1.
        """
        computed = sum(worker.rows for worker in self._workers if worker.began_s is not None)
        expected = max(self._rows, sum(worker.rows for worker in self._pausing()))
        workers = len(self._workers)
        return max(1, min(math.ceil(self._max_batch / workers), math.ceil((expected + computed) / workers)))

    def _pausing(self) -> list[_Worker]:
        now_s = time.monotonic()
        return [worker for worker in self._workers if worker.began_s is None and worker.pause_until_s > now_s]
