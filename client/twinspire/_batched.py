"""Preprocessing of many items: a pool of threads decodes ahead while the caller does something else."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from twinspire._arguments import as_whole
from twinspire._cores import thread_count
from twinspire._media import Origin, origin_of
from twinspire.errors import ItemError

Failure = TypeVar("Failure", bound=ItemError)


class BatchPreprocessor(ABC, Generic[Failure]):
    """Turns items into rows of a tower's input.

    Paths, bytes and arrays are processed by `threads` threads (by default one for each usable core). File objects are
    read by the calling thread, since they are not thread-safe.
    """

    error_class: type[Failure]
    """The class of the error of one item."""
    thread_name: ClassVar[str]

    def __init__(self, *, threads: int | None = None) -> None:
        self.threads = thread_count(threads)

    @abstractmethod
    def _checked(self, items: Any) -> Iterable[Any]:  # noqa: ANN401 - whatever the caller gave
        """Return `items`. Raises InputError for what is not a list of items."""

    @abstractmethod
    def _begin(self, item: Any, origin: Origin) -> Any:  # noqa: ANN401 - of each modality's own kind
        """Do the part that must run in the caller's thread. Raises the item's error."""

    @abstractmethod
    def _finish(self, begun: Any, origin: Origin) -> NDArray[Any]:  # noqa: ANN401 - as above
        """Return the row of one item, in any thread. Raises the item's error."""

    @abstractmethod
    def _empty(self, count: int) -> NDArray[Any]:
        """Return an uninitialised array for `count` rows."""

    def one(self, item: Any, position: int = 0) -> NDArray[Any]:  # noqa: ANN401 - as above
        """Prepare one item. Raises its error with `position` and the cause."""
        origin = origin_of(item, position, self.error_class)
        return self._finish(self._begin(item, origin), origin)

    def many(self, items: Iterable[Any]) -> NDArray[Any]:
        """Prepare N items, in the order given; N may be 0.

        Raises the error of the first one, in that order, that cannot be used.
        """
        listed = list(self._checked(items))
        rows = self._empty(len(listed))
        for position, result in self._ordered(listed, look_ahead=4 * self.threads):
            if isinstance(result, ItemError):
                raise result
            rows[position] = result
        return rows

    def many_or_skip(self, items: Iterable[Any]) -> tuple[NDArray[Any], list[Failure]]:
        """Prepare items and skip those that cannot be used.

        Returns the rows of the N others in the order given, and the errors of the skipped ones, with their positions.
        """
        listed = list(self._checked(items))
        rows, errors = self._empty(len(listed)), list[Failure]()
        for position, result in self._ordered(listed, look_ahead=4 * self.threads):
            if isinstance(result, self.error_class):
                errors.append(result)
            else:
                rows[position - len(errors)] = result
        return rows[: len(listed) - len(errors)], errors

    def stream(self, items: Iterable[Any], *, batch: int) -> Iterator[tuple[list[int], NDArray[Any], list[Failure]]]:
        """Prepare items batch by batch, decoding the next while the caller uses the last.

        Each step takes `batch` items and yields the positions of those that could be used, their rows, n at most
        `batch`, and the errors of the others. `items` may be endless: at most 2 x `batch` + `threads` items are in
        memory at a time. Closing the iterator stops the threads.
        """
        return self._batches(self._checked(items), as_whole(batch, "batch", minimum=1))

    def _batches(self, items: Iterable[Any], batch: int) -> Iterator[tuple[list[int], NDArray[Any], list[Failure]]]:
        positions, rows, errors = list[int](), list[NDArray[Any]](), list[Failure]()
        for position, result in self._ordered(items, look_ahead=batch + self.threads):
            if isinstance(result, self.error_class):
                errors.append(result)
            else:
                positions.append(position)
                rows.append(result)
            if len(positions) + len(errors) == batch:
                yield positions, np.stack(rows) if rows else self._empty(0), errors
                positions, rows, errors = [], [], []
        if positions or errors:
            yield positions, np.stack(rows) if rows else self._empty(0), errors

    def _ordered(self, items: Iterable[Any], *, look_ahead: int) -> Iterator[tuple[int, Any]]:
        """Yield every item's row or error in order, with at most `look_ahead` items decoded ahead."""
        if isinstance(items, Sequence) and len(items) == 1:  # starting threads for it would cost more than they bring
            try:
                result: NDArray[Any] | Failure = self.one(items[0])
            except self.error_class as error:
                result = error
            yield 0, result
            return
        pending: deque[tuple[int, Future[NDArray[Any] | Failure] | Failure]] = deque()
        pool = ThreadPoolExecutor(self.threads, thread_name_prefix=self.thread_name)
        try:
            for position, item in enumerate(items):
                origin = origin_of(item, position, self.error_class)
                try:
                    begun = self._begin(item, origin)
                    pending.append((position, pool.submit(self._finish_or_error, begun, origin)))
                except self.error_class as error:
                    pending.append((position, error))
                if len(pending) > look_ahead:
                    yield _settled(*pending.popleft())
            while pending:
                yield _settled(*pending.popleft())
        finally:
            pool.shutdown(cancel_futures=True)

    def _finish_or_error(self, begun: Any, origin: Origin) -> NDArray[Any] | Failure:  # noqa: ANN401 - as above
        try:
            return self._finish(begun, origin)
        except self.error_class as error:
            return error


def _settled(position: int, result: Future[NDArray[Any] | Failure] | Failure) -> tuple[int, NDArray[Any] | Failure]:
    return position, result.result() if isinstance(result, Future) else result
