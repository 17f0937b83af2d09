"""The inputs of an embedding request, whatever dialect they came in."""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from typing import TypeAlias

from twinspire_server.gateway.errors import GatewayError


@dataclass(frozen=True)
class Text:
    """A text to embed."""

    text: str


@dataclass(frozen=True)
class EncodedImage:
    """An image file's content: JPEG, PNG, WebP and the like."""

    data: bytes


@dataclass(frozen=True)
class ImageUrl:
    """The address of an image on another host; it is only fetched where that host is allowed."""

    url: str


Part: TypeAlias = Text | EncodedImage | ImageUrl


@dataclass(frozen=True)
class Mixed:
    """Texts and images that have one vector together: the normalised sum of theirs."""

    parts: tuple[Part, ...]


Input: TypeAlias = Part | Mixed


@dataclass(frozen=True, kw_only=True)
class EmbedRequest:
    """What is to be embedded.

    `model` is the name that the client used. Without `truncate`, a text that is longer than the model's context is an
    error. `dimensions` is the length of the vectors that the client asked for. `name` is how errors call the inputs:
    the one at position 3 is `input[3]`.
    """

    inputs: tuple[Input, ...]
    model: str | None = None
    truncate: bool = True
    dimensions: int | None = None
    name: str = "input"


def image_of(text: str, *, param: str) -> EncodedImage | ImageUrl:
    """Return the image that a data URI or a URL names. Raises GatewayError for anything else, `param` says where."""
    if text.startswith(("http://", "https://")):
        return ImageUrl(text)
    if not text.startswith("data:"):
        raise GatewayError(
            400, f"{param}: expected a data URI (data:image/jpeg;base64,...) or a URL", param, "invalid_image"
        )
    head, comma, content = text.partition(",")
    if not comma or not head.endswith(";base64"):
        raise GatewayError(
            400,
            f"{param}: expected a data URI with base64, such as data:image/jpeg;base64,/9j/4AA...",
            param,
            "invalid_image",
        )
    return EncodedImage(decoded(content, param=param))


def decoded(content: str, *, param: str) -> bytes:
    """Decode base64. Raises GatewayError, `param` says where."""
    try:
        return base64.b64decode(content, validate=True)
    except (binascii.Error, ValueError) as error:
        raise GatewayError(400, f"{param} is not base64: {error}", param, "invalid_base64") from error
