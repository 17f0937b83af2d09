"""The API of immich's machine learning, `POST /predict`: https://github.com/immich-app/immich, machine-learning."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import orjson
from fastapi import APIRouter, File, Form, Request, Response, UploadFile
from fastapi.responses import PlainTextResponse
from fastapi.routing import APIRoute
from pydantic import BaseModel, ConfigDict, ValidationError

from twinspire.images.decode import encoded_size
from twinspire_server.gateway.dialects.dialect import Dialect, embedder_of
from twinspire_server.gateway.dialects.responses import detail_error, json_response
from twinspire_server.gateway.errors import GatewayError
from twinspire_server.gateway.inputs import EmbedRequest, EncodedImage, Input, Text
from twinspire_server.gateway.validation import of_validation

_EXAMPLE = '{"clip": {"textual": {"modelName": "scenes"}}}'


class Immich(Dialect):
    """What immich asks its machine learning for: smart search. Faces and OCR are not served here.

    Texts that are too long are cut at their end. `options`, such as a text's language, change nothing.
    """

    name = "immich"
    paths: ClassVar = ("/predict", "/ping")

    def add_routes(self, router: APIRouter) -> None:
        """Add /predict and /ping."""
        forms = APIRouter(route_class=APIRoute)  # no JSON

        @forms.post("/predict", summary="The embedding of a text or an image, as immich's machine learning gives it")
        async def predict(
            request: Request,
            entries: Annotated[str, Form(description="What to compute, as JSON.", examples=[_EXAMPLE])],
            image: Annotated[UploadFile | None, File(description="The image, for `visual`.")] = None,
            text: Annotated[str | None, Form(description="The text, for `textual`.")] = None,
        ) -> Response:
            name, kind = _task(entries)
            file = await image.read() if image is not None else None
            found = await embedder_of(request).embed(
                EmbedRequest(inputs=(_input(kind, file, text),), model=name, name="image" if file else "text")
            )
            # A text of JSON, which immich gives to its database as it is.
            vector = orjson.dumps(found.vectors[0], option=orjson.OPT_SERIALIZE_NUMPY).decode()
            document: dict[str, Any] = {"clip": vector}
            if file is not None:
                document["imageWidth"], document["imageHeight"] = encoded_size(file)
            return json_response(document)

        router.include_router(forms)

        @router.get("/ping", response_class=PlainTextResponse, summary="Whether the gateway runs")
        async def ping() -> str:
            return "pong"

    def error(self, error: GatewayError) -> dict[str, Any]:
        """Return `{"detail": message}`."""
        return detail_error(error)


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid")

    modelName: str  # noqa: N815 - immich's name
    options: dict[str, Any] = {}


class _Clip(BaseModel):
    model_config = ConfigDict(extra="forbid")

    visual: _Entry | None = None
    textual: _Entry | None = None


class _Entries(BaseModel):
    model_config = ConfigDict(extra="forbid")

    clip: _Clip


def _task(entries: str) -> tuple[str, str]:
    """Return the model's name and the kind of entry, `visual` or `textual`."""
    try:
        clip = _Entries.model_validate(orjson.loads(entries)).clip
    except orjson.JSONDecodeError as error:
        raise GatewayError(400, f"entries is not JSON: {error}", "entries", "invalid_json") from error
    except ValidationError as error:
        known = of_validation([{**each, "loc": ("entries", *each["loc"])} for each in error.errors()])
        raise GatewayError(
            known.status, f"{known.message}. Only clip is served here", known.param, known.code
        ) from error
    given = [(entry.modelName, kind) for kind, entry in (("visual", clip.visual), ("textual", clip.textual)) if entry]
    if len(given) != 1:
        raise GatewayError(
            400,
            f"entries.clip: expected either visual or textual, got {len(given)} of them",
            "entries",
            "invalid_value",
        )
    return given[0]


def _input(kind: str, image: bytes | None, text: str | None) -> Input:
    """Return what to embed: the image for `visual`, the text for `textual`."""
    name = "image" if kind == "visual" else "text"
    if (image is None) == (text is None) or (kind == "visual") != (image is not None):
        expected = "an image and no text" if name == "image" else "a text and no image"
        raise GatewayError(400, f"{kind} among the entries: expected {expected}", name, "invalid_value")
    if image is not None:
        return EncodedImage(image, "image")
    assert text is not None
    return Text(text, "text")
