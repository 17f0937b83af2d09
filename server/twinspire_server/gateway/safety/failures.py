"""`Failures`: every request ends with an answer in its dialect's form, whatever was raised."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from twinspire_server.gateway.errors import RETRY_AFTER_S, GatewayError
from twinspire_server.gateway.safety.context import RequestContext

_log = logging.getLogger("twinspire")


class Failures:
    """Middleware that turns exceptions into answers: `respond` writes a GatewayError in the form of a path's dialect.

    What nobody expected is a 500 that names the request's id and nothing else; the log has the traceback under that
    id. A request whose client is gone ends without an answer.
    """

    def __init__(self, app: ASGIApp, *, respond: Callable[[str, GatewayError], Response]) -> None:
        self._app, self._respond = app, respond

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand the request on, and answer what it raises."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        context: RequestContext = scope["state"]["context"]
        has_begun = False

        async def send_noting(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        try:
            await self._app(scope, receive, send_noting)
            return
        except GatewayError as raised:
            error = raised
        except asyncio.CancelledError:
            if context.is_disconnected:
                return
            error = _unavailable()
        except Exception:
            if context.is_disconnected:
                return
            _log.exception("request %s: %s %s failed", context.id, context.method, ascii(context.path[:200]))
            error = GatewayError(
                500, f"the gateway failed; its log has the cause under {context.id}", code="internal_error"
            )
        if has_begun:
            # Half an answer must not look like a whole one: the server closes the connection.
            raise error
        await refuse(self._respond(scope["path"], error), error, scope, receive, send)


async def refuse(response: Response, error: GatewayError, scope: Scope, receive: Receive, send: Send) -> None:
    """Send the answer of an error, and note its code for log and metrics."""
    context: RequestContext = scope["state"]["context"]
    context.refusal = error.code
    await response(scope, receive, send)


def _unavailable() -> GatewayError:
    return GatewayError(
        503,
        "the gateway is being stopped and did not finish in time: try again",
        code="shutting_down",
        headers={"Retry-After": str(RETRY_AFTER_S), "Connection": "close"},
    )
