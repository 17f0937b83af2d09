"""What waits between Triton and an engine, bounded.

Triton's own bound, `default_queue_policy`, cannot be used. With any of it Triton takes a batch only when an instance
waits for one, and nothing wakes its batcher at that moment: it looks again after 500 ms (WaitForPayloadSlotAvailable
in dynamic_batch_scheduler.cc of triton-inference-server/core, 2.51 and later). The sample on two cores answered 3
instead of 240 images a second with it. So under load requests are taken from Triton faster than they are computed,
wait here, and are refused when too many do.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Waiting:
    """A request of Triton with its rows (n, ...), not to be computed any more after `expires_s` (time.monotonic)."""

    request: Any
    rows: NDArray[Any]
    expires_s: float


class Backlog:
    """A queue of requests and the thread that computes them, oldest first, in batches of at most `max_batch` rows.

    `compute` answers all requests of a batch and raises nothing. At most `max_rows` rows wait. One thread submits.
    """

    def __init__(self, compute: Callable[[Sequence[Waiting]], object], *, max_batch: int, max_rows: int) -> None:
        self._compute, self._max_batch, self._max_rows = compute, max_batch, max_rows
        self._changed = threading.Condition()
        self._queue: deque[Waiting] = deque()
        self._rows = 0
        self._closed = False
        self._began_s: float | None = None
        self._thread = threading.Thread(target=self._run, name="backlog", daemon=True)
        self._thread.start()

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits and nothing is computed."""
        with self._changed:
            return not self._queue and self._began_s is None

    @property
    def computing_s(self) -> float:
        """How long the batch that is computed now has taken, in seconds; 0 where none is."""
        began_s = self._began_s
        return 0.0 if began_s is None else time.monotonic() - began_s

    def submit(self, requests: Sequence[Waiting]) -> list[Waiting]:
        """Queue requests. Return those that exceed what may wait."""
        refused = []
        with self._changed:
            for waiting in requests:
                if self._rows + len(waiting.rows) > self._max_rows:
                    refused.append(waiting)
                else:
                    self._queue.append(waiting)
                    self._rows += len(waiting.rows)
            self._changed.notify_all()
        return refused

    def wait_until_idle(self, timeout_s: float | None = None) -> None:
        """Wait until nothing waits and nothing is computed, or the time has passed."""
        with self._changed:
            self._changed.wait_for(lambda: self.is_idle, timeout_s)

    def close(self) -> None:
        """Compute what waits, then end the thread."""
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

    def _take(self) -> list[Waiting]:
        """Wait for requests and return those of the next batch; none when closed."""
        batch: list[Waiting] = []
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._closed)
            rows = 0
            while self._queue and (not batch or rows + len(self._queue[0].rows) <= self._max_batch):
                batch.append(self._queue.popleft())
                rows += len(batch[-1].rows)
            self._rows -= rows
            self._began_s = time.monotonic() if batch else None
        return batch
