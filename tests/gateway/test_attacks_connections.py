"""Clients that are slow, leave, come in crowds or write what is not HTTP, against a real uvicorn."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from typing import Any

import httpx
import pytest

from support.live_gateway import BODY, EMBEDDINGS, Gateway, eventually, is_closed, received, serving

CLOSED = "twinspire_gateway_closed_connections_total"
CONTENT = json.dumps(BODY).encode()


def post(content: bytes = CONTENT, *headers: str, length: int | None = None) -> bytes:
    """Return a request as bytes."""
    length = len(content) if length is None else length
    lines = [
        f"POST {EMBEDDINGS} HTTP/1.1",
        "Host: localhost",
        "Content-Type: application/json",
        f"Content-Length: {length}",
        *headers,
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + content


@pytest.fixture(scope="module")
def gateway() -> Iterator[Gateway]:
    """A gateway whose deadlines are short and whose bodies have at most 1 MiB."""
    with serving(read_timeout=1.0, max_body=1.0, max_held=2.0, max_connections=150) as found:
        yield found


def test_headers_that_come_too_slowly_are_not_waited_for(gateway: Gateway) -> None:
    """A byte of a header now and then (slowloris) ends at the deadline, and so does silence."""
    before = gateway.metric(CLOSED, reason="slow_headers")
    with gateway.connect() as silent, gateway.connect() as slow:
        slow.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n")
        began_s = time.monotonic()
        while time.monotonic() - began_s < 15:
            try:
                slow.sendall(b"X-a: b\r\n")
            except OSError:
                break
            time.sleep(0.1)
        else:
            pytest.fail("the connection was kept")
        assert is_closed(silent, 15)
    assert gateway.metric(CLOSED, reason="slow_headers") == before + 2


def test_empty_lines_do_not_keep_a_connection(gateway: Gateway) -> None:
    """Line ends between requests, which start no request, do not hold a connection past the deadline."""
    with gateway.connect() as connection:
        connection.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b"200 OK" in received(connection, 0.3)
        began_s = time.monotonic()
        while time.monotonic() - began_s < 15:
            try:
                connection.sendall(b"\r\n")
            except OSError:
                return
            time.sleep(0.1)
        pytest.fail("the connection was kept")


def test_a_body_that_comes_too_slowly_is_408(gateway: Gateway) -> None:
    """A body that stops half-way is answered at the deadline, in the dialect's form, and the connection ends."""
    with gateway.connect() as connection:
        connection.sendall(post(length=1000))
        answer = received(connection)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b'"code": "body_timeout"' in answer
    assert b"connection: close" in answer.lower()


def test_a_steady_body_has_the_time_it_needs(gateway: Gateway) -> None:
    """A body that takes longer than the timeout, but comes faster than 16 KiB/s, is read."""
    content = json.dumps({"model": "scenes", "input": ["a" * 1000] * 100}).encode()
    with gateway.connect() as connection:
        connection.sendall(post(b"", length=len(content)))
        for start in range(0, len(content), 5000):
            connection.sendall(content[start : start + 5000])
            time.sleep(0.1)
        assert received(connection).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("is_chunked", [False, True])
def test_a_body_above_the_bound_is_413(gateway: Gateway, is_chunked: bool) -> None:
    """More bytes than the bound, announced or not, are refused before they are read, and the client sees it."""
    content = b"x" * 3_000_000
    body: Any = iter([content[:1_000_000]] * 3) if is_chunked else content
    answer = httpx.post(
        gateway.url + EMBEDDINGS, content=body, headers={"Content-Type": "application/json"}, timeout=30
    )
    assert answer.status_code == 413
    assert answer.json()["error"]["code"] == "body_too_large"


def test_a_client_is_asked_before_it_sends_a_body_that_is_too_large(gateway: Gateway) -> None:
    """With Expect: 100-continue the refusal comes before the body."""
    head = post(b"", "Expect: 100-continue", length=10**12)
    with gateway.connect() as connection:
        connection.sendall(head)
        assert received(connection).startswith(b"HTTP/1.1 413 ")


