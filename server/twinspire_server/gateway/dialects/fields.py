"""Fields that several dialects share: one text or a list, and content of texts and images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag
from pydantic_core import PydanticCustomError

from twinspire_server.gateway.inputs import Part, Text, image_of
from twinspire_server.gateway.validation import shown

Dimensions: TypeAlias = Annotated[int, Field(ge=1)]
"""The length of vectors."""


def _one_or_many(value: Any) -> str:  # noqa: ANN401 - JSON
    return "(one)" if isinstance(value, str) else "(many)"


def _texts(value: Any) -> Any:  # noqa: ANN401 - JSON
    """Refuse token ids and what is no list."""
    if not isinstance(value, list):
        raise PydanticCustomError(
            "invalid_value", "expected a text or a list of texts, got {given}", {"given": shown(value)}
        )
    if value and (type(value[0]) is int or (isinstance(value[0], list) and value[0] and type(value[0][0]) is int)):
        raise PydanticCustomError(
            "token_ids_not_supported",
            "token ids are not accepted, since each model has its own: send the text itself",
        )
    return value


TextOrTexts: TypeAlias = Annotated[
    Annotated[str, Tag("(one)")] | Annotated[list[str], BeforeValidator(_texts), Tag("(many)")],
    Discriminator(_one_or_many),
]
"""A text, or a list of texts."""


def placed(value: str | Sequence[str], name: str) -> list[tuple[str, str]]:
    """Return each text of a field and its place: `name` where the field is one text, else `name[0]`, ..."""
    if isinstance(value, str):
        return [(value, name)]
    return [(text, f"{name}[{position}]") for position, text in enumerate(value)]


def texts_of(value: str | Sequence[str], name: str) -> tuple[Text, ...]:
    """Return the texts of a field."""
    return (Text(value, name),) if isinstance(value, str) else tuple(map(Text, value))


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid")


class TextPart(_Part):
    """A text in a content."""

    type: Literal["text"]
    text: str

    def to_part(self, place: str) -> Part:
        """Return the part at a place of the request."""
        return Text(self.text, place)


class ImageUrl(_Part):
    """The address of an image: a data URI, or a URL where its host is allowed. `detail` changes nothing here."""

    url: str
    detail: Literal["auto", "low", "high"] | None = None


class ImageUrlPart(_Part):
    """An image in a content."""

    type: Literal["image_url"]
    image_url: ImageUrl

    def to_part(self, place: str) -> Part:
        """Return the part at a place of the request. Raises GatewayError where it names no image."""
        return image_of(self.image_url.url, param=place)


def by_type(*types: str) -> Discriminator:
    """Return the choice among a content's parts by their `type`; the alternative of "text" has the tag "(text)"."""

    def tag(part: Any) -> str:  # noqa: ANN401 - JSON or a model
        given = part.get("type") if isinstance(part, dict) else getattr(part, "type", None)
        return f"({given})"

    expected = " or ".join(f"'{each}'" for each in types)
    return Discriminator(
        tag, custom_error_type="invalid_value", custom_error_message=f"expected an object whose type is {expected}"
    )


ContentPart: TypeAlias = Annotated[
    Annotated[TextPart, Tag("(text)")] | Annotated[ImageUrlPart, Tag("(image_url)")], by_type("text", "image_url")
]
"""A text or an image of a content, as OpenAI's chat has them."""
