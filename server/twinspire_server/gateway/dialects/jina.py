"""Jina's embeddings API for jina-clip, `POST /v1/embeddings`: https://api.jina.ai/openapi.json."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from fastapi import APIRouter, Response
from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from twinspire.text import Truncation
from twinspire_server.gateway.dialects.dialect import Dialect, EmbedBody
from twinspire_server.gateway.dialects.fields import Dimensions, TextOrTexts
from twinspire_server.gateway.dialects.responses import detail_error, in_base64, in_type, openai_response
from twinspire_server.gateway.embedder import Embeddings
from twinspire_server.gateway.errors import GatewayError
from twinspire_server.gateway.inputs import EmbedRequest, Input, Text, image_or_base64

_OWN_FIELDS = ("embedding_type", "normalized", "task", "late_chunking")


class Jina(Dialect):
    """Jina's API."""

    name = "jina"

    def add_routes(self, router: APIRouter) -> None:
        """Add nothing: /v1/embeddings is shared with other dialects."""

    def error(self, error: GatewayError) -> dict[str, Any]:
        """Return `{"detail": message}`."""
        return detail_error(error)


class JinaItem(BaseModel):
    """A text, or an image as a URL, a data URI or its file in base64."""

    model_config = ConfigDict(extra="forbid")

    text: str | None = None
    image: str | None = None

    @model_validator(mode="after")
    def _check(self) -> JinaItem:
        if (self.text is None) == (self.image is None):
            raise PydanticCustomError("invalid_value", "expected either a text or an image")
        return self


def _kind(value: Any) -> str:  # noqa: ANN401 - JSON
    is_items = isinstance(value, dict) or (isinstance(value, list) and any(isinstance(one, dict) for one in value))
    return "(items)" if is_items else "(texts)"


def _text_or_item(value: Any) -> str:  # noqa: ANN401 - JSON
    return "(text)" if isinstance(value, str) else "(item)"


_Item = Annotated[Annotated[str, Tag("(text)")] | Annotated[JinaItem, Tag("(item)")], Discriminator(_text_or_item)]
_Items = Annotated[
    Annotated[JinaItem, Tag("(one)")] | Annotated[list[_Item], Tag("(many)")],
    Discriminator(lambda value: "(many)" if isinstance(value, list) else "(one)"),
]


class JinaBody(EmbedBody):
    """A request of Jina's API: texts and images, each an object or a text."""

    dialect: ClassVar[Dialect] = Jina()

    model: str = Field(description="The name of the bundle, or an alias of it.")
    input: Annotated[Annotated[TextOrTexts, Tag("(texts)")] | Annotated[_Items, Tag("(items)")], Discriminator(_kind)]
    embedding_type: Literal["float", "base64", "binary", "ubinary"] = "float"
    dimensions: Dimensions | None = None
    normalized: Literal[True] = Field(True, description="Vectors have length 1 here, whatever is asked for.")
    truncate: bool = Field(False, description="Cut texts that are too long at their end; otherwise they are errors.")
    task: str | None = Field(None, description="Changes nothing: two-tower models embed queries and passages alike.")
    late_chunking: Literal[False] = False

    @classmethod
    def matches(cls, document: dict[str, Any]) -> bool:
        """Return whether there are Jina's own fields, or objects among the inputs."""
        return (
            any(field in document for field in _OWN_FIELDS)
            or isinstance(document.get("truncate"), bool)
            or _kind(document.get("input")) == "(items)"
        )

    def to_request(self) -> EmbedRequest:
        """Return the request of any dialect."""
        inputs = [
            _input(item, place)
            for item, place in (
                [(one, f"input[{position}]") for position, one in enumerate(self.input)]
                if isinstance(self.input, list)
                else [(self.input, "input")]
            )
        ]
        return EmbedRequest(
            inputs=tuple(inputs),
            model=self.model,
            truncation=Truncation.END if self.truncate else Truncation.ERROR,
            dimensions=self.dimensions,
        )

    def respond(self, found: Embeddings) -> Response:
        """Return OpenAI's list of embeddings, of the type that was asked for."""
        if self.embedding_type == "base64":
            return openai_response(found, self.model, rows=in_base64(found.vectors))
        rows = in_type(found.vectors, self.embedding_type, param="embedding_type")
        return openai_response(found, self.model, rows=list(rows))


def _input(item: str | JinaItem, place: str) -> Input:
    if isinstance(item, str):
        return Text(item, place)
    if item.text is not None:
        return Text(item.text, f"{place}.text")
    assert item.image is not None
    return image_or_base64(item.image, param=f"{place}.image")
