"""The HTTP dialects. A dialect is one module here, and a line in `DIALECTS`.

Those that share a path are told apart by the form of the body, see `shared_path`.
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.exceptions import RequestValidationError

from twinspire_server.gateway.dialects.cohere import Cohere
from twinspire_server.gateway.dialects.dialect import Dialect
from twinspire_server.gateway.dialects.immich import Immich
from twinspire_server.gateway.dialects.infinity import Infinity
from twinspire_server.gateway.dialects.jina import Jina
from twinspire_server.gateway.dialects.nim import Nim
from twinspire_server.gateway.dialects.openai import OpenAi
from twinspire_server.gateway.dialects.shared_path import add_shared_route, tag_of
from twinspire_server.gateway.dialects.vllm import Vllm
from twinspire_server.gateway.dialects.voyage import Voyage
from twinspire_server.gateway.dialects.weaviate import Weaviate
from twinspire_server.gateway.json_route import JsonRoute

DIALECTS: tuple[Dialect, ...] = (
    OpenAi(),
    Vllm(),
    Nim(),
    Jina(),
    Infinity(),
    Cohere(),
    Voyage(),
    Immich(),
    Weaviate(),
)

_ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"description": "The request cannot be answered. The body says why, in the form of the dialect."},
    "5XX": {"description": "The server of models fails or is away, in the form of the dialect."},
}


def dialects_router() -> APIRouter:
    """Return the routes of all dialects."""
    router = APIRouter(route_class=JsonRoute, strict_content_type=False, responses=_ERRORS)
    add_shared_route(router)
    for dialect in DIALECTS:
        dialect.add_routes(router)
    return router


def dialect_of(path: str) -> Dialect:
    """Return the dialect of a path, which says how its errors look; OpenAI's for a path that has none."""
    return next((dialect for dialect in DIALECTS if path in dialect.paths), DIALECTS[0])


def dialect_of_error(request: Request, error: Exception) -> Dialect:
    """Return the dialect of a request that failed: that of its body where it is known, else that of its path."""
    known: Dialect | None = getattr(request.state, "dialect", None)
    if known is not None:
        return known
    if isinstance(error, RequestValidationError):
        tags = {tag_of(dialect): dialect for dialect in DIALECTS}
        for part in error.errors()[0]["loc"][1:2]:
            if part in tags:
                return tags[part]
    return dialect_of(request.url.path)


__all__ = ["DIALECTS", "Dialect", "dialect_of", "dialect_of_error", "dialects_router"]
