"""`/metrics`, `/readyz` and `/livez` of a supervised server, and the access log, on a real Triton."""

from __future__ import annotations

import http.client
import json
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpc
from prometheus_client.parser import text_string_to_metric_families

from support.arrays import noise_images
from twinspire.errors import InputError, ServerError
from twinspire_server.repository import build_repository
from twinspire_server.repository.config import ready_check
from twinspire_server.triton import Supervisor, TritonServer
from twinspire_server.triton.status import ServerStatus, StatusServer, _Handler
from twinspire_server.triton.supervisor import RestartCause

pytestmark = pytest.mark.slow


@dataclass
class _Canary:
    ok: bool = True
    checked: bool = True
    cosine: dict[str, float] = field(default_factory=lambda: {"tiny_image": 0.9998})


@dataclass
class _Watched:
    server: TritonServer
    supervisor: Supervisor
    canary: _Canary
    url: str
    access_log: Path

    def read(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(self.url + path, timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def samples(self) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
        families = text_string_to_metric_families(self.read("/metrics")[1])
        return {
            (sample.name, frozenset(sample.labels.items())): sample.value for one in families for sample in one.samples
        }

    def value(self, name: str, **labels: str) -> float:
        """Return the only sample of a name with these labels, whatever further ones it has."""
        (value,) = [
            value
            for (found, has), value in self.samples().items()
            if found in (name, f"{name}_total") and set(labels.items()) <= has  # the parser adds what Triton leaves out
        ]
        return value


@pytest.fixture(scope="module")
def watched(needs_triton: None, tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[_Watched]:
    """Serve the tiny bundle with an access log and a status port."""
    folder = tmp_path_factory.mktemp("status")
    build_repository([tiny.bundle.path], folder / "repository", threads=1)
    log = folder / "access.log"
    with TritonServer(folder / "repository", log_file=folder / "triton.log", access_log=log) as server:
        supervisor, canary = Supervisor(server), _Canary()
        status = ServerStatus(server, supervisor, canary)
        with StatusServer(status, host="127.0.0.1", port=0) as http_server:
            yield _Watched(server, supervisor, canary, http_server.url, log)


def _until(true: Callable[[], bool], within_s: float = 20) -> None:
    """Wait until something is true: a request is counted shortly after its response was sent."""
    deadline_s = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < deadline_s, "it did not happen in time"
        time.sleep(0.02)


def _infer(server: TritonServer, model: str, name: str, array: np.ndarray, request_id: str) -> None:
    tensor = grpc.InferInput(name, list(array.shape), {"uint8": "UINT8", "int32": "INT32"}[str(array.dtype)])
    tensor.set_data_from_numpy(array)
    channel = grpc.InferenceServerClient(server.grpc_url)
    try:
        channel.infer(model, [tensor], request_id=request_id, client_timeout=20)
    finally:
        channel.close()


def _check(server: TritonServer, model: str) -> int:
    request = ready_check(server.repository / model)
    assert request is not None
    connection = http.client.HTTPConnection("127.0.0.1", server.ports.http, timeout=20)
    connection.request("POST", f"/v2/models/{model}/infer", request.body, {**server.admin_headers, **request.headers})
    status = connection.getresponse().status
    connection.close()
    return status


def test_requests_are_counted_without_warm_up_and_canary(watched: _Watched) -> None:
    """Triton counts the warm-up and a check of the canary; the model's own metrics only what a client sent."""
    assert _check(watched.server, "tiny_image") == 200
    counted = {"model": "tiny_image", "status": "ok"}
    before = watched.value("twinspire_server_requests_total", **counted)
    assert before == 0
    assert watched.value("nv_inference_request_success", model="tiny_image") >= 2
    _infer(watched.server, "tiny_image", "image", noise_images(3), "one")
    _until(lambda: watched.value("twinspire_server_requests_total", **counted) == before + 1)
    assert watched.value("twinspire_server_batch_rows_sum", model="tiny_image") == 3
    for phase in ("queue", "compute"):
        labels = {"model": "tiny_image", "phase": phase}
        _until(lambda labels=labels: watched.value("twinspire_server_phase_seconds_count", **labels) == 1)
        assert 0 < watched.value("twinspire_server_phase_seconds_sum", **labels) < 60
        assert watched.value("twinspire_server_phase_seconds_bucket", **labels, le="+Inf") == 1


def test_a_refusal_of_a_model_is_counted_as_one(watched: _Watched, tiny: Any) -> None:
    """A text without an end token is `invalid` in the model's metrics; Triton counts it as a success."""
    without_end = np.full((1, tiny.bundle.text.context_length), 4, np.int32)
    failed = watched.value("nv_inference_request_failure", model="tiny_text", reason="BACKEND")
    before = watched.value("twinspire_server_requests_total", model="tiny_text", status="invalid")
    with pytest.raises(grpc.InferenceServerException):
        _infer(watched.server, "tiny_text", "input_ids", without_end, "bad")
    _until(lambda: watched.value("twinspire_server_requests_total", model="tiny_text", status="invalid") == before + 1)
    assert watched.value("nv_inference_request_failure", model="tiny_text", reason="BACKEND") == failed


def test_the_access_log_has_a_line_for_each_request(watched: _Watched) -> None:
    """A line is one JSON document with id, rows, status and times; the canary's requests have none."""
    assert _check(watched.server, "tiny_image") == 200
    _infer(watched.server, "tiny_image", "image", noise_images(2), 'log-"\n1')
    _until(lambda: "log-" in watched.access_log.read_text(encoding="utf-8"))
    lines = [json.loads(line) for line in watched.access_log.read_text(encoding="utf-8").splitlines()]
    assert "twinspire-canary" not in [line["request_id"] for line in lines]
    (line,) = [line for line in lines if line["request_id"] == 'log-"\n1']
    assert line["model"] == "tiny_image"
    assert (line["rows"], line["status"]) == (2, "ok")
    assert 0 < line["compute_ms"] <= line["total_ms"]


def test_the_engine_and_space_of_each_model(watched: _Watched, tiny: Any) -> None:
    """`twinspire_model_info` has the digest of the engine, its precision, space and version."""
    labels = [dict(labels) for name, labels in watched.samples() if name == "twinspire_model_info"]
    assert sorted(one["model"] for one in labels) == ["tiny_image", "tiny_text"]
    for one in labels:
        tower = one["model"].removeprefix("tiny_")
        assert one["space"] == tiny.bundle.space
        assert one["engine_sha256"] == tiny.bundle.manifest.engines[tower][one["precision"]].sha256
        assert one["version"] == "1"


def test_restarts_are_counted_by_cause(watched: _Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    """The supervisor's restarts are a counter per cause."""
    monkeypatch.setitem(watched.supervisor.restarts, RestartCause.HUNG, 2)
    assert watched.value("twinspire_restarts_total", cause="hung") == 2
    assert watched.value("twinspire_restarts_total", cause="ended") == 0


def test_readiness_follows_the_canary(watched: _Watched) -> None:
    """While the canary finds wrong embeddings `/readyz` is 503 and says which; `/livez` stays 200."""
    assert watched.read("/readyz")[0] == 200
    assert watched.value("twinspire_ready") == 1
    watched.canary.ok, watched.canary.cosine["tiny_image"] = False, 0.1
    try:
        status, text = watched.read("/readyz")
        assert status == 503
        assert any("tiny_image" in reason for reason in json.loads(text)["reasons"])
        assert watched.value("twinspire_canary_cosine", model="tiny_image") == 0.1
        assert watched.value("twinspire_canary_ok") == 0
        assert watched.value("twinspire_ready") == 0
        assert watched.read("/livez")[0] == 200
    finally:
        watched.canary.ok = True


def test_other_pages_do_not_exist(watched: _Watched) -> None:
    """Any other path is 404, any other method is refused."""
    assert watched.read("/")[0] == 404
    host, port = watched.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(b"POST /metrics HTTP/1.0\r\nContent-Length: 0\r\n\r\n")
        assert b" 501 " in connection.recv(1000).splitlines()[0]


def test_silent_connections_do_not_keep_others_out(watched: _Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    """With more silent connections than are served at a time, the page is there again when they have timed out."""
    monkeypatch.setattr(_Handler, "timeout", 0.5)
    host, port = watched.url.removeprefix("http://").split(":")
    silent = [socket.create_connection((host, int(port)), timeout=10) for _ in range(40)]
    try:
        for one in silent:
            assert one.recv(1) == b""  # closed by the server, without a byte sent
    finally:
        for one in silent:
            one.close()
    assert watched.read("/livez")[0] == 200


def test_a_port_that_is_taken(watched: _Watched) -> None:
    """Listening on a taken port is a ServerError that names the port."""
    port = int(watched.url.rpartition(":")[2])
    status = ServerStatus(watched.server, watched.supervisor)
    with pytest.raises(ServerError, match=str(port)):
        StatusServer(status, host="127.0.0.1", port=port)


def test_a_server_that_does_not_run_is_not_ready(tmp_path: Path) -> None:
    """Without a running Triton the status is not ready, and its metrics are there all the same."""
    (tmp_path / "echo").mkdir()
    (tmp_path / "echo" / "config.pbtxt").write_text('name: "echo"', encoding="utf-8")
    server = TritonServer(tmp_path)
    status = ServerStatus(server, Supervisor(server))
    assert status.document()["ready"] is False
    assert b"twinspire_ready 0.0" in status.page()


@pytest.mark.parametrize("url", ["", "127.0.0.1:4318", "file:///etc/passwd", "http://"])
def test_unusable_trace_addresses(tmp_path: Path, url: str) -> None:
    """An address for traces that is no URL of HTTP is an InputError."""
    (tmp_path / "echo").mkdir()
    (tmp_path / "echo" / "config.pbtxt").write_text('name: "echo"', encoding="utf-8")
    with pytest.raises(InputError, match="collector") as caught:
        TritonServer(tmp_path, trace_url=url)
    assert caught.value.option == "trace_url"
