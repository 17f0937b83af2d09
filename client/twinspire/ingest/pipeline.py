"""Stages that work beside each other, each in a thread of its own, with bounded queues between them."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Generic, Self, TypeVar

T = TypeVar("T")


class Flow:
    """A line of stages; a context manager, and when it is left every thread has ended.

    `with Flow() as flow: for result in flow.stage("write", map(write, flow.stage("read", read()))): ...` runs `read`
    and `write` in two threads beside the caller's. Between two stages at most `ahead` things wait; with the one that
    each stage has in hand that bounds what is in memory. An error of a stage reaches the stages behind it, and at
    last the caller, after everything that was handed on before: what was done stays done. Leaving the block, by an
    error or Ctrl-C too, ends every stage once the step that it is at returns.
    """

    def __init__(self, *, ahead: int = 1) -> None:
        self._ahead = ahead
        self._changed = threading.Condition()
        self._stopped = False
        self._threads: list[threading.Thread] = []

    def stage(self, name: str, items: Iterable[T]) -> Iterator[T]:
        """Run through `items` in a thread of its own; gives them in their order."""
        queue = _Queue[T](self, self._ahead)
        thread = threading.Thread(target=queue.fill, args=(items,), name=f"twinspire-{name}")
        self._threads.append(thread)
        thread.start()
        return queue

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()


class _Stopped(Exception):  # noqa: N818 - no error: it unwinds a stage whose flow has been left
    """The flow has been left."""


class _Queue(Generic[T], Iterator[T]):
    """What one stage hands on to the next."""

    def __init__(self, flow: Flow, size: int) -> None:
        self._flow = flow
        self._size = size
        self._waiting: deque[T] = deque()
        self._error: BaseException | None = None
        self._ended = False

    def fill(self, items: Iterable[T]) -> None:
        """Put `items` in until they end, fail, or the flow is left."""
        error: BaseException | None = None
        try:
            for item in items:
                self._put(item)
        except _Stopped:
            pass
        except BaseException as caught:  # raised again where the next stage asks
            error = caught
        finally:
            with self._flow._changed:
                self._error, self._ended = error, True
                self._flow._changed.notify_all()

    def _put(self, item: T) -> None:
        flow = self._flow
        with flow._changed:
            flow._changed.wait_for(lambda: flow._stopped or len(self._waiting) < self._size)
            if flow._stopped:
                raise _Stopped
            self._waiting.append(item)
            flow._changed.notify_all()

    def __next__(self) -> T:
        flow = self._flow
        with flow._changed:
            flow._changed.wait_for(lambda: flow._stopped or self._waiting or self._ended)
            if flow._stopped:
                raise _Stopped
            if self._waiting:
                item = self._waiting.popleft()
                flow._changed.notify_all()
                return item
            error, self._error = self._error, None
        if error is not None:
            raise error
        raise StopIteration
