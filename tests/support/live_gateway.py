"""A gateway in a thread of this process, so that a test can look inside and break it; and raw connections to it."""

from __future__ import annotations

import dataclasses
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
from fastapi import FastAPI

from twinspire import sample_bundle
from twinspire_server.gateway.app import create_app
from twinspire_server.gateway.running import GatewayServer, listening
from twinspire_server.gateway.safety.options import SafetyOptions
from twinspire_server.gateway.settings import GatewaySettings

EMBEDDINGS = "/v1/embeddings"
BODY = {"model": "scenes", "input": "a red car"}


@dataclasses.dataclass(frozen=True)
class Gateway:
    """A gateway that listens: its address, its application and its server."""

    url: str
    app: FastAPI
    server: GatewayServer

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        host, port = self.url.removeprefix("http://").split(":")
        return host, int(port)

    def connect(self, timeout_s: float = 30) -> socket.socket:
        """Return a connection."""
        return socket.create_connection(self.address, timeout=timeout_s)

    def send(self, content: bytes, timeout_s: float = 30) -> bytes:
        """Send bytes, and return all that comes until the gateway closes or is silent for a moment."""
        with self.connect(timeout_s) as connection:
            connection.sendall(content)
            return received(connection)

    def post(self, body: object = BODY, **options: Any) -> httpx.Response:
        """Post an embedding request."""
        return httpx.post(self.url + EMBEDDINGS, json=body, timeout=60, **options)

    def metric(self, name: str, **labels: str) -> float:
        """Return the value of a metric, 0 where it has none yet."""
        return self.app.state.metrics.registry.get_sample_value(name, labels) or 0.0


def received(connection: socket.socket, quiet_s: float = 0.4) -> bytes:
    """Return what comes until the other side closes, resets, or is silent for a while once something came."""
    content = b""
    try:
        while chunk := connection.recv(65536):
            content += chunk
            connection.settimeout(quiet_s)
    except (TimeoutError, ConnectionResetError):
        pass
    return content


def is_closed(connection: socket.socket, within_s: float) -> bool:
    """Whether the other side closes the connection within a time, whatever it sends before."""
    connection.settimeout(within_s)
    try:
        while connection.recv(65536):
            pass
    except TimeoutError:
        return False
    except OSError:
        pass
    return True


def eventually(condition: Callable[[], bool], within_s: float = 20) -> bool:
    """Whether a condition becomes true."""
    until_s = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > until_s:
            return False
        time.sleep(0.02)
    return True


@contextmanager
def serving(settings: GatewaySettings | None = None, **safety: Any) -> Iterator[Gateway]:
    """Serve the sample bundle in a thread, with options of `SafetyOptions`. Raises what opening the gateway raises."""
    settings = settings or GatewaySettings(bundle=sample_bundle())
    options = SafetyOptions(**safety)
    app = create_app(dataclasses.replace(settings, safety=options))
    ready = threading.Event()
    with listening("127.0.0.1", 0) as listener:
        server = GatewayServer(app, options, None, ready.set)

        def run() -> None:
            try:
                server.run(sockets=[listener])
            except SystemExit:  # of uvicorn, where the application does not start
                ready.set()

        thread = threading.Thread(target=run)
        thread.start()
        try:
            assert ready.wait(120)
            if app.state.failure is not None:
                raise app.state.failure
            assert eventually(lambda: server.started)
            host, port = listener.getsockname()
            yield Gateway(f"http://{host}:{port}", app, server)
        finally:
            server.should_exit = True
            thread.join(60)
            assert not thread.is_alive()