def test_a_refused_body_is_not_read_for_ever(gateway: Gateway) -> None:
    """A client that goes on sending after its 413 is cut off."""
    with gateway.connect() as connection:
        connection.sendall(post(b"", length=10**12))
        began_s = time.monotonic()
        with suppress(OSError):
            while time.monotonic() - began_s < 60:
                connection.sendall(b"x" * 100_000)
                time.sleep(0.01)
            pytest.fail("the body is read on and on")


def test_bodies_together_are_bounded(gateway: Gateway) -> None:
    """Bodies that are held at a time have a bound of their own: 503 with Retry-After, and room again afterwards."""
    large = post(b"x" * 900_000, length=1_000_000)
    with ExitStack() as stack:
        for _ in range(2):
            connection = stack.enter_context(gateway.connect())
            connection.sendall(large)
        time.sleep(0.3)
        third = stack.enter_context(gateway.connect())
        third.sendall(large)
        answer = received(third)
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b"retry-after: " in answer.lower()
    assert eventually(lambda: not gateway.app.state.metrics.active)
    whole = {"model": "scenes", "input": "a" * 900_000}
    assert [gateway.post(whole).status_code for _ in range(3)] == [200] * 3


def test_aborted_uploads_leave_nothing_behind(gateway: Gateway) -> None:
    """Clients that go away within their body leave no request, no bytes and no pending input."""
    for _ in range(50):
        with gateway.connect() as connection:
            connection.sendall(post(b"x" * 100_000, length=1_000_000))
    metrics = gateway.app.state.metrics
    assert eventually(lambda: not metrics.active)
    assert gateway.app.state.embedder.pending == 0
    assert [gateway.post().status_code for _ in range(3)] == [200] * 3


