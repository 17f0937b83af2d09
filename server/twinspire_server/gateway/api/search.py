"""`POST /v1/search`: search of the index by text, image and item."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response

from twinspire.errors import BundleError
from twinspire.search import Searcher, SearchResponse
from twinspire_server.gateway.api.bodies import (
    ERRORS,
    FORM,
    JSON,
    content_type,
    form_body,
    json_body,
    json_response,
    parsed,
    read_files,
)
from twinspire_server.gateway.api.queries import MAX_HITS, MAX_PARTS, count_inputs, search_request
from twinspire_server.gateway.api.service import SearchService, service_of
from twinspire_server.gateway.errors import GatewayError

_RULES = {"type": "array", "maxItems": MAX_PARTS}
_SCHEMA = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "text": {"type": "string", "description": "A query of one text, in place of `query`."},
        "query": {
            "description": "A text, or the parts of a weighted sum.",
            "oneOf": [
                {"type": "string"},
                {
                    **_RULES,
                    "minItems": 1,
                    "items": {
                        "type": "object",
                        "additionalProperties": False,
                        "properties": {
                            "text": {"type": "string"},
                            "image": {"type": "string", "description": "data:image/..., item:ID or upload:0."},
                            "audio": {"type": "string", "description": "data:audio/..., item:ID or upload:0."},
                            "weight": {"type": "number", "default": 1, "description": "Below 0: subtract."},
                        },
                    },
                },
            ],
        },
        "k": {"type": "integer", "minimum": 1, "maximum": MAX_HITS, "default": 10},
        "offset": {"type": "integer", "minimum": 0, "maximum": MAX_HITS, "default": 0},
        "kind": {"enum": ["image", "text", "audio", None]},
        "where": {"type": ["string", "null"], "description": "A filter over metadata: year >= 2020."},
        "mode": {"enum": ["auto", "vector", "keyword", "hybrid"], "default": "auto"},
        "boosts": {
            **_RULES,
            "items": {
                "type": "object",
                "additionalProperties": False,
                "required": ["where", "weight"],
                "properties": {"where": {"type": "string"}, "weight": {"type": "number"}},
            },
        },
        "pins": {**_RULES, "items": {"type": "string"}},
        "diversify": {"type": ["number", "null"], "minimum": 0, "maximum": 1},
        "min_score": {"type": ["number", "null"], "minimum": -1, "maximum": 1},
        "effort": {"type": ["integer", "null"], "minimum": 1},
        "group": {
            "type": ["number", "boolean", "null"],
            "minimum": 0,
            "maximum": 1,
            "description": "One of each group of near-equal hits, with the ids of the others in `similar`: the minimum "
            "cosine of two hits' vectors; true: the default, 0.98.",
        },
    },
}
_EXAMPLES = {
    "text": {"value": {"text": "a red car", "k": 10, "where": "year >= 2020"}},
    "sum": {"value": {"query": [{"text": "a beach"}, {"text": "people", "weight": -0.5}]}},
    "one of each": {"value": {"text": "a red car", "group": True}},
    "more like an item": {"value": {"query": [{"image": "item:0"}, {"text": "at night"}], "k": 20}},
}
_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            JSON: {"schema": _SCHEMA, "examples": _EXAMPLES},
            FORM: {
                "schema": {
                    "type": "object",
                    "required": ["request", "image"],
                    "properties": {
                        "request": {"type": "string", "description": "The same request, as JSON."},
                        "image": {"type": "array", "items": {"type": "string", "format": "binary"}},
                    },
                },
                "encoding": {"request": {"contentType": JSON}},
            },
        },
    }
}


def add_routes(router: APIRouter) -> None:
    """Add the route."""

    @router.post("/v1/search", summary="Search the index", openapi_extra=_BODY, responses=ERRORS, tags=["search"])
    async def search(request: Request) -> Response:
        service = service_of(request)
        document, uploads = await _read(request, service)
        with service.embedder.admitted(count_inputs(document)):
            response = await service.search(lambda searcher: _searched(searcher, document, uploads))
        return json_response(response.to_dict())


async def _read(request: Request, service: SearchService) -> tuple[Any, list[bytes]]:
    """Return the JSON of a request and its images."""
    if content_type(request, JSON, FORM) == JSON:
        return await json_body(request), []
    async with form_body(request, fields=("request", "image"), files=MAX_PARTS) as form:
        text = form.get("request")
        if not isinstance(text, str):
            raise GatewayError(400, 'the field request is missing: expected JSON, such as {"k": 10}', "request")
        uploads = await read_files(form, "image", service.client.limits)
        return parsed(text, "the field request"), uploads


def _searched(searcher: Searcher, document: object, uploads: list[bytes]) -> SearchResponse:
    request = search_request(document, uploads)  # parsed in the thread: filters and data URIs may be long
    try:
        return searcher.run(request)
    except BundleError as error:
        if request.rerank is None:
            raise
        raise GatewayError(400, str(error), "rerank", "unsupported_parameter") from error
