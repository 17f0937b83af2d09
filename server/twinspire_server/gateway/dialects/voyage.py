"""Voyage's APIs, `POST /v1/multimodalembeddings` and `POST /v1/embeddings`.

https://docs.voyageai.com/reference/multimodal-embeddings-api and https://docs.voyageai.com/reference/embeddings-api.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field, Tag

from twinspire.images.decode import encoded_size
from twinspire.text import Truncation
from twinspire_server.gateway.dialects.dialect import Dialect, EmbedBody, answer
from twinspire_server.gateway.dialects.fields import Dimensions, TextOrTexts, TextPart, by_type, texts_of
from twinspire_server.gateway.dialects.responses import (
    NumberType,
    detail_error,
    in_base64,
    in_type,
    openai_response,
)
from twinspire_server.gateway.embedder import Embeddings
from twinspire_server.gateway.errors import GatewayError
from twinspire_server.gateway.inputs import EmbedRequest, Input, Part, image_of, image_or_base64, mixed

_OWN_FIELDS = ("truncation", "output_dtype", "output_dimension")


class Voyage(Dialect):
    """Voyage's API."""

    name = "voyage"
    paths: ClassVar = ("/v1/multimodalembeddings",)

    def add_routes(self, router: APIRouter) -> None:
        """Add /v1/multimodalembeddings; /v1/embeddings is shared with other dialects."""

        @router.post(
            "/v1/multimodalembeddings", summary="Embeddings of texts and images together, as Voyage gives them"
        )
        async def embeddings(request: Request, body: VoyageBody) -> Response:
            return await answer(request, body)

    def error(self, error: GatewayError) -> dict[str, Any]:
        """Return `{"detail": message}`."""
        return detail_error(error)


class ImageUrlPart(BaseModel):
    """An image by its address."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["image_url"]
    image_url: str

    def to_part(self, place: str) -> Part:
        """Return the part at a place of the request. Raises GatewayError where it names no image."""
        return image_of(self.image_url, param=place)


class ImageBase64Part(BaseModel):
    """An image as a data URI, or its file in base64."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["image_base64"]
    image_base64: str

    def to_part(self, place: str) -> Part:
        """Return the part at a place of the request. Raises GatewayError where it is no base64."""
        return image_or_base64(self.image_base64, param=place)


_Part = Annotated[
    Annotated[TextPart, Tag("(text)")]
    | Annotated[ImageUrlPart, Tag("(image_url)")]
    | Annotated[ImageBase64Part, Tag("(image_base64)")],
    by_type("text", "image_url", "image_base64"),
]


class VoyageInput(BaseModel):
    """Texts and images that have one vector together."""

    model_config = ConfigDict(extra="forbid")

    content: Annotated[list[_Part], Field(min_length=1)]


class VoyageForm(EmbedBody):
    """The fields of both requests of Voyage."""

    dialect: ClassVar[Dialect] = Voyage()

    model: str = Field(description="The name of the bundle, or an alias of it.")
    input_type: Literal["query", "document"] | None = Field(
        None, description="Changes nothing: two-tower models embed queries and documents alike."
    )
    truncation: bool = Field(True, description="Cut texts that are too long at their end; otherwise they are errors.")
    output_dtype: NumberType | None = None
    output_dimension: Dimensions | None = None

    def _request(self, inputs: tuple[Input, ...], name: str) -> EmbedRequest:
        return EmbedRequest(
            inputs=inputs,
            model=self.model,
            truncation=Truncation.END if self.truncation else Truncation.ERROR,
            dimensions=self.output_dimension,
            dimensions_name="output_dimension",
            name=name,
        )

    def _respond(self, found: Embeddings, *, is_base64: bool, usage: dict[str, int]) -> Response:
        vectors = in_type(found.vectors, self.output_dtype or "float", param="output_dtype")
        rows = in_base64(vectors) if is_base64 else list(vectors)
        return openai_response(found, self.model, rows=rows, usage=usage)


class VoyageBody(VoyageForm):
    """A request of Voyage's multimodal API."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "model": "scenes",
                    "inputs": [
                        {
                            "content": [
                                {"type": "text", "text": "a red car"},
                                {"type": "image_base64", "image_base64": "data:image/png;base64,iVBORw0KGgo..."},
                            ]
                        }
                    ],
                }
            ]
        }
    )

    inputs: list[VoyageInput]
    encoding_format: Literal["base64"] | None = None
    output_encoding: Literal["base64"] | None = None

    def to_request(self) -> EmbedRequest:
        """Return the request of any dialect."""
        return self._request(tuple(_input(one, f"inputs[{at}]") for at, one in enumerate(self.inputs)), "inputs")

    def respond(self, found: Embeddings) -> Response:
        """Return the list of embeddings; its usage counts the pixels of images as they were sent."""
        sizes = [encoded_size(file) for file in found.images]
        usage = {
            "text_tokens": found.text_tokens,
            "image_pixels": sum(width * height for width, height in sizes),
            "video_pixels": 0,
            "total_tokens": found.tokens,
        }
        is_base64 = "base64" in (self.encoding_format, self.output_encoding)
        return self._respond(found, is_base64=is_base64, usage=usage)


class VoyageTextBody(VoyageForm):
    """A request of Voyage's API for texts."""

    input: TextOrTexts
    encoding_format: Literal["base64"] | None = None

    @classmethod
    def matches(cls, document: dict[str, Any]) -> bool:
        """Return whether there are Voyage's own fields, or its word for passages."""
        return any(field in document for field in _OWN_FIELDS) or document.get("input_type") == "document"

    def to_request(self) -> EmbedRequest:
        """Return the request of any dialect."""
        return self._request(texts_of(self.input, "input"), "input")

    def respond(self, found: Embeddings) -> Response:
        """Return the list of embeddings."""
        usage = {"total_tokens": found.tokens}
        return self._respond(found, is_base64=self.encoding_format == "base64", usage=usage)


def _input(one: VoyageInput, place: str) -> Input:
    return mixed(tuple(part.to_part(f"{place}.content[{position}]") for position, part in enumerate(one.content)))
