"""`run`: the gateway under uvicorn, until Ctrl-C or SIGTERM."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import resource
import signal
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI
from prometheus_client import make_asgi_app
from uvicorn.server import ServerState

from twinspire.errors import InputError
from twinspire.towers.triton.options import read_pem
from twinspire_server.gateway.app import create_app
from twinspire_server.gateway.safety.keys import VARIABLE
from twinspire_server.gateway.safety.options import SafetyOptions, checked_host, is_loopback
from twinspire_server.gateway.safety.protocol import ConnectionLimits, guarded
from twinspire_server.gateway.settings import GatewaySettings

_KEEP_ALIVE_S = 15
_METRICS_CONNECTIONS = 32
_log = logging.getLogger("twinspire")


def run(
    settings: GatewaySettings,
    *,
    host: str,
    port: int,
    announce: Callable[[str], None],
    announce_metrics: Callable[[str], None],
) -> None:
    """Serve until a signal; `announce` is called with the address once requests are answered.

    SIGTERM and Ctrl-C end it: readiness goes, what began is finished. SIGHUP reads the keys again.

    Raises InputError for an address that cannot be listened on, for one that other machines reach without keys, and
    for files that cannot be used; and what opening the client and the index raises.
    """
    safety = settings.safety
    host = checked_host(host, "host")
    if safety.tls_certificate is not None and safety.tls_key is not None:
        _check_tls(safety)
    app = create_app(dataclasses.replace(settings, host_names=_host_names(host, safety)))
    has_keys = app.state.keys is not None
    if not is_loopback(host) and not has_keys and not safety.insecure:
        raise InputError(
            f"other machines can reach {host}, and anybody there could use the gateway: ask for a key with --keys FILE "
            f"or {VARIABLE}, or pass --insecure",
            option="insecure",
        )
    if not is_loopback(host) and has_keys and safety.tls_certificate is None:
        _log.warning("keys travel to %s unencrypted: add --tls-certificate, or put a proxy with TLS in front", host)
    scheme = "http" if safety.tls_certificate is None else "https"
    with listening(host, port) as listener, _metrics_listener(safety) as metrics_listener:

        def announce_all() -> None:
            announce(f"{scheme}://{_address(listener)}")
            if metrics_listener is not None:
                announce_metrics(f"http://{_address(metrics_listener)}/metrics")

        server = GatewayServer(app, safety, metrics_listener, announce_all)
        try:
            server.run(sockets=[listener])
        except SystemExit:  # of uvicorn, where the application does not start
            if app.state.failure is None:
                raise
    if app.state.failure is not None:
        raise app.state.failure


class GatewayServer(uvicorn.Server):
    """uvicorn with the metrics on a port of their own, a shutdown that load balancers notice, and exit status 0."""

    def __init__(
        self,
        app: FastAPI,
        safety: SafetyOptions,
        metrics_listener: socket.socket | None,
        announce: Callable[[], None],
    ) -> None:
        self._app, self._safety, self._metrics_listener, self._announce = app, safety, metrics_listener, announce
        self._metrics_server: asyncio.Server | None = None
        metrics = app.state.metrics
        limits = ConnectionLimits(safety.max_connections, safety.read_timeout, closed=metrics.count_closed)
        super().__init__(_config(app, limits, safety, timeout_graceful_shutdown=max(1, round(safety.shutdown_timeout))))
        metrics.watch("connections", "Open connections", lambda: len(self.server_state.connections))

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, metrics first, so that a gateway that waits for its servers can be watched; announce what listens."""
        _raise_open_files(2 * self._safety.max_connections + 256)
        if self._metrics_listener is not None:
            self._metrics_server = await _serve_metrics(self._app, self._metrics_listener)
        await super().startup(sockets)
        self._announce()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Be ready no more, serve on for `--shutdown-delay`, then finish what began, and end endless streams."""
        self._app.state.readiness.stop()
        loop = asyncio.get_running_loop()
        until_s = loop.time() + self._safety.shutdown_delay
        while loop.time() < until_s and not self.force_exit:
            await asyncio.sleep(0.1)
        for request in list(self._app.state.metrics.active):
            if request.is_stream:
                request.disconnect()
        await super().shutdown(sockets)
        if self._metrics_server is not None:
            self._metrics_server.close()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle signals while it serves. uvicorn's own way sends a signal that was obeyed to the process again."""
        handlers: dict[int, Callable[[int, FrameType | None], None]] = {
            signal.SIGINT: self._stop,
            signal.SIGTERM: self._stop,
            signal.SIGHUP: self._reload,
        }
        if threading.current_thread() is not threading.main_thread():  # which alone gets signals
            yield
            return
        before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        if not self.started:  # while the client connects, which may wait for servers
            raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)
        self.handle_exit(number, frame)

    def _reload(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - a signal handler's
        if self._app.state.keys is not None:
            self._app.state.keys.reload()


def _config(app: Any, limits: ConnectionLimits, safety: SafetyOptions | None, **more: Any) -> uvicorn.Config:  # noqa: ANN401
    return uvicorn.Config(
        app,
        http=guarded(limits),
        ws="none",
        log_config=None,
        log_level="critical",  # `Failures` logs what fails, with the request's id
        access_log=False,
        server_header=False,
        proxy_headers=False,  # any client could name an address
        timeout_keep_alive=_KEEP_ALIVE_S,
        ssl_certfile=None if safety is None else safety.tls_certificate,
        ssl_keyfile=None if safety is None else safety.tls_key,
        **more,
    )


async def _serve_metrics(app: FastAPI, listener: socket.socket) -> asyncio.Server:
    limits = ConnectionLimits(_METRICS_CONNECTIONS, header_timeout_s=5, write_timeout_s=5)
    config = _config(make_asgi_app(app.state.metrics.registry), limits, None, lifespan="off")
    config.load()
    state = ServerState()
    protocol = guarded(limits)
    return await asyncio.get_running_loop().create_server(
        lambda: protocol(config=config, server_state=state, app_state={}), sock=listener
    )


def _host_names(host: str, safety: SafetyOptions) -> tuple[str, ...] | None:
    """Return the names that browsers may reach the gateway by, None for any: other machines call it as they like."""
    return ("localhost", *(safety.host_name or ())) if is_loopback(host) else None


def _check_tls(safety: SafetyOptions) -> None:
    """Raise InputError unless the certificate and the key can be used together."""
    assert safety.tls_certificate is not None
    assert safety.tls_key is not None
    for path in (safety.tls_certificate, safety.tls_key):
        read_pem(path)
    try:
        # Without a password OpenSSL would ask for one on the terminal.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(safety.tls_certificate, safety.tls_key, password="")
    except (ssl.SSLError, ValueError) as error:
        raise InputError(
            f"the TLS certificate {safety.tls_certificate} and the key {safety.tls_key} cannot be used together: "
            f"{error}. Expected a certificate in PEM and its private key without a password",
            option="--tls-key",
            path=safety.tls_key,
        ) from error


def _raise_open_files(count: int) -> None:
    """Allow as many open files as connections need, as far as the system does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count if hard == resource.RLIM_INFINITY else min(count, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    if wanted < count:
        _log.warning("the system allows %d open files, --max-connections may need %d", wanted, count)


def _metrics_listener(safety: SafetyOptions) -> Any:  # noqa: ANN401 - a context manager of a socket or None
    if safety.metrics_port is None:
        return nullcontext()
    return listening(checked_host(safety.metrics_host, "metrics_host"), safety.metrics_port)


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def listening(host: str, port: int) -> socket.socket:
    """Return a socket bound to an address. Raises InputError where that is not possible."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise InputError(
            f"cannot listen on {host}:{port}: {error.strerror}. Choose another address with --host or --port; port 0 "
            "picks a free one",
            option="port",
        ) from error
    return listener
