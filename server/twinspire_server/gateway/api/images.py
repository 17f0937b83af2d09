"""`GET /v1/items/{id}/image`: the image of an item, reduced, upright and without metadata."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from twinspire_server.gateway.api.bodies import ERRORS
from twinspire_server.gateway.api.encoding import stored_item
from twinspire_server.gateway.api.items import ItemId
from twinspire_server.gateway.api.service import service_of
from twinspire_server.gateway.api.thumbnails import MAX_SIZE

_HASH_DIGITS = 32
_RESPONSES: dict[int | str, dict[str, Any]] = {
    **ERRORS,
    200: {"description": "A JPEG", "content": {"image/jpeg": {"schema": {"type": "string", "format": "binary"}}}},
    304: {"description": "The client has this image: If-None-Match names it"},
}


def add_routes(router: APIRouter) -> None:
    """Add the route."""

    @router.get(
        "/v1/items/{id}/image",
        summary="The image of an item",
        responses=_RESPONSES,
        response_class=Response,
        tags=["items"],
    )
    async def image(
        request: Request,
        id: ItemId,  # noqa: A002 - the path's name
        size: Annotated[int, Query(ge=16, le=MAX_SIZE, description="The most pixels a side.")] = 320,
    ) -> Response:
        service = service_of(request)
        item = await service.search(lambda searcher: stored_item(searcher.index, id))
        thumbnail = await service.thumbnails.of(item, size)
        tag = f'"{thumbnail.content_hash[:_HASH_DIGITS]}-{size}"'
        headers = {"ETag": tag, "Cache-Control": "private, max-age=300", "X-Content-Type-Options": "nosniff"}
        if tag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return Response(thumbnail.jpeg, headers=headers, media_type="image/jpeg")
