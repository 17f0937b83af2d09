"""`run`: the gateway under uvicorn, until Ctrl-C or SIGTERM."""

from __future__ import annotations

import socket
from collections.abc import Callable

import uvicorn

from twinspire.errors import InputError
from twinspire_server.gateway.app import create_app
from twinspire_server.gateway.settings import GatewaySettings


def run(settings: GatewaySettings, *, host: str, port: int, announce: Callable[[str], None]) -> None:
    """Serve until a signal; `announce` is called with the address once requests are answered.

    Raises InputError for an address that cannot be listened on, and what opening the client and the index raises.
    """
    app = create_app(settings)
    with _listening(host, port) as listener:
        url = f"http://{host}:{listener.getsockname()[1]}"
        app.state.announce = lambda: announce(url)
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, lifespan="on"))
        server.run(sockets=[listener])
    if app.state.failure is not None:
        raise app.state.failure


def _listening(host: str, port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise InputError(f"cannot listen on {host}:{port}: {error.strerror}", option="port") from error
    return listener
