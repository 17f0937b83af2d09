"""How responses are written to the network."""

from __future__ import annotations

import asyncio

import httptools
import pytest
import uvicorn
from uvicorn.server import ServerState

from twinspire_server.gateway.joined_writes import JoinedWrites
from twinspire_server.gateway.safety.protocol import ConnectionLimits, guarded


class _Wire(asyncio.Transport):
    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []
        self.closed = False

    def write(self, data: bytes) -> None:  # type: ignore[override]
        self.writes.append(bytes(data))

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True


def _writes_of(body: bytes, parts: int, request: bytes) -> _Wire:
    """Answer a request with a body in parts; return what was written."""

    async def app(scope: object, receive: object, send: object) -> None:
        headers = [(b"content-length", str(len(body) * parts).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})  # type: ignore[operator]
        for part in range(parts):
            more = part < parts - 1
            await send({"type": "http.response.body", "body": body, "more_body": more})  # type: ignore[operator]

    async def run() -> _Wire:
        limits = ConnectionLimits(10, 5.0)
        config = uvicorn.Config(app, http=guarded(limits), log_config=None, lifespan="off")  # type: ignore[arg-type]
        config.load()
        protocol = guarded(limits)(config=config, server_state=ServerState(), app_state={})
        wire = _Wire()
        protocol.connection_made(wire)
        protocol.data_received(request)
        await asyncio.sleep(0.05)
        protocol.connection_lost(None)
        return wire

    return asyncio.run(run())


def _body_of(written: bytes) -> bytes:
    found = bytearray()

    class _Sink:
        def on_body(self, body: bytes) -> None:
            found.extend(body)

    httptools.HttpResponseParser(_Sink()).feed_data(written)
    return bytes(found)


def test_a_response_is_one_write() -> None:
    """Head and body go out together: a killed gateway leaves a whole response or none."""
    wire = _writes_of(b"x" * 5000, 1, b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
    assert len(wire.writes) == 1
    assert _body_of(wire.writes[0]) == b"x" * 5000


@pytest.mark.parametrize("size", [100_000, 1])
def test_nothing_of_a_body_in_parts_is_lost(size: int) -> None:
    """Large and small parts arrive in order, in no larger pieces than needed, also where the connection then closes."""
    wire = _writes_of(b"y" * size, 5, b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
    assert wire.closed
    assert _body_of(b"".join(wire.writes)) == b"y" * size * 5
    assert max(map(len, wire.writes)) < 2 * size + 1000


def test_nothing_is_written_to_a_client_that_left() -> None:
    """Of a connection that ended within a turn the rest is dropped: uvloop refuses to write to it."""

    async def run() -> _Wire:
        wire = _Wire()
        joined = JoinedWrites(wire, asyncio.get_running_loop())
        joined.write(b"HTTP/1.1 200 OK\r\n\r\n")
        wire.closed = True
        joined.close()
        await asyncio.sleep(0)
        return wire

    assert asyncio.run(run()).writes == []
