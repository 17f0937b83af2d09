"""`GatewayMetrics`: counters of requests, for Prometheus and for the page."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from twinspire.metrics import SECONDS, Metrics, enable_metrics
from twinspire_server.gateway.safety.context import RequestContext

_WINDOW_S = 60.0
_MOST_RECENT = 65536


class GatewayMetrics:
    """The metrics of one gateway in a registry of their own, with those of its client.

    Routes are counted by their pattern and unknown ones as `other`, so that nobody can make new labels.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.active: set[RequestContext] = set()
        """The requests that are being answered."""
        self.recent = RecentRequests()
        self._requests = Counter(
            "twinspire_gateway_requests",
            "Requests, by the pattern of their path, the dialect and the status",
            ["route", "dialect", "status"],
            registry=self.registry,
        )
        self._seconds = Histogram(
            "twinspire_gateway_request_seconds",
            "Time from a request's headers to the end of its answer",
            ["route"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self._request_bytes = Counter(
            "twinspire_gateway_request_bytes", "Bytes of bodies", ["route"], registry=self.registry
        )
        self._response_bytes = Counter(
            "twinspire_gateway_response_bytes", "Bytes of answers", ["route"], registry=self.registry
        )
        self._inputs = Counter(
            "twinspire_gateway_inputs", "Texts and images that were admitted", ["dialect"], registry=self.registry
        )
        self._refusals = Counter(
            "twinspire_gateway_refusals", "Requests that were not served, by reason", ["reason"], registry=self.registry
        )
        self._connections = Counter(
            "twinspire_gateway_closed_connections",
            "Connections that were closed, by reason",
            ["reason"],
            registry=self.registry,
        )
        self._gauge("in_progress", "Requests that are being answered", lambda: len(self.active))
        self._clients: Metrics | None = None

    def watch(self, name: str, help_: str, read: Callable[[], float]) -> None:
        """Add the gauge `twinspire_gateway_{name}`, read at each scrape."""
        self._gauge(name, help_, read)

    def enable(self) -> None:
        """Observe the clients and indexes of this process too, until `disable`."""
        self._clients = enable_metrics(self.registry)

    def disable(self) -> None:
        """Undo `enable`."""
        if self._clients is not None:
            self._clients.disable()
            self._clients = None

    def begin(self, context: RequestContext) -> None:
        """Count a request that began."""
        self.active.add(context)

    def end(self, context: RequestContext, seconds: float, *, route: str, dialect: str) -> None:
        """Count a request that ended."""
        self.active.discard(context)
        self._requests.labels(route, dialect, str(context.status)).inc()
        self._seconds.labels(route).observe(seconds)
        if context.request_bytes:
            self._request_bytes.labels(route).inc(context.request_bytes)
        self._response_bytes.labels(route).inc(context.response_bytes)
        if context.inputs:
            self._inputs.labels(dialect).inc(context.inputs)
        if context.refusal is not None:
            self._refusals.labels(context.refusal).inc()
        self.recent.add(route, seconds, is_error=context.status >= 500)

    def count_closed(self, reason: str) -> None:
        """Count a connection that was closed for a reason: `slow_headers`, `slow_reader`, `too_many`, ..."""
        self._connections.labels(reason).inc()

    def _gauge(self, name: str, help_: str, read: Callable[[], float]) -> None:
        gauge = Gauge(f"twinspire_gateway_{name}", help_, registry=self.registry)
        gauge.set_function(read)


class RecentRequests:
    """The requests of the last minute, at most 65,536 of them."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began_s = clock()
        self._requests: deque[tuple[float, str, float, bool]] = deque(maxlen=_MOST_RECENT)

    def add(self, route: str, seconds: float, *, is_error: bool) -> None:
        """Add a request that has just ended."""
        self._requests.append((self._clock(), route, seconds, is_error))

    def summary(self) -> dict[str, Any]:
        """Return `window_s`, `requests_per_s` and for each route its rate, errors and latency quantiles in ms."""
        now = self._clock()
        while self._requests and self._requests[0][0] < now - _WINDOW_S:
            self._requests.popleft()
        is_full = len(self._requests) == _MOST_RECENT
        window_s = now - self._requests[0][0] if is_full else min(_WINDOW_S, now - self._began_s)
        window_s = max(window_s, 1.0)
        by_route: dict[str, list[tuple[float, bool]]] = {}
        for _, route, seconds, is_error in self._requests:
            by_route.setdefault(route, []).append((seconds, is_error))
        return {
            "window_s": round(window_s, 1),
            "requests_per_s": len(self._requests) / window_s,
            "routes": {route: _summary(found, window_s) for route, found in sorted(by_route.items())},
        }


def _summary(found: list[tuple[float, bool]], window_s: float) -> dict[str, Any]:
    quantiles = 1000 * np.quantile([seconds for seconds, _ in found], [0.5, 0.95, 0.99])
    return {
        "requests": len(found),
        "requests_per_s": len(found) / window_s,
        "errors": sum(is_error for _, is_error in found),
        **{f"{name}_ms": round(float(value), 3) for name, value in zip(("p50", "p95", "p99"), quantiles, strict=True)},
    }