def test_work_for_a_client_that_left_is_dropped(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that closes its connection cancels what is computed for it; the log calls it 499."""
    began, ended = [], []

    async def encode_texts(sequences: Any) -> Any:
        began.append(1)
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            ended.append(1)
            raise

    monkeypatch.setattr(gateway.app.state.embedder.client.towers, "encode_texts", encode_texts)
    with gateway.connect() as connection:
        connection.sendall(post())
        assert eventually(lambda: bool(began))
        assert gateway.app.state.embedder.pending == 1
    assert eventually(lambda: bool(ended))
    assert eventually(lambda: gateway.app.state.embedder.pending == 0)
    name = "twinspire_gateway_requests_total"
    assert eventually(lambda: gateway.metric(name, route=EMBEDDINGS, dialect="openai", status="499") > 0)


@pytest.mark.slow
def test_a_crowd_is_answered_or_told_to_come_again(gateway: Gateway) -> None:
    """Of 500 connections at a time the first 150, the bound, get 200, others 503 with Retry-After or nothing."""
    with ExitStack() as stack:
        crowd = []
        for _ in range(500):
            connection = stack.enter_context(gateway.connect())
            with suppress(OSError):
                connection.sendall(post())
            crowd.append(connection)
        answers = [received(connection, 0.01) for connection in crowd]
    assert all(answer == b"" or answer[:12] in (b"HTTP/1.1 200", b"HTTP/1.1 503") for answer in answers)
    refused = [answer for answer in answers if b" 503 " in answer[:14]]
    assert refused
    assert all(b"retry-after: " in answer.lower() for answer in refused)
    assert sum(answer.startswith(b"HTTP/1.1 200") for answer in answers) == 150
    assert eventually(lambda: gateway.post().status_code == 200)
    assert gateway.app.state.embedder.pending == 0


def test_health_is_answered_above_the_bound(gateway: Gateway) -> None:
    """A gateway that is busy is alive: /livez is answered while other requests are refused."""
    with ExitStack() as stack:
        for _ in range(160):
            stack.enter_context(gateway.connect())
        assert eventually(lambda: len(gateway.server.server_state.connections) >= 160)
        assert gateway.send(b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").startswith(
            b"HTTP/1.1 200 "
        )
        assert gateway.send(post()).startswith(b"HTTP/1.1 503 ")


def test_a_client_that_does_not_read_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers that nobody takes are held for a while only."""
    with serving() as gateway:
        protocol = gateway.server.config.http_protocol_class
        limits = protocol.limits  # type: ignore[attr-defined]
        monkeypatch.setattr(protocol, "limits", type(limits)(limits.max_connections, 20, 0.5, limits.closed))
        many = json.dumps({"model": "scenes", "input": ["a red car"] * 2000}).encode()
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect(gateway.address)
            connection.sendall(post(many) * 3)
            assert eventually(lambda: gateway.metric(CLOSED, reason="slow_reader") == 1, 60)
        assert eventually(lambda: not gateway.app.state.metrics.active)


def test_headers_are_bounded_in_size(gateway: Gateway) -> None:
    """Headers without end are refused with 431."""
    with gateway.connect() as connection:
        answer = b""
        try:
            connection.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n")
            for number in range(2000):
                connection.sendall(b"X-%d: %s\r\n" % (number, b"a" * 1000))
        except OSError:
            pass
        answer = received(connection)
    assert answer == b"" or answer.startswith(b"HTTP/1.1 431 ")  # what is unread when it closes may reset the answer
    assert gateway.metric(CLOSED, reason="large_headers") >= 1


def test_trailers_are_dropped(gateway: Gateway) -> None:
    """What follows a chunked body does not pile up among the headers."""
    head = post(b"", "Transfer-Encoding: chunked").replace(b"Content-Length: 0\r\n", b"")
    chunk = b"%x\r\n%s\r\n0\r\n" % (len(CONTENT), CONTENT)
    with gateway.connect() as connection:
        connection.sendall(head + chunk + b"X-a: trailer\r\n" * 1000 + b"\r\n")
        assert received(connection).startswith(b"HTTP/1.1 200 ")
        host, port = connection.getsockname()
        ours = next(one for one in gateway.server.server_state.connections if one.client == (host, port))
        assert len(ours.headers) < 10


SMUGGLED = {
    "both lengths": "Transfer-Encoding: chunked",
    "two lengths": "Content-Length: 3",
    "two codings": "Transfer-Encoding: chunked, identity",
    "a space before the colon": "Transfer-Encoding : chunked",
    "a folded line": "X-a: b\r\n Transfer-Encoding: chunked",
    "a line feed alone": "X-a: b\nTransfer-Encoding: chunked",
    "a coding nobody knows": "Transfer-Encoding: xchunked",
    "a null byte": "X-a: b\x00c",
}


@pytest.mark.parametrize("header", SMUGGLED.values(), ids=SMUGGLED.keys())
def test_no_second_request_is_smuggled_in(gateway: Gateway, header: str) -> None:
    """A request whose length can be read in two ways is refused: nothing in its body is taken for a request."""
    inner = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n"
    answer = gateway.send(post(b"0\r\n\r\n" + inner, header))
    assert answer.count(b"HTTP/1.1 ") == 1
    assert answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 501 "))


@pytest.mark.parametrize("length", ["-1", "+5", "0x10", "1_0", "5 5", "", "99999999999999999999999"])
def test_a_length_that_is_no_number_is_refused(gateway: Gateway, length: str) -> None:
    """Content-Length is digits; a number too large for anything is refused as one."""
    head = f"POST {EMBEDDINGS} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n"
    assert gateway.send(head.encode() + b"abcde").startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 413 "))


@pytest.mark.parametrize(
    "content",
    [
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET /livez\r\n\r\n",
        b"\xff" * 100,
        b"GET /livez HTTP/9.9\r\n\r\n",
    ],
)
def test_what_is_not_http_is_refused(gateway: Gateway, content: bytes) -> None:
    """A TLS hello, HTTP/2 and noise end the connection and nothing else."""
    with gateway.connect() as connection:
        connection.sendall(content)
        assert is_closed(connection, 20)
    assert gateway.post().status_code == 200


def test_an_upgrade_is_not_followed(gateway: Gateway) -> None:
    """There are no WebSockets and no HTTP/2 to change to; the request is answered as it is."""
    for protocol in ("websocket", "h2c"):
        answer = gateway.send(
            f"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: {protocol}\r\n\r\n".encode()
        )
        assert answer.startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("method", ["TRACE", "CONNECT", "DELETE", "PATCH", "PROPFIND", "PURGE"])
def test_other_methods_are_refused(gateway: Gateway, method: str) -> None:
    """A method that a route does not have is refused, whatever it is."""
    target = "localhost:80" if method == "CONNECT" else EMBEDDINGS
    answer = gateway.send(f"{method} {target} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    assert answer.startswith((b"HTTP/1.1 405 ", b"HTTP/1.1 400 ", b"HTTP/1.1 404 "))
