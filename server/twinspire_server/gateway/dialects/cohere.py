"""Cohere's API, `POST /v2/embed`: https://docs.cohere.com/reference/embed."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal
from uuid import uuid4

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from twinspire_server.gateway.dialects.dialect import Dialect, EmbedBody, answer
from twinspire_server.gateway.dialects.fields import ContentPart, Dimensions
from twinspire_server.gateway.dialects.nim import TRUNCATIONS
from twinspire_server.gateway.dialects.responses import in_base64, in_type, json_response
from twinspire_server.gateway.embedder import Embeddings
from twinspire_server.gateway.errors import GatewayError
from twinspire_server.gateway.inputs import EmbedRequest, Input, Text, image_of, mixed

_EmbeddingType = Literal["float", "int8", "uint8", "binary", "ubinary", "base64"]
_INPUTS = ("texts", "images", "inputs")


class Cohere(Dialect):
    """Cohere's API, version 2."""

    name = "cohere"
    paths: ClassVar = ("/v2/embed",)

    def add_routes(self, router: APIRouter) -> None:
        """Add /v2/embed."""

        @router.post("/v2/embed", summary="Embeddings of texts, images and both together, as Cohere gives them")
        async def embed(request: Request, body: CohereBody) -> Response:
            return await answer(request, body)

    def error(self, error: GatewayError) -> dict[str, Any]:
        """Return `{"id", "message"}`."""
        return {"id": str(uuid4()), "message": error.message}


class CohereInput(BaseModel):
    """Texts and images that have one vector together."""

    model_config = ConfigDict(extra="forbid")

    content: Annotated[list[ContentPart], Field(min_length=1)]


class CohereBody(EmbedBody):
    """A request of Cohere: exactly one of texts, images and inputs."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"model": "scenes", "texts": ["a red car"], "input_type": "search_query", "embedding_types": ["float"]},
                {"model": "scenes", "images": ["data:image/png;base64,iVBORw0KGgo..."], "input_type": "image"},
            ]
        }
    )

    dialect: ClassVar[Dialect] = Cohere()

    model: str = Field(description="The name of the bundle, or an alias of it.")
    texts: list[str] | None = None
    images: list[str] | None = Field(None, description="Data URIs.")
    inputs: list[CohereInput] | None = None
    input_type: Literal["search_document", "search_query", "classification", "clustering", "image"] | None = Field(
        None, description="Changes nothing: two-tower models embed queries and documents alike."
    )
    embedding_types: Annotated[list[_EmbeddingType], Field(min_length=1)] = Field(["float"])
    output_dimension: Dimensions | None = None
    truncate: Literal["NONE", "START", "END"] = Field(
        "END", description="Which end of a text that is too long is cut off; with NONE it is an error."
    )

    @model_validator(mode="after")
    def _check(self) -> CohereBody:
        given = [name for name in _INPUTS if getattr(self, name) is not None]
        if len(given) != 1:
            raise PydanticCustomError(
                "invalid_value",
                "expected exactly one of texts, images and inputs, got {given}",
                {"given": " and ".join(given) or "none"},
            )
        return self

    def to_request(self) -> EmbedRequest:
        """Return the request of any dialect."""
        name = next(name for name in _INPUTS if getattr(self, name) is not None)
        inputs: list[Input] = [
            *map(Text, self.texts or ()),
            *(image_of(uri, param=f"images[{position}]") for position, uri in enumerate(self.images or ())),
            *(_input(one, f"inputs[{position}]") for position, one in enumerate(self.inputs or ())),
        ]
        return EmbedRequest(
            inputs=tuple(inputs),
            model=self.model,
            truncation=TRUNCATIONS[self.truncate],
            dimensions=self.output_dimension,
            dimensions_name="output_dimension",
            name=name,
        )

    def respond(self, found: Embeddings) -> Response:
        """Return the vectors in each type that was asked for."""
        rows = {
            each: in_base64(found.vectors)
            if each == "base64"
            else list(in_type(found.vectors, each, param="embedding_types"))
            for each in self.embedding_types
        }
        units = {"input_tokens": found.text_tokens, "images": len(found.images)}
        document = {
            "id": str(uuid4()),
            "embeddings": rows,
            "texts": self.texts or [],
            "meta": {"api_version": {"version": "2"}, "billed_units": units, "tokens": {"input_tokens": found.tokens}},
            "response_type": "embeddings_by_type",
        }
        return json_response(document)


def _input(one: CohereInput, place: str) -> Input:
    return mixed(tuple(part.to_part(f"{place}.content[{position}]") for position, part in enumerate(one.content)))
