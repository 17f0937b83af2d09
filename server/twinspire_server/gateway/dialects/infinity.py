"""Infinity's API, `POST /embeddings`: https://github.com/michaelfeil/infinity, libs/infinity_emb."""

from __future__ import annotations

import time
from typing import Annotated, Any, ClassVar, Literal
from uuid import uuid4

from fastapi import APIRouter, Request, Response
from pydantic import ConfigDict, Field

from twinspire_server.gateway.dialects.dialect import Dialect, EmbedBody, answer, embedder_of
from twinspire_server.gateway.dialects.fields import TextOrTexts, placed, texts_of
from twinspire_server.gateway.dialects.responses import in_base64, openai_error, openai_response
from twinspire_server.gateway.embedder import Embeddings
from twinspire_server.gateway.errors import GatewayError
from twinspire_server.gateway.inputs import EmbedRequest, Input, image_of, sound_of

_ANY_MODEL = "default/not-specified"  # what Infinity's clients send where none is named


class Infinity(Dialect):
    """Infinity's API. Texts that are too long are cut at their end: it has no option for that."""

    name = "infinity"
    paths: ClassVar = ("/embeddings", "/models", "/health")

    def add_routes(self, router: APIRouter) -> None:
        """Add /embeddings, /models and /health."""

        @router.post("/embeddings", summary="Embeddings of texts, images or sounds, as Infinity gives them")
        async def embeddings(request: Request, body: InfinityBody) -> Response:
            return await answer(request, body)

        @router.get("/models", summary="The model that is served, as Infinity describes it")
        async def models(request: Request) -> dict[str, Any]:
            embedder = embedder_of(request)
            kinds = {"text": "embed", "image": "image_embed", "audio": "audio_embed"}
            model = {
                "object": "model",
                "created": int(time.time()),
                "owned_by": "infinity",  # the only owner that its client reads
                "backend": "twinspire",
                "capabilities": sorted(kinds[tower] for tower in embedder.client.bundle.towers),
                "stats": {"results_pending": embedder.pending},
            }
            return {"object": "list", "data": [{"id": name, **model} for name in embedder.names]}

        @router.get("/health", summary="Whether the gateway runs")
        async def health() -> dict[str, float]:
            return {"unix": time.time()}

    def error(self, error: GatewayError) -> dict[str, Any]:
        """Return OpenAI's form."""
        return openai_error(error)


class InfinityBody(EmbedBody):
    """A request of Infinity: texts, images or sounds, one or a list."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"model": "scenes", "input": ["a red car"]},
                {"model": "scenes", "modality": "image", "input": ["data:image/png;base64,iVBORw0KGgo..."]},
            ]
        }
    )

    dialect: ClassVar[Dialect] = Infinity()

    model: str = Field(_ANY_MODEL, description="The name of the bundle, or an alias of it; may be left out.")
    input: TextOrTexts = Field(description="Texts; or images and sounds as data URIs or URLs.")
    modality: Literal["text", "image", "audio"] = "text"
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int, Field(ge=0)] = Field(0, description="Length of the vectors; 0 is the model's.")
    user: str | None = Field(None, description="Changes nothing.")

    @classmethod
    def matches(cls, document: dict[str, Any]) -> bool:
        """Return whether there is a modality, but not NIM's field beside it."""
        return "modality" in document and "input_type" not in document

    def to_request(self) -> EmbedRequest:
        """Return the request of any dialect."""
        inputs: tuple[Input, ...]
        if self.modality == "text":
            inputs = texts_of(self.input, "input")
        else:
            read = image_of if self.modality == "image" else sound_of
            inputs = tuple(read(text, param=place) for text, place in placed(self.input, "input"))
        model = None if self.model == _ANY_MODEL else self.model
        return EmbedRequest(inputs=inputs, model=model, dimensions=self.dimensions or None)

    def respond(self, found: Embeddings) -> Response:
        """Return OpenAI's list of embeddings, with an id and a time."""
        rows = in_base64(found.vectors) if self.encoding_format == "base64" else None
        more = {"id": f"infinity-{uuid4()}", "created": int(time.time())}
        return openai_response(found, found.model, rows=rows, more=more)
