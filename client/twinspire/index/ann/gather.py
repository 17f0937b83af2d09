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

    def close(self) -> None:
        """Answer what waits, then end the thread. Does nothing the second time."""
        with self._closing:
            if not self._closed:
                self._closed = True
                self._waiting.put(None)
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _run(self, make: Callable[[], Searching], made: Future[None]) -> None:
        try:
            search = make()
        except BaseException as error:  # whoever waits gets it
            made.set_exception(error)
            return
        made.set_result(None)
        kept: _Request | None = None
        while True:
            first = kept if kept is not None else self._waiting.get()
            kept = None
            if first is None:
                return
            batch, ended = [first], False
            while not self._waiting.empty() and sum(len(request.queries) for request in batch) < _MOST_QUERIES:
                following = self._waiting.get()
                if following is None:
                    ended = True
                    break
                if following.effort != first.effort:
                    kept = following
                    break
                batch.append(following)
            self._answer(search, batch)
            if ended:
                return

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
