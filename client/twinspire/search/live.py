"""`LiveSearcher`: a searcher for a service that goes on when its index is migrated to another model."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, Self, TypeVar

from twinspire.errors import IndexReplacedError, SpaceMismatchError
from twinspire.search.encoding import Encoder
from twinspire.search.request import SearchRequest
from twinspire.search.response import SearchResponse
from twinspire.search.searcher import Searcher
from twinspire.stores import VectorStore, open_index

_ATTEMPTS = 5
_Result = TypeVar("_Result")


class _Opened:
    """A store, its client and its searcher, closed when nobody uses them any more."""

    def __init__(self, uri: str, connect: Callable[[VectorStore], Encoder], options: dict[str, Any]) -> None:
        self.users = 0
        with ExitStack() as closing:
            store = closing.enter_context(open_index(uri))
            client = connect(store)
            if (close := getattr(client, "close", None)) is not None:
                closing.callback(close)
            self.searcher = Searcher(client, store, **options)
            self.closing = closing.pop_all()


class LiveSearcher:
    """Searches the index at `uri`, and opens it again once it was migrated or replaced. For use from several threads.

    `connect` returns the client for an open store: `store.bundle` names the bundle that made its vectors. It is called
    at once and after each switch; the searches of that moment wait for it, and none of them fails or compares vectors
    of two spaces. Other options are those of `Searcher`. Store and client are closed with `close`.
    """

    def __init__(self, uri: str, connect: Callable[[VectorStore], Encoder], **options: Any) -> None:  # noqa: ANN401
        self._uri, self._connect, self._options = uri, connect, options
        self._lock = threading.Lock()
        self._reopening = threading.Lock()  # held while one is opened
        self._opened = self._reopened(None)

    def run(self, request: SearchRequest) -> SearchResponse:
        """Return the response to a request, as `Searcher.run` does."""
        return self.call(lambda searcher: searcher.run(request))

    def call(self, function: Callable[[Searcher], _Result]) -> _Result:
        """Return what `function` returns for the searcher of the open index.

        Where the index was migrated or replaced meanwhile, it is called again, with the searcher of the new one.
        """
        for _ in range(_ATTEMPTS):
            with self._used() as opened, suppress(IndexReplacedError):
                return function(opened.searcher)
            self._reopened(opened)
        with self._used() as opened:
            return function(opened.searcher)

    def close(self) -> None:
        """Close the store and the client. Not while searches run."""
        self._opened.closing.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _reopened(self, before: _Opened | None) -> _Opened:
        """Open the index again, unless another thread has done so since `before` was in use."""
        with self._reopening:
            if before is not None and self._opened is not before:
                return self._opened
            for attempt in range(_ATTEMPTS):
                try:
                    opened = _Opened(self._uri, self._connect, self._options)
                    break
                except (IndexReplacedError, SpaceMismatchError):  # it was migrated between the store and the client
                    if attempt == _ATTEMPTS - 1:
                        raise
            with self._lock:
                self._opened = opened
                if before is not None and before.users == 0:
                    before.closing.close()
            return opened

    @contextmanager
    def _used(self) -> Iterator[_Opened]:
        with self._lock:
            opened = self._opened
            opened.users += 1
        try:
            yield opened
        finally:
            with self._lock:
                opened.users -= 1
                if opened is not self._opened and opened.users == 0:
                    opened.closing.close()
