"""Routes that take JSON: parsed by orjson, and a clear error for any other type of content."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

import orjson
from fastapi import Request, Response
from fastapi.routing import APIRoute

from twinspire_server.gateway.errors import GatewayError


class JsonRoute(APIRoute):
    """A route whose body, if it has one, is JSON.

    orjson parses base64 of megabytes faster than the standard library, and refuses what is nested too deep instead of
    raising RecursionError. A body without a Content-Type is JSON: Weaviate and LiteLLM send none. The router needs
    `strict_content_type=False`, so that FastAPI takes it too.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return FastAPI's handler, behind the check of the content type."""
        handle = super().get_route_handler()
        takes_json = self.body_field is not None

        async def checked(request: Request) -> Response:
            if takes_json:
                _check(request.headers.get("content-type", ""))
            return await handle(_JsonRequest(request.scope, request.receive))

        return checked


def _check(content_type: str) -> None:
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type not in ("", "application/json") and not media_type.endswith("+json"):
        message = f"Content-Type {media_type!r}: expected application/json"
        raise GatewayError(415, message, code="unsupported_media_type")


class _JsonRequest(Request):
    async def json(self) -> Any:  # noqa: ANN401 - JSON
        """Parse the body. Raises orjson.JSONDecodeError, which is a json.JSONDecodeError."""
        if not hasattr(self, "_json"):
            self._json = orjson.loads(await self.body())
        return self._json
