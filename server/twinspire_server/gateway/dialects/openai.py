"""OpenAI's embeddings API, `POST /v1/embeddings`: https://platform.openai.com/docs/api-reference/embeddings."""

from __future__ import annotations

import base64
from typing import Annotated, Any, ClassVar, Literal

import orjson
from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from twinspire_server.gateway.dialects.dialect import Dialect, embedder_of
from twinspire_server.gateway.embedder import Embeddings
from twinspire_server.gateway.errors import GatewayError
from twinspire_server.gateway.inputs import EmbedRequest, Text

_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


class EmbeddingsBody(BaseModel):
    """A request of the OpenAI API."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"model": "scenes", "input": ["a red car", "一只白色的狗"]}]}
    )

    model: str
    input: str | Annotated[list[str], Field(min_length=1)]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int, Field(ge=1)] | None = None
    user: str | None = None

    def to_request(self) -> EmbedRequest:
        """Return the request of any dialect."""
        texts = [self.input] if isinstance(self.input, str) else self.input
        return EmbedRequest(inputs=tuple(map(Text, texts)), model=self.model, dimensions=self.dimensions)


class OpenAi(Dialect):
    """OpenAI's API."""

    name = "openai"
    paths: ClassVar = ("/v1/embeddings", "/v1/models")

    def add_routes(self, router: APIRouter) -> None:
        """Add /v1/embeddings and /v1/models."""

        @router.post("/v1/embeddings", summary="Embeddings of texts")
        async def embeddings(request: Request, body: EmbeddingsBody) -> Response:
            found = await embedder_of(request).embed(body.to_request())
            return embeddings_response(found, body.model, encoding_format=body.encoding_format)

        @router.get("/v1/models", summary="The model that is served")
        async def models(request: Request) -> dict[str, Any]:
            embedder = embedder_of(request)
            return {
                "object": "list",
                "data": [{"id": embedder.model, "object": "model", "created": 0, "owned_by": "twinspire"}],
            }

    def error(self, error: GatewayError) -> dict[str, Any]:
        """Return `{"error": {"message", "type", "param", "code"}}`."""
        kind = _TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "server_error")
        return {"error": {"message": error.message, "type": kind, "param": error.param, "code": error.code}}


def embeddings_response(embeddings: Embeddings, model: str, *, encoding_format: str = "float") -> Response:
    """Return OpenAI's list of embeddings: arrays of numbers, or base64 of little-endian float32."""
    rows: list[Any] = list(embeddings.vectors)
    if encoding_format == "base64":
        rows = [base64.b64encode(row.astype("<f4", copy=False).tobytes()).decode("ascii") for row in rows]
    document = {
        "object": "list",
        "data": [{"object": "embedding", "index": index, "embedding": row} for index, row in enumerate(rows)],
        "model": model,
        "usage": {"prompt_tokens": embeddings.tokens, "total_tokens": embeddings.tokens},
    }
    return Response(orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY), media_type="application/json")
