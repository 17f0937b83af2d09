"""Bodies of requests, JSON or multipart, and JSON responses."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import orjson
from fastapi import Request, Response
from starlette.datastructures import FormData, UploadFile

from twinspire.images import ImageLimits
from twinspire_server.gateway.errors import GatewayError

JSON, FORM = "application/json", "multipart/form-data"
MAX_FIELD_BYTES = 2**20
"""The most bytes of a form's field that is no file."""
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"description": text}
    for status, text in {
        400: "The request is invalid",
        404: "There is no such item",
        409: "The index is of another space than the served model",
        413: "The body is too large",
        415: "The body is of another content type",
        429: "Too many inputs wait: try again after the seconds of Retry-After",
        501: "The gateway was started without what this needs",
        503: "The server of models, or the writer of the index, is busy: try again later",
    }.items()
}
"""Responses of every route for its OpenAPI description."""


def content_type(request: Request, *expected: str) -> str:
    """Return the content type of the body. Raises GatewayError unless it is one of `expected`.

    A browser sends JSON across sites only where the server allows it; any form and plain text it just sends.
    """
    found = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if found not in expected:
        raise GatewayError(
            415,
            f"the body is {found or 'of no content type'}: expected {' or '.join(expected)}",
            code="unsupported_media_type",
        )
    return found


async def json_body(request: Request) -> Any:  # noqa: ANN401 - parsed JSON
    """Return the body as JSON. Raises GatewayError for another content type and for invalid JSON."""
    content_type(request, JSON)
    return parsed(await request.body(), "the body")


def parsed(text: bytes | str, what: str) -> Any:  # noqa: ANN401 - parsed JSON
    """Return JSON. Raises GatewayError, in which the text is called `what`."""
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise GatewayError(400, f"{what} is not JSON: {error}", code="invalid_json") from error


@asynccontextmanager
async def form_body(request: Request, *, fields: Sequence[str], files: int) -> AsyncIterator[FormData]:
    """Give a multipart form, whose files are closed at the end.

    Raises GatewayError for a field that is none of `fields` and for more than `files` of any.
    """
    async with request.form(max_files=files, max_fields=files * len(fields), max_part_size=MAX_FIELD_BYTES) as form:
        unknown = next((name for name in form if name not in fields), None)
        if unknown is not None:
            raise GatewayError(
                400, f"unknown field {unknown!r}: expected {', '.join(fields)}", unknown, "unknown_field"
            )
        yield form


async def read_files(form: FormData, name: str, limits: ImageLimits) -> list[bytes]:
    """Return the content of a form's files. Raises GatewayError for a text in place of one and a file above the limit.

    The limit is checked before the file is read into memory.
    """
    contents = []
    for position, file in enumerate(form.getlist(name)):
        place = f"{name}[{position}]"
        if not isinstance(file, UploadFile):
            raise GatewayError(400, f"{place} is a text: expected a file", place, "invalid_image")
        if (file.size or 0) > limits.max_bytes:
            raise GatewayError(
                413,
                f"{place} has {(file.size or 0) / 2**20:.1f} MiB: expected {limits.max_bytes / 2**20:g} at most",
                place,
                "too_large",
            )
        contents.append(await file.read())
    return contents


def json_response(document: object, status: int = 200) -> Response:
    """Return a JSON response. Metadata may have integers beyond 64 bits, which orjson refuses."""
    try:
        body = orjson.dumps(document)
    except TypeError:
        body = json.dumps(document, ensure_ascii=False, allow_nan=False).encode()
    return Response(body, status, media_type=JSON)
