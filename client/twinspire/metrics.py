"""Prometheus metrics of the clients, searchers and indexes in this process; needs the extra `metrics`.

    metrics = enable_metrics()  # in prometheus_client's own registry
    metrics.watch_index(index, "photos")
    prometheus_client.start_http_server(9100, addr="127.0.0.1")

docs/reference/metrics.md lists them.
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from twinspire import _telemetry
from twinspire._dependencies import import_failure
from twinspire.errors import InputError, TwinspireError

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from twinspire.stores import VectorStore

__all__ = ["Metrics", "enable_metrics"]

_log = logging.getLogger("twinspire")

SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Upper bounds of the histograms."""
_KNOWN_LABELS = {
    "failures": ("overloaded", "unavailable", "refused", "deadline", "error"),
    "fallbacks": ("local", "server"),
}
_SEARCH, _SEARCH_PHASE = "search", "search."
_WHOLE_CALLS = ("encode", "rerank", _SEARCH)
"""The spans whose errors are counted; those in them fail of the same error."""


class Metrics:
    """The metrics of this process in one registry of prometheus_client; made by `enable_metrics`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        from prometheus_client import Counter, Histogram

        self._registry = registry
        self._phases = Histogram(
            "twinspire_client_phase_seconds",
            "Time in a client, by phase: encode and rerank are whole calls, request one round trip to a server",
            ["phase", "tower"],
            buckets=SECONDS,
            registry=registry,
        )
        self._searches = Histogram(
            "twinspire_search_seconds", "Time of a search", ["mode", "cached"], buckets=SECONDS, registry=registry
        )
        self._search_phases = Histogram(
            "twinspire_search_phase_seconds",
            "Time in a search, by phase",
            ["phase"],
            buckets=SECONDS,
            registry=registry,
        )
        self._errors = Counter(
            "twinspire_client_errors", "Calls that raised, by the error's class", ["error"], registry=registry
        )
        self._counters = {
            "failures": Counter(
                "twinspire_client_failed_requests",
                "Requests that a server refused or did not answer, retried or not, by reason",
                ["reason"],
                registry=registry,
            ),
            "retries": Counter("twinspire_client_retries", "Requests that were sent again", registry=registry),
            "fallbacks": Counter(
                "twinspire_client_fallbacks",
                "Changes between a server and the engines in this process",
                ["to"],
                registry=registry,
            ),
        }
        # Without a first value of 0 the first event would be no increase.
        for name, values in _KNOWN_LABELS.items():
            for value in values:
                self._counters[name].labels(value)
        self._indexes = _IndexCollector()
        registry.register(self._indexes)

    def watch_index(self, index: VectorStore, name: str) -> None:
        """Add the size of an index, read at each scrape, under the label `name`, until the index is garbage.

        Raises InputError where another index has that name.
        """
        self._indexes.add(index, name)

    def disable(self) -> None:
        """Observe nothing more, and take the metrics out of the registry."""
        _telemetry.remove(self)
        own = (self._phases, self._searches, self._search_phases, self._errors, *self._counters.values())
        for collector in own:
            self._registry.unregister(collector)
        self._registry.unregister(self._indexes)

    def start(self, name: str, attributes: Mapping[str, Any], *, nested: bool) -> object:  # noqa: ARG002
        """Return the handle of a span: its name. See `_telemetry.Observer`."""
        return name

    def end(self, handle: object, attributes: Mapping[str, Any], seconds: float, error: BaseException | None) -> None:
        """Observe a span's time, or count the error that ended it."""
        name = str(handle)
        if name in _WHOLE_CALLS and error is not None:
            self._errors.labels(type(error).__name__).inc()
        elif error is None and name == _SEARCH:
            self._searches.labels(str(attributes["mode"]), str(attributes["cached"]).lower()).observe(seconds)
        elif error is None and name.startswith(_SEARCH_PHASE):
            self._search_phases.labels(name.removeprefix(_SEARCH_PHASE)).observe(seconds)
        elif error is None:
            self._phases.labels(name, str(attributes["tower"])).observe(seconds)

    def context(self, handle: object) -> list[tuple[str, str]]:  # noqa: ARG002 - as of Observer
        """Return nothing: metrics do not travel."""
        return []

    def count(self, name: str, labels: Mapping[str, str]) -> None:
        """Count an event."""
        counter = self._counters[name]
        (counter.labels(**labels) if labels else counter).inc()


def enable_metrics(registry: CollectorRegistry | None = None) -> Metrics:
    """Observe every client, searcher and index of this process from now on, in `registry`, or prometheus_client's own.

    Raises MissingDependencyError where prometheus_client is not installed, InputError where the registry has these
    metrics already.
    """
    try:
        import prometheus_client
    except ImportError as error:
        packages = {"prometheus-client": "metrics"}
        raise import_failure(error, "prometheus_client", packages, "Observing metrics") from error
    try:
        metrics = Metrics(prometheus_client.REGISTRY if registry is None else registry)
    except ValueError as error:
        raise InputError(
            f"the registry has these metrics already ({error}): enable them once, or pass another registry",
            option="registry",
        ) from error
    _telemetry.add(metrics)
    return metrics


class _IndexCollector:
    """The sizes of indexes, read when they are asked for."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._indexes: dict[str, weakref.ref[VectorStore]] = {}

    def add(self, index: VectorStore, name: str) -> None:
        with self._lock:
            known = self._indexes.get(name)
            if known is not None and known() not in (None, index):
                raise InputError(f"another index is watched as {name!r}: pass another name", option="name")
            self._indexes[name] = weakref.ref(index)

    def describe(self) -> list[Any]:
        """Name no metrics beforehand: an index is only asked at a scrape."""
        return []

    def collect(self) -> Iterator[Any]:
        from prometheus_client.core import GaugeMetricFamily

        with self._lock:
            indexes = [(name, index) for name, reference in self._indexes.items() if (index := reference()) is not None]
        families = {
            "items": GaugeMetricFamily("twinspire_index_items", "Items in an index", labels=["index"]),
            "generation": GaugeMetricFamily(
                "twinspire_index_generation", "Number of the last committed change", labels=["index"]
            ),
            "bytes": GaugeMetricFamily("twinspire_index_bytes", "Size on the disk", labels=["index", "part"]),
            "dead_rows": GaugeMetricFamily(
                "twinspire_index_dead_rows", "Rows of removed items, which `compact` frees", labels=["index"]
            ),
        }
        for name, index in indexes:
            try:
                _add_sizes(families, index, name)
            except (TwinspireError, OSError):  # closed or damaged: a scrape must not fail for it
                _log.warning("the size of the index %s cannot be read", name, exc_info=True)
        yield from families.values()


def _add_sizes(families: Mapping[str, Any], index: VectorStore, name: str) -> None:
    families["items"].add_metric([name], len(index))
    families["generation"].add_metric([name], index.generation)
    stats = getattr(index, "stats", None)  # of the embedded index alone
    if stats is None:
        return
    found = stats()
    families["dead_rows"].add_metric([name], found.dead_rows)
    families["bytes"].add_metric([name, "vectors"], found.vectors_bytes)
    families["bytes"].add_metric([name, "catalogue"], found.catalogue_bytes)
    snapshot = found.snapshot
    families["bytes"].add_metric([name, "snapshot"], 0 if snapshot is None else snapshot.file_bytes)
