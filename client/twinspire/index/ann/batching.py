"""Thread that owns an index and computes the searches of all other threads, in batches.

FAISS's GPU indexes must not be used by two threads at a time, not even for reading. And a GPU takes one batch of many
queries in about the time of one query: requests that arrive while a batch is computed make up the next.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from queue import SimpleQueue

import numpy as np
from numpy.typing import NDArray

from twinspire.errors import IndexStoreError
from twinspire.index.flat import ScoredRows

SearchBatch = Callable[[NDArray[np.float32], int, int], ScoredRows]
"""Takes queries (Q, D), the number of results for each, and the effort."""
_MAXIMUM_QUERIES = 4096


@dataclass(slots=True)
class _Request:
    queries: NDArray[np.float32]
    count: int
    effort: int
    result: Future[ScoredRows] = field(default_factory=Future)


class BatchingThread:
    """Thread that calls `make`, then the search that it returns, with the requests of all threads in batches.

    A batch has one effort and up to 4,096 queries. An error is raised by every request of its batch. The thread ends
    with `close`, at the latest with the process.
    """

    def __init__(self, make: Callable[[], SearchBatch]) -> None:
        self._requests: SimpleQueue[_Request | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._closed = False
        self.batches = 0
        """Number of batches computed."""
        made: Future[None] = Future()
        threading.Thread(target=self._run, args=(make, made), name="twinspire-index", daemon=True).start()
        made.result()

    def search(self, queries: NDArray[np.float32], count: int, effort: int) -> ScoredRows:
        """Return scores and rows of the `count` best for `queries` (Q, D); waits for their batch."""
        request = _Request(queries, count, effort)
        with self._lock:
            if self._closed:
                raise IndexStoreError("the index is closed: open it again")
            self._requests.put(request)
        return request.result.result()

    def close(self) -> None:
        """Let the thread compute what was asked for, then end; does not wait for it."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._requests.put(None)

    def _run(self, make: Callable[[], SearchBatch], made: Future[None]) -> None:
        try:
            search = make()
        except BaseException as error:  # raised by the thread that waits
            made.set_exception(error)
            return
        made.set_result(None)
        pending: list[_Request] = []
        ended = False
        while pending or not ended:
            while not ended and (not pending or not self._requests.empty()):
                request = self._requests.get()
                if request is None:
                    ended = True
                else:
                    pending.append(request)
            batch, rest, queries = list[_Request](), list[_Request](), 0
            for request in pending:
                if request.effort == pending[0].effort and (
                    not batch or queries + len(request.queries) <= _MAXIMUM_QUERIES
                ):
                    batch.append(request)
                    queries += len(request.queries)
                else:
                    rest.append(request)
            if batch:
                self._compute(search, batch)
            pending = rest
            batch = []  # keep no queries and results while it waits

    def _compute(self, search: SearchBatch, batch: list[_Request]) -> None:
        self.batches += 1
        try:
            queries = np.concatenate([request.queries for request in batch])
            scores, rows = search(queries, max(request.count for request in batch), batch[0].effort)
        except BaseException as error:
            for request in batch:
                request.result.set_exception(error)
            return
        start = 0
        for request in batch:
            end = start + len(request.queries)
            request.result.set_result((scores[start:end, : request.count], rows[start:end, : request.count]))
            start = end
