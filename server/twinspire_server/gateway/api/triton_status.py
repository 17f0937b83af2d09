"""`TritonStatus`: what the status port of `twinspire serve` says, as JSON."""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Mapping
from http.client import HTTPConnection, HTTPException
from typing import Any
from urllib.parse import urlsplit

from prometheus_client.parser import text_string_to_metric_families

_TIMEOUT_S = 2.0
_LARGEST_BYTES = 4 * 2**20
_KEPT_S = 1.0
_WINDOW_S = 60.0
_COUNTERS = {
    "nv_inference_request_success_total": "requests",
    "nv_inference_request_failure_total": "failures",
    "nv_inference_count_total": "inputs",
    "nv_inference_exec_count_total": "batches",
    "nv_inference_queue_duration_us_total": "queue_us",
    "nv_inference_compute_infer_duration_us_total": "compute_us",
}
_GAUGES = {"nv_inference_pending_request_count": "pending", "twinspire_canary_cosine": "canary_cosine"}


class TritonStatus:
    """Reads the status port at `url`, at most once a second. Safe to use from several threads."""

    def __init__(self, url: str) -> None:
        self._address = urlsplit(url)
        self._lock = threading.Lock()
        self._read_s = -_KEPT_S
        self._document: dict[str, Any] = {}
        self._earlier: deque[tuple[float, dict[str, dict[str, float]]]] = deque()

    def read(self) -> dict[str, Any]:
        """Return readiness, restarts and the models: totals since the start, and means of the last minute.

        Where the port does not answer, `error` says so.
        """
        with self._lock:
            now = time.monotonic()
            if now - self._read_s >= _KEPT_S:
                try:
                    self._document = self._fetched(now)
                except (OSError, HTTPException, ValueError) as error:
                    self._document = {"error": f"{self._address.geturl()} does not answer: {error}"}
                self._read_s = now
            return self._document

    def _fetched(self, now: float) -> dict[str, Any]:
        ready = json.loads(self._get("/readyz"))
        totals, gauges, restarts = _models(self._get("/metrics").decode())
        while self._earlier and self._earlier[0][0] < now - _WINDOW_S:
            self._earlier.popleft()
        since_s, before = self._earlier[0] if self._earlier else (now, {})
        self._earlier.append((now, totals))
        models = {
            name: {**counts, **gauges.get(name, {}), "recent": _means(counts, before.get(name), now - since_s)}
            for name, counts in sorted(totals.items())
        }
        return {"ready": ready["ready"], "reasons": ready["reasons"], "restarts": restarts, "models": models}

    def _get(self, path: str) -> bytes:
        connection = HTTPConnection(self._address.hostname or "", self._address.port, timeout=_TIMEOUT_S)
        try:
            connection.request("GET", path)
            return connection.getresponse().read(_LARGEST_BYTES)
        finally:
            connection.close()


def _models(page: str) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, float]], float]:
    """Return counters and gauges by model, and the number of restarts. Raises ValueError for another kind of page."""
    totals: dict[str, dict[str, float]] = {}
    gauges: dict[str, dict[str, float]] = {}
    restarts = 0.0
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            name = sample.name if sample.name.endswith("_total") else f"{sample.name}_total"
            model = sample.labels.get("model", "")
            if name in _COUNTERS:
                counts = totals.setdefault(model, dict.fromkeys(_COUNTERS.values(), 0.0))
                counts[_COUNTERS[name]] += sample.value  # of all versions and failure reasons
            elif sample.name in _GAUGES:
                gauges.setdefault(model, {})[_GAUGES[sample.name]] = sample.value
            elif name == "twinspire_restarts_total":
                restarts += sample.value
    return totals, gauges, restarts


def _means(counts: Mapping[str, float], before: Mapping[str, float] | None, window_s: float) -> dict[str, float] | None:
    """Return rates and means since `before`; None where nothing is known of that time, or Triton was restarted."""
    if before is None or window_s <= 0 or counts["requests"] < before["requests"]:
        return None
    more = {name: counts[name] - before[name] for name in counts}
    batches, requests = more["batches"], more["requests"]
    return {
        "window_s": window_s,
        "requests_per_s": requests / window_s,
        "inputs_per_s": more["inputs"] / window_s,
        "mean_batch": more["inputs"] / batches if batches else 0.0,
        "queue_ms": more["queue_us"] / requests / 1000 if requests else 0.0,
        "compute_ms": more["compute_us"] / requests / 1000 if requests else 0.0,
    }
