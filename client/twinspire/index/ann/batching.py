"""One thread that owns an index and answers the searches of all others, several at once.

FAISS's GPU indexes may not be used by two threads at a time, not even for reading. And a GPU takes one batch of many
queries in about the time of one query: what waits while a batch is computed makes up the next.
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
from twinspire.index.flat import Found

Searching = Callable[[NDArray[np.float32], int, int], Found]
"""Takes queries (Q, D), how many results each wants, and the effort."""
_MOST_QUERIES = 4096


@dataclass(slots=True)
class _Request:
    queries: NDArray[np.float32]
    wanted: int
    effort: int
    answer: Future[Found] = field(default_factory=Future)


class GatheringThread:
    """Runs `search` in a thread of its own, which also makes it by `make`, and gathers what comes meanwhile.

    Requests of one effort go together, up to 4,096 queries. An error goes to those whose batch it was. Ends with
    `close`, at the latest with the process.
    """

    def __init__(self, make: Callable[[], Searching]) -> None:
        self._waiting: SimpleQueue[_Request | None] = SimpleQueue()
        self._closing = threading.Lock()
        self._closed = False
        self.batches = 0
        """How many batches were computed."""
        made: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, args=(make, made), name="twinspire-index", daemon=True)
        self._thread.start()
        made.result()

    def search(self, queries: NDArray[np.float32], wanted: int, effort: int) -> Found:
        """Return scores and rows of the `wanted` best for `queries` (Q, D); waits for its turn."""
        request = _Request(queries, wanted, effort)
        with self._closing:
            if self._closed:
                raise IndexStoreError("the index is closed: open it again")
            self._waiting.put(request)
        return request.answer.result()

    def end(self) -> None:
        """Let the thread answer what waits and end; does not wait for it."""
        with self._closing:
            if not self._closed:
                self._closed = True
                self._waiting.put(None)

    def close(self) -> None:
        """Answer what waits, then end the thread. Does nothing the second time."""
        self.end()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _run(self, make: Callable[[], Searching], made: Future[None]) -> None:
        try:
            search = make()
        except BaseException as error:  # whoever waits gets it
            made.set_exception(error)
            return
        made.set_result(None)
        pending: list[_Request] = []
        ended = False
        while pending or not ended:
            while not ended and (not pending or not self._waiting.empty()):
                request = self._waiting.get()
                if request is None:
                    ended = True
                else:
                    pending.append(request)
            batch, rest, queries = list[_Request](), list[_Request](), 0
            for request in pending:
                if request.effort == pending[0].effort and (
                    not batch or queries + len(request.queries) <= _MOST_QUERIES
                ):
                    batch.append(request)
                    queries += len(request.queries)
                else:
                    rest.append(request)
            if batch:
                self._answer(search, batch)
            pending = rest
            batch = []  # nobody's queries and answers are kept while it waits

    def _answer(self, search: Searching, batch: list[_Request]) -> None:
        self.batches += 1
        try:
            queries = np.concatenate([request.queries for request in batch])
            scores, rows = search(queries, max(request.wanted for request in batch), batch[0].effort)
        except BaseException as error:
            for request in batch:
                request.answer.set_exception(error)
            return
        start = 0
        for request in batch:
            end = start + len(request.queries)
            request.answer.set_result((scores[start:end, : request.wanted], rows[start:end, : request.wanted]))
            start = end
