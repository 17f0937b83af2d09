"""The state of a supervised server, for Prometheus and for load balancers: `/metrics`, `/readyz`, `/livez`.

One scrape of `/metrics` has the supervisor's own metrics and Triton's page, on which the models' are as well.
"""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol
from urllib.parse import urlsplit

from twinspire._dependencies import import_failure
from twinspire.errors import InputError
from twinspire_server.repository.config import read_config
from twinspire_server.repository.installation import read_installed
from twinspire_server.triton.http import http_page
from twinspire_server.triton.ports import bind_error, local_address

if TYPE_CHECKING:
    from twinspire_server.triton.server import TritonServer
    from twinspire_server.triton.supervisor import Supervisor

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_TIMEOUT_S = 2.0
_CLIENT_TIMEOUT_S = 5.0
"""How long a connection may be silent: a client that sends nothing must not hold a thread."""
_MOST_CONNECTIONS = 32


class CanaryState(Protocol):
    """What the accuracy canary found: the minimum cosine of each model's last check, and whether all suffice."""

    @property
    def ok(self) -> bool:
        """Whether every model answers as its certificate says; True before the first check."""

    @property
    def checked(self) -> bool:
        """Whether the models of the running server have been checked since its start."""

    @property
    def cosine(self) -> Mapping[str, float]:
        """The minimum cosine of the last check, by model."""


