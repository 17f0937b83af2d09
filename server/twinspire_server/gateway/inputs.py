"""The inputs of an embedding request, whatever dialect they came in."""

from __future__ import annotations

import binascii
from dataclasses import dataclass
from typing import TypeAlias

import pybase64

from twinspire.text import Truncation
from twinspire_server.gateway.errors import GatewayError

_SHOWN = 40


@dataclass(frozen=True, slots=True)
class Text:
    """A text to embed. `place` is where it stands in the request, such as `inputs[0].content[1]`."""

    text: str
    place: str = ""


@dataclass(frozen=True, slots=True)
class EncodedImage:
    """An image file's content: JPEG, PNG, WebP and the like. `place` is as of `Text`."""

    data: bytes
    place: str = ""


@dataclass(frozen=True, slots=True)
class ImageUrl:
    """The address of an image on another host; it is only fetched where that host is allowed."""

    url: str
    place: str = ""


@dataclass(frozen=True, slots=True)
class EncodedSound:
    """A sound file's content: WAV, FLAC and the like. `place` is as of `Text`."""

    data: bytes
    place: str = ""


Part: TypeAlias = Text | EncodedImage | ImageUrl | EncodedSound


@dataclass(frozen=True, slots=True)
class Mixed:
    """Texts and images that have one vector together: the normalised sum of theirs."""

    parts: tuple[Part, ...]


Input: TypeAlias = Part | Mixed


@dataclass(frozen=True, kw_only=True)
class EmbedRequest:
    """What is to be embedded.

    `model` is the name that the client used. `truncation` says what becomes of a text that is longer than the model's
    context. `dimensions` is the length of the vectors that the client asked for, in its dialect's field
    `dimensions_name`. `name` is how errors call the inputs: the one at position 3 is `input[3]`, unless it has a place
    of its own.
    """

    inputs: tuple[Input, ...]
    model: str | None = None
    truncation: Truncation = Truncation.END
    dimensions: int | None = None
    dimensions_name: str = "dimensions"
    name: str = "input"

    def parts(self) -> list[Part]:
        """Return the texts, images and sounds of all inputs, in order."""
        if any(isinstance(input_, Mixed) for input_ in self.inputs):
            return [part for input_ in self.inputs for part in parts_of(input_)]
        return list(self.inputs)  # type: ignore[arg-type] # none is Mixed

    def place(self, position: int, part: Part) -> str:
        """Return where a part stands in the request, which is number `position` of `parts()`."""
        return part.place or f"{self.name}[{position}]"


def parts_of(input_: Input) -> tuple[Part, ...]:
    """Return the parts of an input: those of a mixed one, or itself."""
    return input_.parts if isinstance(input_, Mixed) else (input_,)


def mixed(parts: tuple[Part, ...]) -> Input:
    """Return one input of its parts; one part is that part."""
    return parts[0] if len(parts) == 1 else Mixed(parts)


def is_image_uri(text: str) -> bool:
    """Return whether a text is a data URI of an image in base64."""
    return text.startswith("data:image/") and ";base64," in text[:64]


def image_of(text: str, *, param: str) -> EncodedImage | ImageUrl:
    """Return the image that a data URI or a URL names. Raises GatewayError for anything else, `param` says where."""
    if text.startswith(("http://", "https://")):
        return ImageUrl(text, param)
    if not text.startswith("data:"):
        raise GatewayError(
            400,
            f"{param}: expected a data URI (data:image/jpeg;base64,...) or a URL, got {text[:_SHOWN]!r}",
            param,
            "invalid_image",
        )
    return EncodedImage(_content(text, param=param, code="invalid_image"), param)


def image_or_base64(text: str, *, param: str) -> EncodedImage | ImageUrl:
    """Return the image of a URL, a data URI or its file in base64. Raises GatewayError as `image_of`."""
    if text.startswith(("http://", "https://", "data:")):
        return image_of(text, param=param)
    return EncodedImage(decoded(text, param=param), param)


def sound_of(text: str, *, param: str) -> EncodedSound:
    """Return the sound of a data URI. Raises GatewayError for anything else, also for a URL."""
    if text.startswith(("http://", "https://")):
        raise GatewayError(
            400, f"{param}: sounds are not fetched from URLs here: send a data URI", param, "url_not_allowed"
        )
    return EncodedSound(_content(text, param=param, code="invalid_audio"), param)


def decoded(content: str, *, param: str) -> bytes:
    """Decode base64. Raises GatewayError, `param` says where."""
    try:
        return pybase64.b64decode(content, validate=True)  # a fiftieth of the standard library's time
    except (binascii.Error, ValueError) as error:
        raise GatewayError(
            400,
            f"{param} is not base64: expected letters, digits, + and /, padded with = and without line breaks",
            param,
            "invalid_base64",
        ) from error


def _content(uri: str, *, param: str, code: str) -> bytes:
    head, comma, content = uri.partition(",")
    if not (comma and head.startswith("data:") and head.lower().endswith(";base64")):
        raise GatewayError(
            400,
            f"{param}: expected a data URI with base64, such as data:image/jpeg;base64,/9j/4AA..., got "
            f"{uri[:_SHOWN]!r}",
            param,
            code,
        )
    return decoded(content, param=param)
