"""NVIDIA NIM's embeddings API, as NV-CLIP and NeMo Retriever speak it: texts and images in one list.

https://docs.nvidia.com/nim/nvclip/latest/api-reference.html and
https://docs.nvidia.com/nim/nemo-retriever/text-embedding/latest/reference.html.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from fastapi import APIRouter, Request, Response
from pydantic import Field

from twinspire._dependencies import package_version
from twinspire.text import Truncation
from twinspire_server.gateway.dialects.dialect import Dialect, embedder_of, readiness_of
from twinspire_server.gateway.dialects.fields import TextOrTexts, placed
from twinspire_server.gateway.dialects.openai import OpenAiForm
from twinspire_server.gateway.dialects.responses import json_response, openai_error
from twinspire_server.gateway.errors import GatewayError
from twinspire_server.gateway.inputs import EmbedRequest, Text, image_of, is_image_uri

TRUNCATIONS = {"NONE": Truncation.ERROR, "START": Truncation.START, "END": Truncation.END}
"""Truncation in the words of NIM and Cohere."""


class Nim(Dialect):
    """NVIDIA NIM's API."""

    name = "nim"
    paths: ClassVar = ("/v1/health/live", "/v1/health/ready", "/v1/metadata")

    def add_routes(self, router: APIRouter) -> None:
        """Add the routes of health and of the description; /v1/embeddings is shared with other dialects."""

        @router.get("/v1/health/live", summary="Whether the gateway runs")
        async def live() -> dict[str, Any]:
            return {"object": "health.response", "message": "live", "live": True}

        @router.get("/v1/health/ready", summary="Whether requests can be answered")
        async def ready(request: Request) -> Response:
            if reasons := await readiness_of(request).not_ready():
                document = {"object": "health.response", "message": "; ".join(reasons), "ready": False}
                return json_response(document, 503)
            return json_response({"object": "health.response", "message": "ready", "ready": True})

        @router.get("/v1/metadata", summary="The model and its licence")
        async def metadata(request: Request) -> dict[str, Any]:
            embedder = embedder_of(request)
            source = embedder.client.bundle.manifest.source
            licence = dict.fromkeys(("path", "sha", "url", "type", "content"), "")
            return {
                "id": embedder.model,
                "version": package_version("twinspire") or "",
                "modelInfo": [{"shortName": name, "modelUrl": source.checkpoint} for name in embedder.names],
                "licenseInfo": {"name": source.licence or "", **licence, "size": 0},
                "assetInfo": [],
                "repository_override": "",
            }

    def error(self, error: GatewayError) -> dict[str, Any]:
        """Return OpenAI's form."""
        return openai_error(error)


class NimBody(OpenAiForm):
    """A request of NIM: texts, and images as data URIs, mixed in one list."""

    dialect: ClassVar[Dialect] = Nim()

    input: TextOrTexts
    input_type: Literal["query", "passage"] | None = Field(
        None, description="Changes nothing: two-tower models embed queries and passages alike."
    )
    truncate: Literal["NONE", "START", "END"] = Field(
        "NONE", description="Which end of a text that is too long is cut off; with NONE it is an error."
    )

    @classmethod
    def matches(cls, document: dict[str, Any]) -> bool:
        """Return whether there are NIM's own fields, or images as data URIs among the texts."""
        if "input_type" in document or isinstance(document.get("truncate"), str):
            return True
        given = document.get("input")
        texts = given if isinstance(given, list) else [given]
        return any(isinstance(text, str) and is_image_uri(text) for text in texts)

    def to_request(self) -> EmbedRequest:
        """Return the request of any dialect."""
        return EmbedRequest(
            inputs=tuple(
                image_of(text, param=place) if is_image_uri(text) else Text(text, place)
                for text, place in placed(self.input, "input")
            ),
            model=self.model,
            truncation=TRUNCATIONS[self.truncate],
            dimensions=self.dimensions,
        )