class ServerStatus:
    """Metrics and readiness of one supervised server. Safe to use from several threads.

    Raises MissingDependencyError where prometheus_client is not installed.
    """

    def __init__(self, server: TritonServer, supervisor: Supervisor, canary: CanaryState | None = None) -> None:
        try:
            from prometheus_client import CollectorRegistry
        except ImportError as error:
            packages = {"prometheus-client": "server"}
            raise import_failure(error, "prometheus_client", packages, "The status port of a server") from error
        self._server, self._supervisor, self._canary = server, supervisor, canary
        self._began_s = time.time()
        self._described: tuple[Path, list[dict[str, str]]] | None = None
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def not_ready(self) -> list[str]:
        """Return why requests should go elsewhere, a sentence each; empty where the server is ready."""
        reasons = []
        if not self._server.running:
            reasons.append("Triton does not run")
        elif http_page(f"{self._server.http_url}/v2/health/ready", timeout_s=_TIMEOUT_S) is None:
            reasons.append("Triton is not ready")
        if self._canary is not None and not self._canary.ok:
            found = ", ".join(f"{model} {cosine:.6f}" for model, cosine in self._canary.cosine.items())
            reasons.append(f"the canary found wrong embeddings; minimum cosines: {found}")
        elif self._canary is not None and not self._canary.checked:
            reasons.append("the canary has not checked the embeddings yet")
        return reasons

    def document(self) -> dict[str, Any]:
        """Return what `/readyz` shows."""
        reasons = self.not_ready()
        canary = self._canary
        return {
            "ready": not reasons,
            "reasons": reasons,
            "models": list(self._server.models),
            "restarts": dict(self._supervisor.restarts),
            "canary": None if canary is None else {"ok": canary.ok, "cosine": _finite(canary.cosine)},
        }

    def page(self) -> bytes:
        """Return all metrics in Prometheus' text format: the supervisor's, then those of Triton and its models."""
        from prometheus_client import generate_latest

        triton = http_page(self._server.metrics_url, timeout_s=_TIMEOUT_S) if self._server.running else None
        return generate_latest(self._registry) + (triton or b"")

    def collect(self) -> Iterator[Any]:
        """Yield the supervisor's metrics, as prometheus_client asks for them."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily

        yield GaugeMetricFamily("twinspire_ready", "1 where the server takes requests", float(not self.not_ready()))
        yield GaugeMetricFamily(
            "twinspire_supervisor_start_time_seconds", "When `twinspire serve` began, Unix time", self._began_s
        )
        restarts = CounterMetricFamily("twinspire_restarts", "Restarts of Triton, by cause", labels=["cause"])
        for cause, count in self._supervisor.restarts.items():
            restarts.add_metric([cause], count)
        yield restarts
        models = InfoMetricFamily("twinspire_model", "What a model computes, and the space of its embeddings")
        for labels in self._models():
            models.add_metric([], labels)
        yield models
        if self._canary is not None:
            about = "Minimum cosine of a model's embeddings to the bundle's probes"
            cosines = GaugeMetricFamily("twinspire_canary_cosine", about, labels=["model"])
            for model, cosine in self._canary.cosine.items():
                cosines.add_metric([model], cosine)
            yield cosines
            yield GaugeMetricFamily("twinspire_canary_ok", "0 where a model's embeddings are wrong", self._canary.ok)

    def _models(self) -> list[dict[str, str]]:
        """Describe the models. A release never changes, and reading one hashes its engines: it is read once."""
        repository = self._server.repository
        if self._described is None or self._described[0] != repository:
            self._described = repository, list(self._read_models(repository))
        return self._described[1]

    def _read_models(self, repository: Path) -> Iterator[dict[str, str]]:
        for name in self._server.models:
            folder = repository / name
            try:
                parameters = read_config(folder).parameters
                installed = read_installed(folder)
            except InputError:
                continue  # not one of `twinspire build`
            if installed is not None:
                yield {
                    "model": name,
                    "engine_sha256": installed.engine_sha256 or "",
                    "precision": parameters["precision"].string_value if "precision" in parameters else "",
                    "space": installed.space or "",
                    "version": str(installed.newest),
                }


class StatusServer:
    """The HTTP service of a `ServerStatus`; a context manager. `port` 0 picks a free one.

    At most 32 connections are served at a time, each of at most 5 s of silence. Raises InputError or ServerError where
    the address cannot be listened on.
    """

    def __init__(self, status: ServerStatus, *, host: str, port: int) -> None:
        handler = type("StatusHandler", (_Handler,), {"status": status})
        try:
            self._http = _Server((host, port), handler)
        except OSError as error:
            raise bind_error(error, "status", port, host) from error
        self._host = host
        self.port: int = self._http.server_port
        serve = partial(self._http.serve_forever, poll_interval=0.05)
        self._thread = threading.Thread(target=serve, name="status", daemon=True)

    @property
    def url(self) -> str:
        """The address: `http://127.0.0.1:8003`."""
        return f"http://{local_address(self._host)}:{self.port}"

    def __enter__(self) -> StatusServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = _MOST_CONNECTIONS
    block_on_close = False

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        super().__init__(address, handler)
        self._slots = threading.BoundedSemaphore(_MOST_CONNECTIONS)

    def process_request(self, request: Any, client_address: Any) -> None:  # noqa: ANN401 - as of socketserver
        if self._slots.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:  # noqa: ANN401 - as of socketserver
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._slots.release()

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ANN401 - as of socketserver
        """Ignore connections that break off."""


class _Handler(BaseHTTPRequestHandler):
    status: ClassVar[ServerStatus]
    timeout = _CLIENT_TIMEOUT_S
    server_version, sys_version = "twinspire", ""

    def do_GET(self) -> None:
        """Answer one of the three pages."""
        pages: dict[str, Callable[[], tuple[HTTPStatus, str, bytes]]] = {
            "/metrics": lambda: (HTTPStatus.OK, CONTENT_TYPE, self.status.page()),
            "/readyz": self._ready,
            "/livez": lambda: _json(HTTPStatus.OK, {"alive": True}),
        }
        page = pages.get(urlsplit(self.path).path)
        status, kind, content = (
            _json(HTTPStatus.NOT_FOUND, {"error": f"expected one of {', '.join(pages)}"}) if page is None else page()
        )
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _ready(self) -> tuple[HTTPStatus, str, bytes]:
        document = self.status.document()
        return _json(HTTPStatus.OK if document["ready"] else HTTPStatus.SERVICE_UNAVAILABLE, document)

    def log_message(self, format: str, *_: object) -> None:  # noqa: A002 - as of http.server
        """Log nothing: a scrape each few seconds says nothing."""


def _finite(values: Mapping[str, float]) -> dict[str, float | None]:
    """Return numbers for JSON, which has none that are not finite."""
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


def _json(status: HTTPStatus, document: dict[str, Any]) -> tuple[HTTPStatus, str, bytes]:
    return status, "application/json", json.dumps(document).encode() + b"\n"
