"""`Gate`: refuses requests of browsers that were led here by other pages, and those beyond the bound on connections."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Collection
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Receive, Scope, Send

from twinspire_server.gateway.errors import RETRY_AFTER_S, GatewayError

_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


class Gate:
    """Middleware that looks at where a request comes from. Raises GatewayError.

    - A connection above the bound: 503; health routes (`is_health`) are answered all the same.
    - `host_names`, where given, are the names that the gateway may be called by, beside IP addresses: 421 for others.
      A page whose name is made to point to this machine (DNS rebinding) sends its own name.
    - A page of another origin, unless it is one of `origins`: 403. Browsers send simple requests of any page, and only
      keep the answer from it.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        host_names: Collection[str] | None,
        origins: Collection[str],
        is_health: Callable[[str], bool],
    ) -> None:
        self._app, self._is_health = app, is_health
        self._host_names = None if host_names is None else {name.lower() for name in host_names}
        self._origins = set(origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check where the request comes from, then hand it on."""
        if scope["type"] == "http":
            self._check(scope)
        elif scope["type"] == "websocket":
            raise GatewayError(404, "there are no WebSockets here")
        await self._app(scope, receive, send)

    def _check(self, scope: Scope) -> None:
        connection = scope.get("twinspire.connection")
        if connection is not None and connection.is_above_bound and not self._is_health(scope["path"]):
            raise GatewayError(
                503,
                "too many connections: try again later",
                code="too_many_connections",
                headers={"Retry-After": str(RETRY_AFTER_S), "Connection": "close"},
            )
        if scope["method"] not in _METHODS:
            raise GatewayError(405, f"the method {scope['method']!r} is not known", code="method_not_allowed")
        host = origin = b""
        for name, value in scope["headers"]:
            if name == b"host":
                host = value
            elif name == b"origin":
                origin = value
        if self._host_names is not None and not _may_be_called(host, self._host_names):
            raise GatewayError(
                421, f"the host {_shown(host)} is not served here: name it with --host-name", code="unknown_host"
            )
        if origin and not self._is_allowed(origin, host):
            raise GatewayError(
                403, f"pages of {_shown(origin)} may not use this gateway: allow them with --cors-origin", code="origin"
            )

    def _is_allowed(self, origin: bytes, host: bytes) -> bool:
        text = origin.decode("latin-1")
        return "*" in self._origins or text in self._origins or text.partition("://")[2].encode("latin-1") == host


def _may_be_called(host: bytes, names: Collection[str]) -> bool:
    try:
        name = urlsplit(f"//{host.decode('ascii')}").hostname or ""
    except ValueError:
        return False
    if name in names:
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _shown(value: bytes) -> str:
    return ascii(value[:100].decode("latin-1"))
