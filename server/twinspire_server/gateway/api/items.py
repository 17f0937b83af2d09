"""`GET /v1/items/{id}`: an item of the index."""

from __future__ import annotations

from typing import Annotated, Any, TypeAlias

from fastapi import APIRouter, Path, Request, Response

from twinspire._codec import encode
from twinspire.search import Searcher
from twinspire_server.gateway.api.bodies import ERRORS, json_response
from twinspire_server.gateway.api.encoding import stored_item
from twinspire_server.gateway.api.service import service_of

ItemId: TypeAlias = Annotated[int, Path(ge=0, le=2**63 - 1, description="The id of an item, as hits have it.")]


def add_routes(router: APIRouter) -> None:
    """Add the route."""

    @router.get("/v1/items/{id}", summary="An item of the index", responses=ERRORS, tags=["items"])
    async def item(request: Request, id: ItemId) -> Response:  # noqa: A002 - the path's name
        def read(searcher: Searcher) -> dict[str, Any]:
            document: dict[str, Any] = encode(stored_item(searcher.index, id))
            return document

        return json_response(await service_of(request).search(read))
