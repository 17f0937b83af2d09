"""A gateway that listens, under uvicorn in a thread of this process."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any

import uvicorn

from twinspire_server.gateway.app import create_app
from twinspire_server.gateway.settings import GatewaySettings


@contextmanager
def served(settings: GatewaySettings, *, key: str | None = None) -> Iterator[str]:
    """Serve a gateway on a free port; yield its address. With `key` every request has shown the key of that name.

    Raises what opening the gateway raises.
    """
    app = create_app(settings)
    ready, ended = threading.Event(), threading.Event()
    app.state.announce = ready.set

    async def with_key(scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        if key is not None and scope["type"] == "http":
            scope.setdefault("state", {})["key"] = key
        await app(scope, receive, send)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(with_key, log_config=None, lifespan="on", timeout_graceful_shutdown=10))

        def run() -> None:
            try:
                server.run(sockets=[listener])
            except SystemExit:  # uvicorn's, where the start failed
                pass
            finally:
                ended.set()
                ready.set()

        thread = threading.Thread(target=run)
        thread.start()
        try:
            assert ready.wait(120)
            if app.state.failure is not None:
                raise app.state.failure
            assert not ended.is_set()
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(60)
            assert not thread.is_alive()
