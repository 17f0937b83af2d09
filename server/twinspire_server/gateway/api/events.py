"""`GET /v1/items/events`: server-sent events of the index, whoever adds to it."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse

from twinspire_server.gateway.api.bodies import ERRORS
from twinspire_server.gateway.api.service import service_of

_RESPONSES: dict[int | str, dict[str, Any]] = {
    **ERRORS,
    200: {
        "description": "`index` with items, generation and space, at once and at every change; `upload` with done and "
        "total while images are added",
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
    },
}


def add_routes(router: APIRouter) -> None:
    """Add the route."""

    @router.get(
        "/v1/items/events",
        summary="Events of the index",
        responses=_RESPONSES,
        response_class=Response,
        tags=["items"],
    )
    async def events(request: Request) -> Response:
        stream = await service_of(request).events.listen()
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        return StreamingResponse(stream, headers=headers, media_type="text/event-stream")
