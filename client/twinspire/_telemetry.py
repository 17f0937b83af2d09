"""Hooks for metrics and traces: where time is spent, and what is counted.

Nothing is observed, at the price of one comparison, until `twinspire.metrics.enable_metrics` or
`twinspire.tracing.enable_tracing` adds an observer; it is then told of every client and searcher of this process.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Protocol, Self

_log = logging.getLogger("twinspire")


class Observer(Protocol):
    """What is told of spans and counts, in the thread where they happen. What it raises is logged and dropped."""

    def start(self, name: str, attributes: Mapping[str, Any], *, nested: bool) -> object:
        """Note that a span begins; return a handle for its end. Spans begun after a `nested` one are its children."""

    def end(self, handle: object, attributes: Mapping[str, Any], seconds: float, error: BaseException | None) -> None:
        """Note that the span of a handle has ended after `seconds`, with the error that ended it."""

    def context(self, handle: object) -> list[tuple[str, str]]:
        """Return what tells a server the span of a handle: gRPC metadata."""

    def count(self, name: str, labels: Mapping[str, str]) -> None:
        """Note an event."""


_observers: tuple[Observer, ...] = ()


def add(observer: Observer) -> None:
    """Tell `observer` of everything that happens from now on."""
    global _observers
    _observers = (*_observers, observer)


def remove(observer: Observer) -> None:
    """Tell `observer` nothing more."""
    global _observers
    _observers = tuple(other for other in _observers if other is not observer)


class Span:
    """A piece of work from its construction to `end`; as a context manager, to the end of the block."""

    __slots__ = ("_attributes", "_began_s", "_handles")

    def __init__(self, name: str, attributes: dict[str, Any], *, nested: bool) -> None:
        self._attributes = attributes
        self._handles: list[tuple[Observer, object]] = []
        for observer in _observers:
            try:
                self._handles.append((observer, observer.start(name, attributes, nested=nested)))
            except Exception:
                _log.exception("an observer failed")
        self._began_s = time.perf_counter()

    def set(self, **attributes: Any) -> None:  # noqa: ANN401 - of any kind
        """Add attributes that were unknown at the beginning."""
        self._attributes.update(attributes)

    def context(self) -> list[tuple[str, str]]:
        """Return the gRPC metadata that makes a server's spans children of this one."""
        return [pair for observer, handle in self._handles for pair in observer.context(handle)]

    def end(self, error: BaseException | None = None) -> None:
        """End the span, with the error that ended it."""
        seconds = time.perf_counter() - self._began_s
        for observer, handle in reversed(self._handles):
            try:
                observer.end(handle, self._attributes, seconds, error)
            except Exception:
                _log.exception("an observer failed")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.end(error)


class _NoSpan(Span):
    """A span that nobody observes."""

    __slots__ = ()

    def __init__(self) -> None:
        pass

    def set(self, **_: Any) -> None:  # noqa: ANN401 - as above
        pass

    def context(self) -> list[tuple[str, str]]:
        return []

    def end(self, error: BaseException | None = None) -> None:
        pass


_NO_SPAN = _NoSpan()


def span(name: str, **attributes: Any) -> Span:  # noqa: ANN401 - of any kind
    """Begin a span for a `with` block: spans begun inside it, in this thread, are its children."""
    return Span(name, attributes, nested=True) if _observers else _NO_SPAN


def detached_span(name: str, **attributes: Any) -> Span:  # noqa: ANN401 - of any kind
    """Begin a span that another thread may end with `end`, a child of the current one."""
    return Span(name, attributes, nested=False) if _observers else _NO_SPAN


def count(name: str, **labels: str) -> None:
    """Note an event."""
    for observer in _observers:
        try:
            observer.count(name, labels)
        except Exception:
            _log.exception("an observer failed")
