"""`Bodies`: reads each request's body within its limits before anything looks at it."""

from __future__ import annotations

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from twinspire_server.gateway.errors import RETRY_AFTER_S, GatewayError
from twinspire_server.gateway.safety.context import RequestContext

MIN_BYTES_PER_S = 16 * 1024
"""The slowest upload that is waited for, beyond the timeout."""
MOST_COMMAS = 65536
"""The most commas in a JSON body: 32 for each of 2,048 texts; an image as a data URI has one.

Each value that is not as expected costs 10 us and a kilobyte when errors are listed, so that 64 MiB of `1,1,1` would
stop the gateway for minutes. Counting commas takes 0.1 ms a MiB.
"""


class Bodies:
    """Middleware that bounds bodies in size, time and all together, and refuses compressed ones.

    The application gets a body whole. Raises GatewayError: 413 for more than `max_bytes`, announced or sent, and for
    JSON with more than `MOST_COMMAS` commas; 415 for a Content-Encoding, since a small body could become any size; 408
    where it takes longer than `timeout_s` and what its bytes take at 16 KiB/s; 503 where the bodies of all requests
    have more than `max_held_bytes`.
    """

    def __init__(self, app: ASGIApp, *, max_bytes: int, max_held_bytes: int, timeout_s: float) -> None:
        self._app = app
        self._max_bytes, self._max_held_bytes, self._timeout_s = max_bytes, max_held_bytes, timeout_s
        self._held_bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Read the body, then hand the request on."""
        if scope["type"] != "http" or not self._announces_body(scope):
            await self._app(scope, receive, send)
            return
        context: RequestContext = scope["state"]["context"]
        try:
            body = await self._read(receive, context)
            if body is not None:
                _check_values(scope, body)
                await self._app(scope, _replayed(body, receive), send)
        finally:
            self._held_bytes -= context.request_bytes

    def _announces_body(self, scope: Scope) -> bool:
        """Whether a body comes. Raises GatewayError by its headers alone."""
        has_body = False
        for name, value in scope["headers"]:
            if name == b"content-encoding" and value.strip().lower() != b"identity":
                raise GatewayError(
                    415, "the body is compressed: send it without Content-Encoding", code="compressed_body"
                )
            if name == b"content-length":
                has_body = True
                if int(value) > self._max_bytes:
                    raise self._too_large()
            has_body |= name == b"transfer-encoding"
        return has_body

    async def _read(self, receive: Receive, context: RequestContext) -> bytes | None:
        """Return the body, None where the client is gone."""
        chunks: list[bytes] = []
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + self._timeout_s
        try:
            async with asyncio.timeout_at(deadline_s) as timeout:
                while True:
                    message = await receive()
                    if message["type"] != "http.request":
                        return None
                    chunk: bytes = message.get("body", b"")
                    if chunk:
                        self._hold(len(chunk), context)
                        chunks.append(chunk)
                        timeout.reschedule(deadline_s + context.request_bytes / MIN_BYTES_PER_S)
                    if not message.get("more_body", False):
                        return chunks[0] if len(chunks) == 1 else b"".join(chunks)
        except TimeoutError:
            raise GatewayError(
                408,
                f"the body took longer than {self._timeout_s:g} s and its {context.request_bytes} bytes at "
                f"{MIN_BYTES_PER_S // 1024} KiB/s: send it faster, or in smaller requests",
                code="body_timeout",
                headers={"Connection": "close"},
            ) from None

    def _hold(self, count: int, context: RequestContext) -> None:
        if context.request_bytes + count > self._max_bytes:
            raise self._too_large()
        if self._held_bytes + count > self._max_held_bytes:
            raise GatewayError(
                503,
                "too many large requests at a time: try again later",
                code="too_many_bytes",
                headers={"Retry-After": str(RETRY_AFTER_S)},
            )
        context.request_bytes += count
        self._held_bytes += count

    def _too_large(self) -> GatewayError:
        return GatewayError(
            413,
            f"the body is larger than {self._max_bytes} bytes: send fewer or smaller images in a request",
            code="body_too_large",
        )


def _check_values(scope: Scope, body: bytes) -> None:
    is_json = any(name == b"content-type" and b"json" in value.lower() for name, value in scope["headers"])
    if is_json and body.count(b",") > MOST_COMMAS:
        raise GatewayError(
            413,
            f"the JSON has more than {MOST_COMMAS} commas, in texts or between values: send fewer in a request",
            code="too_many_values",
        )


def _replayed(body: bytes, receive: Receive) -> Receive:
    is_given = False

    async def replay() -> Message:
        nonlocal is_given
        if is_given:
            return await receive()
        is_given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay
