"""The inference API of Weaviate's module multi2vec-clip: https://github.com/weaviate/multi2vec-clip-inference."""

from __future__ import annotations

from typing import Any, ClassVar

from fastapi import APIRouter, Request, Response
from pydantic import ConfigDict, Field

from twinspire_server.gateway.dialects.dialect import Dialect, EmbedBody, answer, embedder_of, readiness_of
from twinspire_server.gateway.dialects.responses import json_response
from twinspire_server.gateway.embedder import Embeddings
from twinspire_server.gateway.errors import GatewayError
from twinspire_server.gateway.inputs import EmbedRequest, Input, Text, image_or_base64


class Weaviate(Dialect):
    """What Weaviate asks its inference container for. Texts that are too long are cut at their end."""

    name = "weaviate"
    paths: ClassVar = ("/vectorize", "/meta", "/.well-known/live", "/.well-known/ready")

    def add_routes(self, router: APIRouter) -> None:
        """Add /vectorize, /meta and the routes of health."""

        @router.post("/vectorize", summary="Embeddings of texts and images, as Weaviate's module gives them")
        async def vectorize(request: Request, body: WeaviateBody) -> Response:
            return await answer(request, body)

        @router.get("/meta", summary="The model that is served, as Weaviate shows it")
        async def meta(request: Request) -> dict[str, Any]:
            embedder = embedder_of(request)
            bundle = embedder.client.bundle
            return {
                "model": embedder.model,
                "family": bundle.manifest.family,
                "space": embedder.client.space,
                "dim": embedder.client.dim,
                "towers": list(bundle.towers),
            }

        @router.get("/.well-known/live", status_code=204, summary="Whether the gateway runs")
        async def live() -> Response:
            return Response(status_code=204)

        @router.get("/.well-known/ready", status_code=204, summary="Whether requests can be answered")
        async def ready(request: Request) -> Response:
            if reasons := await readiness_of(request).not_ready():
                raise GatewayError(503, "; ".join(reasons), code="service_unavailable")
            return Response(status_code=204)

    def error(self, error: GatewayError) -> dict[str, Any]:
        """Return `{"error": message}`, a text."""
        return {"error": error.message}


class WeaviateBody(EmbedBody):
    """A request of Weaviate: texts, and images as their files in base64. Either may be null."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"texts": ["a red car"], "images": ["iVBORw0KGgoAAAANSUhEUg..."]}]}
    )

    dialect: ClassVar[Dialect] = Weaviate()

    texts: list[str] | None = None
    images: list[str] | None = Field(None, description="Files in base64.")

    def to_request(self) -> EmbedRequest:
        """Return the request of any dialect."""
        inputs: list[Input] = [Text(text, f"texts[{position}]") for position, text in enumerate(self.texts or ())]
        for position, image in enumerate(self.images or ()):
            inputs.append(image_or_base64(image, param=f"images[{position}]"))
        return EmbedRequest(inputs=tuple(inputs), name="texts, images")

    def respond(self, found: Embeddings) -> Response:
        """Return the vectors of texts and those of images."""
        count = len(self.texts or ())
        return json_response({"textVectors": list(found.vectors[:count]), "imageVectors": list(found.vectors[count:])})
