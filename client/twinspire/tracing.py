"""OpenTelemetry traces of clients and searchers, continued by Triton; needs the extra `otel`.

    enable_tracing()  # with the process's tracer provider
    client.encode_texts(["a red car"])  # spans encode, tokenize, tower, request; Triton's below the last

A server started with `twinspire serve --trace-url` adds its spans to the same trace.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from twinspire import _telemetry
from twinspire._dependencies import import_failure

if TYPE_CHECKING:
    from opentelemetry.trace import Span, TracerProvider

__all__ = ["Tracing", "enable_tracing"]

_REQUEST = "request"


class Tracing:
    """The traces of this process; made by `enable_tracing`."""

    def __init__(self, provider: TracerProvider | None) -> None:
        from opentelemetry import trace

        self._tracer = trace.get_tracer("twinspire", tracer_provider=provider)

    def disable(self) -> None:
        """Begin no further spans."""
        _telemetry.remove(self)

    def start(self, name: str, attributes: Mapping[str, Any], *, nested: bool) -> object:
        """Begin a span under the current one. See `_telemetry.Observer`."""
        from opentelemetry import context, trace

        kind = trace.SpanKind.CLIENT if name == _REQUEST else trace.SpanKind.INTERNAL
        span = self._tracer.start_span(f"twinspire.{name}", kind=kind, attributes=_attributes(attributes))
        token = context.attach(trace.set_span_in_context(span)) if nested else None
        return _Started(span, token)

    def end(self, handle: object, attributes: Mapping[str, Any], seconds: float, error: BaseException | None) -> None:  # noqa: ARG002
        """End a span, with the error that ended it."""
        from opentelemetry import context, trace

        assert isinstance(handle, _Started)
        handle.span.set_attributes(_attributes(attributes))
        if error is not None:
            handle.span.record_exception(error)
            handle.span.set_status(trace.StatusCode.ERROR, type(error).__name__)
        handle.span.end()
        if handle.token is not None:
            context.detach(handle.token)

    def context(self, handle: object) -> list[tuple[str, str]]:
        """Return the span's W3C trace context as gRPC metadata."""
        from opentelemetry import trace
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        assert isinstance(handle, _Started)
        carrier: dict[str, str] = {}
        TraceContextTextMapPropagator().inject(carrier, trace.set_span_in_context(handle.span))
        return list(carrier.items())

    def count(self, name: str, labels: Mapping[str, str]) -> None:
        """Note a failed request, a retry or a fallback as an event of the current span."""
        from opentelemetry import trace

        trace.get_current_span().add_event(f"twinspire.{name}", dict(labels))


def enable_tracing(provider: TracerProvider | None = None) -> Tracing:
    """Trace every client and searcher of this process from now on, with `provider`, or the one set for the process.

    Raises MissingDependencyError where opentelemetry is not installed.
    """
    try:
        import opentelemetry.trace  # noqa: F401 - only whether it is there
    except ImportError as error:
        raise import_failure(error, "opentelemetry", {"opentelemetry-api": "otel"}, "Tracing") from error
    tracing = Tracing(provider)
    _telemetry.add(tracing)
    return tracing


@dataclass(frozen=True)
class _Started:
    span: Span
    token: Any  # of the context that the span replaced; None where it did not


def _attributes(attributes: Mapping[str, Any]) -> dict[str, Any]:
    return {
        f"twinspire.{name}": value if isinstance(value, bool | int | float) else str(value)
        for name, value in attributes.items()
    }
