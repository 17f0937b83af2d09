"""deploy/ against a real Prometheus that scrapes a server, a gateway and a client: dashboard, alerts; and traces."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import prometheus_client
import pytest
import yaml
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from support.arrays import noise_images
from support.prometheus import DEPLOY, Prometheus, program, running_prometheus, until
from twinspire import Client, Index, Searcher
from twinspire.errors import ImageError
from twinspire.metrics import enable_metrics
from twinspire.stores import Item, ItemKind
from twinspire.tracing import enable_tracing
from twinspire_server.repository import build_repository
from twinspire_server.triton import Supervisor, TritonServer
from twinspire_server.triton.status import ServerStatus, StatusServer

pytestmark = pytest.mark.slow


@dataclass
class _Canary:
    ok: bool
    cosine: dict[str, float]
    checked: bool = True


class _Collector(ThreadingHTTPServer):
    """An OTLP collector that keeps the spans it is sent."""

    def __init__(self) -> None:
        self.spans: list[dict[str, Any]] = []
        super().__init__(("127.0.0.1", 0), _Received)


class _Received(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        """Keep the spans of a request in OTLP's JSON, as Triton sends it."""
        document = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert isinstance(self.server, _Collector)
        for resource in document["resourceSpans"]:
            for scope in resource["scopeSpans"]:
                self.server.spans += scope["spans"]
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:  # type: ignore[override]
        """Log nothing."""


@dataclass(frozen=True)
class _Service:
    server: TritonServer
    supervisor: Supervisor
    canary: _Canary
    client: Client
    searcher: Searcher
    collector: _Collector
    gateway_url: str
    reports: list[str]
    targets: dict[str, str]


