"""What every answer has, what is written down, and how the gateway begins and ends."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import trustme

from support.commands import run_twinspire
from support.live_gateway import BODY, EMBEDDINGS, Gateway, eventually, serving
from twinspire import sample_bundle
from twinspire.errors import InputError
from twinspire_server.gateway.safety.metrics import RecentRequests

TWINSPIRE = Path(sys.executable).with_name("twinspire")


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway with a log and pages of one origin."""
    log = tmp_path_factory.mktemp("safety") / "access.log"
    with serving(access_log=log, cors_origin=["https://photos.example"]) as found:
        yield found


def lines(gateway: Gateway) -> list[dict[str, Any]]:
    """Return the access log."""
    return [json.loads(line) for line in gateway.app.state.settings.safety.access_log.read_text().splitlines()]


@pytest.mark.parametrize("path", ["/v1/models", "/nowhere", "/livez"])
def test_answers_tell_browsers_to_do_nothing_with_them(gateway: Gateway, path: str) -> None:
    """Answers, errors too, are not sniffed, framed or followed, and load nothing."""
    headers = httpx.get(gateway.url + path).headers
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert headers["X-Frame-Options"] == "DENY"
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert "Server" not in headers


def test_a_valid_request_id_is_kept(gateway: Gateway) -> None:
    """A client's id is in the answer and in the log, with what the request had."""
    answer = gateway.post({"model": "scenes", "input": ["a", "b"]}, headers={"X-Request-ID": "order-66.a_B"})
    assert answer.headers["X-Request-ID"] == "order-66.a_B"
    assert eventually(lambda: any(line["id"] == "order-66.a_B" for line in lines(gateway)))
    line = next(line for line in lines(gateway) if line["id"] == "order-66.a_B")
    assert (line["status"], line["inputs"], line["dialect"], line["path"]) == (200, 2, "openai", EMBEDDINGS)
    assert line["response_bytes"] == len(answer.content)


@pytest.mark.parametrize("given", ["a b", "a\tb", "é", "-", "a" * 65, '"', "{}", "a,b", "a;b=c", "%0d%0aX: y"])
def test_other_request_ids_are_replaced(gateway: Gateway, given: str) -> None:
    """What could break a log line or a header never gets there."""
    answer = httpx.get(gateway.url + "/v1/models", headers={"X-Request-ID": given.encode()})
    assert re.fullmatch("[0-9a-f]{16}", answer.headers["X-Request-ID"])


def test_a_line_end_in_a_path_stays_one_line(gateway: Gateway) -> None:
    """A path cannot forge lines of the log, and a long one is cut."""
    httpx.get(gateway.url + "/a%0a%7B%22id%22%3A%22forged%22%7D" + "x" * 5000)
    assert eventually(lambda: any(line["path"].startswith("/a") for line in lines(gateway)))
    assert all(line["id"] != "forged" for line in lines(gateway))
    assert all(len(line["path"]) < 300 for line in lines(gateway))


