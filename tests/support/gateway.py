"""A gateway that listens, under uvicorn in a thread of this process."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from twinspire_server.gateway.app import create_app
from twinspire_server.gateway.settings import GatewaySettings


@contextmanager
def served(settings: GatewaySettings) -> Iterator[str]:
    """Serve a gateway on a free port; yield its address. Raises what opening the gateway raises."""
    app = create_app(settings)
    ready, ended = threading.Event(), threading.Event()
    app.state.announce = ready.set
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="on", timeout_graceful_shutdown=10))

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