@contextmanager
def _gateway(server: str, bundle: Path) -> Iterator[tuple[str, str]]:
    """Run a gateway of a server; give its address and HOST:PORT of its metrics."""
    twinspire = Path(sys.executable).with_name("twinspire")
    command = [twinspire, "gateway", "--server", server, "--bundle", bundle, "--port=0", "--metrics-port=0"]
    with subprocess.Popen(command, text=True, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            lines = [process.stdout.readline().split()[-1] for _ in range(2)]
            (metrics,) = [line for line in lines if line.endswith("/metrics")]
            (url,) = [line for line in lines if line != metrics]
            yield url, metrics.removeprefix("http://").removesuffix("/metrics")
        finally:
            process.terminate()


@pytest.fixture(scope="module")
def service(needs_triton: None, tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[_Service]:
    """Supervise a server of the tiny bundle; a gateway and a client of it, an index and the metrics of all of them."""
    folder = tmp_path_factory.mktemp("watching")
    build_repository([tiny.bundle.path], folder / "repository", threads=1)
    collector = _Collector()
    threading.Thread(target=collector.serve_forever, daemon=True).start()
    canary, reports = _Canary(ok=True, cosine={"tiny_image": 0.9999}), list[str]()
    registry = prometheus_client.CollectorRegistry()
    metrics = enable_metrics(registry)
    page, page_thread = prometheus_client.start_http_server(0, addr="127.0.0.1", registry=registry)
    server = TritonServer(
        folder / "repository",
        log_file=folder / "triton.log",
        trace_url=f"http://127.0.0.1:{collector.server_port}/v1/traces",
        triton_flags=["trace-config=opentelemetry,bsp_schedule_delay=100"],
    )
    supervisor = Supervisor(server, report=reports.append)
    status = ServerStatus(server, supervisor, canary)
    with server, StatusServer(status, host="127.0.0.1", port=0) as http_server:
        thread = threading.Thread(target=supervisor.run)
        thread.start()
        with (
            Client.connect(server.grpc_url, tiny.bundle) as client,
            Index.create(folder / "an.index", space=client.space, dim=client.dim) as index,
            _gateway(server.grpc_url, tiny.bundle.path) as (gateway_url, gateway_metrics),
        ):
            index.add(
                client.encode_texts(["a red cat"]),
                [Item(uri="cat.txt", kind=ItemKind.TEXT, caption="a red cat")],
                space=client.space,
            )
            metrics.watch_index(index, "pets")
            yield _Service(
                server,
                supervisor,
                canary,
                client,
                Searcher(client, index, cache=False),
                collector,
                gateway_url,
                reports,
                {
                    "twinspire-server": http_server.url.removeprefix("http://"),
                    "twinspire-gateway": gateway_metrics,
                    "twinspire-client": f"127.0.0.1:{page.server_port}",
                },
            )
        supervisor.stop()
        thread.join()
    metrics.disable()
    page.shutdown()
    page_thread.join()
    page.server_close()
    collector.shutdown()
    collector.server_close()


@pytest.fixture(scope="module")
def prometheus(service: _Service, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """Scrape the service every second with deploy/'s configuration."""
    with running_prometheus(tmp_path_factory.mktemp("prometheus"), service.targets) as running:
        yield running


def _expressions() -> list[str]:
    dashboard = json.loads((DEPLOY / "grafana" / "twinspire.json").read_text(encoding="utf-8"))
    return [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]


def _use(service: _Service) -> None:
    service.client.encode_images(list(noise_images(3)))
    service.searcher.search("cat")
    with pytest.raises(ImageError):
        service.client.encode_images([b"no image"])
    for model, status in (("tiny", 200), ("other", 404)):
        body = {"model": model, "input": ["a red cat", "a dog"]}
        assert httpx.post(f"{service.gateway_url}/v1/embeddings", json=body, timeout=60).status_code == status


@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "config", "prometheus.yml"),
        ("check", "config", "compose.yml"),
        ("check", "rules", "alerts.yml"),
        ("test", "rules", "alerts.test.yml"),
    ],
)
def test_promtool_accepts_the_files(arguments: tuple[str, ...]) -> None:
    """The configuration and the alerts are valid, and the alerts' own tests pass."""
    done = subprocess.run(
        [program("promtool"), *arguments], cwd=DEPLOY / "prometheus", capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_pages_are_in_the_text_format(service: _Service) -> None:
    """Promtool can read all pages; of the names in them it objects to Triton's alone."""
    for address in service.targets.values():
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
            page = answer.read()
        done = subprocess.run([program("promtool"), "check", "metrics"], input=page, capture_output=True, check=False)
        complaints = done.stderr.decode().splitlines()
        assert [line for line in complaints if not line.startswith("nv_")] == []
        assert done.returncode in (0, 3)


def test_the_targets_are_up_and_every_panel_has_data(service: _Service, prometheus: Prometheus) -> None:
    """All jobs are scraped, and each expression of the dashboard gives a series."""
    assert _expressions()
    missing = list(_expressions())

    def is_complete() -> bool:
        _use(service)
        missing[:] = [expression for expression in missing if not prometheus.query(_filled(expression))]
        return not missing

    until(lambda: prometheus.query("sum(up) == 3"))
    try:
        until(is_complete)
    except AssertionError:
        pytest.fail(f"no data for {missing}")


def test_each_alert_parses_and_none_fires_without_a_fault(service: _Service, prometheus: Prometheus) -> None:
    """All rules are loaded and evaluated without an error; none fires on a healthy service."""
    (rules,) = [group["rules"] for group in prometheus.get("rules")["groups"] if group["name"] == "twinspire-server"]
    until(lambda: all(rule["health"] == "ok" for group in prometheus.get("rules")["groups"] for rule in group["rules"]))
    assert rules
    assert prometheus.firing() == set()


def test_wrong_embeddings_raise_their_alert(service: _Service, prometheus: Prometheus) -> None:
    """While the canary finds wrong embeddings TwinspireWrongEmbeddings fires, and no longer."""
    service.canary.ok = False
    try:
        until(lambda: "TwinspireWrongEmbeddings" in prometheus.firing())
    finally:
        service.canary.ok = True
    until(lambda: "TwinspireWrongEmbeddings" not in prometheus.firing())


def test_a_killed_triton_raises_an_alert(service: _Service, prometheus: Prometheus) -> None:
    """After `kill -9` of tritonserver the supervisor starts it again, and TwinspireRestarted fires."""
    os.kill(service.server.pid, signal.SIGKILL)
    until(lambda: any("serves again" in report for report in service.reports))
    until(lambda: "TwinspireRestarted" in prometheus.firing())
    assert prometheus.query('twinspire_restarts_total{cause="ended"} == 1')


def test_a_trace_goes_through_triton(service: _Service) -> None:
    """Triton's spans of a request are below the client's, in the caller's trace, with the request's id."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracing = enable_tracing(provider)
    try:
        service.client.encode_texts(["a red cat"])
        until(lambda: "twinspire.request" in [span.name for span in exporter.get_finished_spans()])
    finally:
        tracing.disable()
    spans = {span.name: span for span in exporter.get_finished_spans()}
    assert set(spans) == {f"twinspire.{name}" for name in ("encode", "tokenize", "tower", "request")}
    for child, parent in (("tokenize", "encode"), ("tower", "encode"), ("request", "tower")):
        found = spans[f"twinspire.{child}"].parent
        assert found is not None
        assert found.span_id == spans[f"twinspire.{parent}"].context.span_id
    request = spans["twinspire.request"]
    trace_id = f"{request.context.trace_id:032x}"
    until(
        lambda: [
            span for span in service.collector.spans if span["name"] == "tiny_text" and span["traceId"] == trace_id
        ]
    )
    server = [span for span in service.collector.spans if span["traceId"] == trace_id]
    ids = {span["spanId"]: span for span in server}
    (top,) = [span for span in server if span["parentSpanId"] not in ids]
    assert top["parentSpanId"] == f"{request.context.span_id:016x}"
    (model,) = [span for span in server if span["name"] == "tiny_text"]
    values = {pair["key"]: pair["value"] for pair in model["attributes"]}
    assert request.attributes is not None
    assert values["triton.request_id"]["stringValue"] == request.attributes["twinspire.id"]


def test_requests_without_a_trace_are_not_traced(service: _Service) -> None:
    """With `trace_url` Triton traces those requests alone whose client does."""
    before = len(service.collector.spans)
    service.client.encode_texts(["a dog"] * 3)
    time.sleep(1.0)
    assert len(service.collector.spans) == before


def test_the_adapter_computes_the_recorded_ratio(service: _Service, prometheus: Prometheus) -> None:
    """The query that prometheus-adapter makes for a pod gives the ratio of the recording rule."""
    (rule,) = yaml.safe_load((DEPLOY / "prometheus-adapter.yml").read_text(encoding="utf-8"))["rules"]["custom"]
    query = rule["metricsQuery"].replace("<<.GroupBy>>", "instance").replace("<<.LabelMatchers>>", 'instance!=""')

    def is_equal() -> bool:
        _use(service)
        found, recorded = prometheus.query(query), prometheus.query("twinspire:queue_to_compute:ratio")
        values = [float(series[0]["value"][1]) for series in (found, recorded) if len(series) == 1]
        return len(values) == 2 and values[0] > 0 and abs(values[0] / values[1] - 1) < 0.5

    until(is_equal)


def _filled(expression: str) -> str:
    """Return a panel's expression with values for Grafana's variables."""
    return expression.replace("$__rate_interval", "1m").replace("$instance", ".*")