def test_an_error_nobody_expected_shows_nothing(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is a 500 in the dialect's form with the request's id; the log has the cause under that id."""

    async def fail(_: object) -> None:
        raise RuntimeError("the password is swordfish")

    monkeypatch.setattr(gateway.app.state.embedder, "embed", fail)
    with caplog.at_level(logging.ERROR, "twinspire"):
        answer = gateway.post(headers={"X-Request-ID": "broken-1"})
    assert answer.status_code == 500
    assert answer.json()["error"]["code"] == "internal_error"
    assert "broken-1" in answer.json()["error"]["message"]
    assert "swordfish" not in answer.text
    assert "RuntimeError" not in answer.text
    assert "swordfish" in caplog.text
    assert "broken-1" in caplog.text


def test_pages_of_a_named_origin_may_use_it(gateway: Gateway) -> None:
    """The origin that was named gets an answer it can read, also when it is an error, and may ask before."""
    origin = {"Origin": "https://photos.example"}
    assert gateway.post(headers=origin).headers["Access-Control-Allow-Origin"] == "https://photos.example"
    refused = httpx.get(gateway.url + "/nowhere", headers=origin)
    assert refused.headers["Access-Control-Allow-Origin"] == "https://photos.example"
    asked = httpx.options(
        gateway.url + EMBEDDINGS,
        headers={**origin, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"},
    )
    assert asked.status_code == 200
    assert "access-control-allow-credentials" not in asked.headers


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "http://photos.example", "null", "https://photos.example.evil"]
)
def test_pages_of_other_origins_may_not(gateway: Gateway, origin: str) -> None:
    """Another page's request is refused, not only hidden from it; nothing allows it to read the answer."""
    answer = gateway.post(headers={"Origin": origin})
    assert answer.status_code == 403
    assert "access-control-allow-origin" not in answer.headers


def test_the_gateways_own_page_may(gateway: Gateway) -> None:
    """A request of a page that the gateway served has the gateway's origin."""
    assert gateway.post(headers={"Origin": gateway.url}).status_code == 200


def test_a_name_that_was_made_to_point_here_is_refused(gateway: Gateway) -> None:
    """DNS rebinding against a gateway without keys: only names of this machine, and addresses, are its own."""
    from dataclasses import replace

    from twinspire_server.gateway.settings import GatewaySettings

    settings = replace(GatewaySettings(bundle=sample_bundle()), host_names=("localhost", "photos.lan"))
    with serving(settings) as found:
        for host, status in {
            "localhost": 200,
            "localhost:8080": 200,
            "photos.lan": 200,
            "PHOTOS.lan:80": 200,
            "127.0.0.1": 200,
            "[::1]:8080": 200,
            "evil.example": 421,
            "evil.example:8080": 421,
            "localhost.evil.example": 421,
            "[": 421,
        }.items():
            assert found.post(headers={"Host": host}).status_code == status, host


def test_recent_requests_are_summed_by_route() -> None:
    """Rates, errors and quantiles are those of the last minute."""
    now = [1000.0]
    recent = RecentRequests(clock=lambda: now[0])
    recent.add("/old", 1.0, is_error=True)
    now[0] += 100
    for number in range(1, 101):
        recent.add("/a", number / 1000, is_error=number > 90)
    recent.add("/b", 0.5, is_error=False)
    summary = recent.summary()
    assert summary["requests_per_s"] == pytest.approx(101 / 60)
    assert list(summary["routes"]) == ["/a", "/b"]
    route = summary["routes"]["/a"]
    assert (route["requests"], route["errors"]) == (100, 10)
    assert route["p50_ms"] == pytest.approx(50.5)
    assert route["p99_ms"] == pytest.approx(99.01)


def test_the_client_is_observed_too(gateway: Gateway) -> None:
    """One registry has the gateway's metrics and those of the client behind it."""
    gateway.post()
    assert gateway.metric("twinspire_gateway_request_seconds_count", route=EMBEDDINGS) >= 1
    assert gateway.metric("twinspire_client_phase_seconds_count", phase="tower", tower="text") >= 0
    httpx.get(gateway.url + "/some/random/path/123")
    samples = [sample for metric in gateway.app.state.metrics.registry.collect() for sample in metric.samples]
    assert not any("random" in str(sample.labels) for sample in samples)


def test_ready_follows_its_checks() -> None:
    """/readyz is 503 while a check fails or hangs, without its message, and when the gateway stops; /livez is not."""
    with serving() as gateway:
        readiness = gateway.app.state.readiness
        assert httpx.get(gateway.url + "/readyz").json() == {"ready": True, "reasons": []}

        async def fail() -> None:
            raise InputError("/home/operator/secret")

        readiness.add("index", fail)
        time.sleep(1.1)
        answer = httpx.get(gateway.url + "/readyz")
        assert answer.status_code == 503
        assert "index" in answer.json()["reasons"][0]
        assert "secret" not in answer.text
        readiness.add("index", lambda: asyncio.sleep(0))
        time.sleep(1.1)
        assert httpx.get(gateway.url + "/readyz").status_code == 200
        readiness.stop()
        assert httpx.get(gateway.url + "/readyz").status_code == 503
        assert httpx.get(gateway.url + "/livez").status_code == 200


def start(*options: str | Path) -> subprocess.Popen[str]:
    """Start `twinspire gateway` with the sample bundle on a free port."""
    command = [TWINSPIRE, "gateway", "--bundle", sample_bundle(), "--port", "0", *options]
    return subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def first_line(process: subprocess.Popen[str]) -> str:
    """Return what the process prints first, without the words in front."""
    assert process.stdout is not None
    return process.stdout.readline().split()[-1]


@pytest.mark.slow
def test_what_began_is_finished() -> None:
    """SIGTERM ends the process with status 0; a request under way is answered, a new one finds nobody."""
    process = start("--metrics-port", "0")
    try:
        url, metrics = first_line(process), first_line(process)
        body = {"model": "scenes", "input": ["a red car on a street"] * 2000}
        answers: list[httpx.Response] = []
        thread = threading.Thread(target=lambda: answers.append(httpx.post(url + EMBEDDINGS, json=body, timeout=60)))
        thread.start()
        assert eventually(lambda: "twinspire_gateway_pending_inputs 2000.0" in httpx.get(metrics).text)
        process.terminate()
        thread.join(60)
        assert [answer.status_code for answer in answers] == [200]
        assert process.wait(30) == 0
        with pytest.raises(httpx.ConnectError):
            httpx.get(url + "/livez")
    finally:
        process.kill()
        process.communicate()


@pytest.mark.slow
def test_load_balancers_are_told_before_the_end() -> None:
    """With --shutdown-delay it serves on after SIGTERM, and is not ready."""
    process = start("--shutdown-delay", "4")
    try:
        url = first_line(process)
        assert httpx.get(url + "/readyz").status_code == 200
        process.terminate()
        assert eventually(lambda: httpx.get(url + "/readyz").status_code == 503, 3)
        assert httpx.post(url + EMBEDDINGS, json=BODY, timeout=30).status_code == 200
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.communicate()


@pytest.mark.slow
def test_it_serves_https_and_metrics(tmp_path: Path) -> None:
    """With a certificate it speaks TLS alone; the metrics have a port of their own that asks for no key."""
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    certificate.cert_chain_pems[0].write_to_path(tmp_path / "certificate.pem")
    certificate.private_key_pem.write_to_path(tmp_path / "key.pem")
    (tmp_path / "keys").write_text("k" * 32)
    files = ("--tls-certificate", tmp_path / "certificate.pem", "--tls-key", tmp_path / "key.pem")
    process = start(*files, "--keys", tmp_path / "keys", "--metrics-port", "0")
    context = ssl.create_default_context()
    authority.configure_trust(context)
    try:
        url, metrics = first_line(process), first_line(process)
        assert url.startswith("https://")
        headers = {"Authorization": "Bearer " + "k" * 32}
        assert httpx.post(url + EMBEDDINGS, json=BODY, headers=headers, verify=context).status_code == 200
        with pytest.raises(httpx.TransportError):
            httpx.get(url.replace("https", "http") + "/livez")
        assert f'twinspire_gateway_requests_total{{dialect="openai",route="{EMBEDDINGS}",status="200"}} 1.0' in (
            httpx.get(metrics).text
        )
        (tmp_path / "keys").write_text("n" * 32)
        process.send_signal(signal.SIGHUP)
        assert eventually(lambda: httpx.get(url + "/v1/models", headers=headers, verify=context).status_code == 401, 10)
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
    assert process.returncode == 0


REFUSED = {
    "open": (["--host", "0.0.0.0"], "--keys"),
    "a name": (["--host", "example.org"], "address"),
    "half of TLS": (["--tls-key", "x.pem"], "--tls-certificate"),
    "no such certificate": (["--tls-certificate", "x.pem", "--tls-key", "x.pem"], "x.pem"),
    "no such keys": (["--keys", "none"], "none"),
    "a negative time": (["--read-timeout", "-1"], "--read-timeout"),
    "not a number": (["--max-body", "nan"], "--max-body"),
    "no host": (["--allow-image-host", "10.0.0.1"], "--allow-image-host"),
    "no origin": (["--cors-origin", "photos.example"], "--cors-origin"),
    "no folder for the log": (["--access-log", "none/log"], "none/log"),
}


@pytest.mark.parametrize(("options", "word"), REFUSED.values(), ids=REFUSED.keys())
def test_bad_options_end_the_command(
    options: list[str], word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command ends with status 2 and one message that names what is wrong."""
    monkeypatch.chdir(tmp_path)
    ran = run_twinspire(capsys, "gateway", "--bundle", sample_bundle(), "--port", "0", *options)
    assert ran.status == 2, ran.err
    assert word in ran.err.replace("\n", "")
    assert not ran.out


@pytest.mark.slow
def test_a_server_that_is_away_is_an_error_at_the_start() -> None:
    """Without --wait the command ends with status 2 and names the server; with it, a signal ends the wait at once."""
    with start("--server", "127.0.0.1:1", "--wait", "600") as waiting:
        with start("--server", "127.0.0.1:1") as process:
            out, err = process.communicate(timeout=120)
        assert process.returncode == 2
        assert "127.0.0.1:1" in err
        assert "Traceback" not in err
        assert not out
        assert waiting.poll() is None
        waiting.terminate()
        assert waiting.communicate(timeout=30)[0] == ""
        assert waiting.returncode not in (0, 2)
