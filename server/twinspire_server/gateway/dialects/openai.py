"""OpenAI's embeddings API, `POST /v1/embeddings`: https://platform.openai.com/docs/api-reference/embeddings."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from fastapi import APIRouter, Request, Response
from pydantic import Field

from twinspire_server.gateway.dialects.dialect import Dialect, EmbedBody, embedder_of
from twinspire_server.gateway.dialects.fields import Dimensions, TextOrTexts, texts_of
from twinspire_server.gateway.dialects.responses import in_base64, openai_error, openai_response
from twinspire_server.gateway.embedder import Embeddings
from twinspire_server.gateway.errors import GatewayError
from twinspire_server.gateway.inputs import EmbedRequest


class OpenAi(Dialect):
    """OpenAI's API. Texts that are too long are cut at their end: it has no option for that."""

    name = "openai"
    paths: ClassVar = ("/v1/embeddings", "/v1/models")

    def add_routes(self, router: APIRouter) -> None:
        """Add /v1/models; /v1/embeddings is shared with other dialects."""

        @router.get("/v1/models", summary="The model that is served")
        async def models(request: Request) -> dict[str, Any]:
            return {"object": "list", "data": [_model(name) for name in embedder_of(request).names]}

        @router.get("/v1/models/{name:path}", summary="A model by its name")
        async def model(request: Request, name: str) -> dict[str, Any]:
            embedder_of(request).check_model(name)
            return _model(name)

    def error(self, error: GatewayError) -> dict[str, Any]:
        """Return `{"error": {"message", "type", "param", "code"}}`."""
        return openai_error(error)


class OpenAiForm(EmbedBody):
    """The fields of a request that its relatives have too."""

    dialect: ClassVar[Dialect] = OpenAi()

    model: str = Field(description="The name of the bundle, or an alias of it.")
    encoding_format: Literal["float", "base64"] = Field(
        "float", description="Vectors as numbers, or base64 of little-endian float32."
    )
    dimensions: Dimensions | None = Field(None, description="Length of the vectors, where the model allows another.")
    user: str | None = Field(None, description="Changes nothing.")

    def respond(self, found: Embeddings) -> Response:
        """Return OpenAI's list of embeddings."""
        rows = in_base64(found.vectors) if self.encoding_format == "base64" else None
        return openai_response(found, self.model, rows=rows)


class OpenAiBody(OpenAiForm):
    """A request of the OpenAI API: a text or a list of texts."""

    input: TextOrTexts

    def to_request(self) -> EmbedRequest:
        """Return the request of any dialect."""
        return EmbedRequest(inputs=texts_of(self.input, "input"), model=self.model, dimensions=self.dimensions)


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "twinspire"}
