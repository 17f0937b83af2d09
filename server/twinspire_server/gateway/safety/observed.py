"""`Observed`: gives each request an id, and writes down what became of it."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime
from logging.handlers import WatchedFileHandler
from pathlib import Path

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from twinspire._arguments import file_errors, printable
from twinspire_server.gateway.safety.context import RequestContext, enter, request_id
from twinspire_server.gateway.safety.metrics import GatewayMetrics

_CLIENT_CLOSED = 499  # nginx's number for a client that did not wait
_LONGEST_PATH = 200


class Observed:
    """Middleware that begins and ends the `RequestContext`: `scope["state"]["context"]`, header X-Request-ID.

    `dialect_of` names the dialect of a path. Requests of health routes are not written to the access log.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        metrics: GatewayMetrics,
        access_log: AccessLog | None,
        dialect_of: Callable[[str], str],
        is_health: Callable[[str], bool],
    ) -> None:
        self._app, self._metrics, self._access_log = app, metrics, access_log
        self._dialect_of, self._is_health = dialect_of, is_health

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand the request on between the beginning and the end of its context."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = next((value for name, value in scope["headers"] if name == b"x-request-id"), None)
        context = RequestContext(request_id(given), scope["method"], scope["path"], task=asyncio.current_task())
        scope.setdefault("state", {})["context"] = context
        enter(context)
        connection = scope.get("twinspire.connection")
        if connection is not None:
            connection.requests.add(context)

        async def send_observed(message: Message) -> None:
            if message["type"] == "http.response.start":
                context.status = message["status"]
                headers = [*message.get("headers", ()), (b"x-request-id", context.id.encode("ascii"))]
                context.is_stream = any(value.startswith(b"text/event-stream") for _, value in headers)
                message = {**message, "headers": headers}
            else:
                context.response_bytes += len(message.get("body", b""))
            await send(message)

        self._metrics.begin(context)
        try:
            await self._app(scope, receive, send_observed)
        finally:
            if connection is not None:
                connection.requests.discard(context)
            self._end(context, scope)

    def _end(self, context: RequestContext, scope: Scope) -> None:
        if context.is_disconnected and not context.status:
            context.status = _CLIENT_CLOSED
        seconds = time.perf_counter() - context.began_s
        route = getattr(scope.get("route"), "path", None) or "other"
        dialect = context.dialect or self._dialect_of(context.path)
        self._metrics.end(context, seconds, route=route, dialect=dialect)
        if self._access_log is not None and not self._is_health(context.path):
            self._access_log.write(context, seconds, dialect=dialect, client=(scope.get("client") or ("",))[0])


class AccessLog:
    """A file with a line of JSON for each request; one that was renamed is made anew.

    A line has no texts, images, keys or query strings. Raises InputError where the file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        with file_errors(f"the access log {path} cannot be written", path):
            self._handler = WatchedFileHandler(path, encoding="utf-8")

    def write(self, context: RequestContext, seconds: float, *, dialect: str, client: str) -> None:
        """Append the line of a request that has ended."""
        line = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "id": context.id,
            "client": client,
            "key": context.key,
            "dialect": dialect,
            "method": context.method,
            "path": printable(context.path, limit=_LONGEST_PATH),
            "status": context.status,
            "refusal": context.refusal,
            "ms": round(1000 * seconds, 3),
            "inputs": context.inputs,
            "request_bytes": context.request_bytes,
            "response_bytes": context.response_bytes,
        }
        message = json.dumps(line)
        self._handler.handle(logging.LogRecord("access", logging.INFO, "", 0, message, None, None))

    def close(self) -> None:
        """Close the file."""
        self._handler.close()
