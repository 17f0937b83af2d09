"""`POST /v1/embeddings`, which several dialects share: a body's form says which one it is of."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Body, Request, Response
from pydantic import Discriminator, Tag

from twinspire_server.gateway.dialects.dialect import Dialect, EmbedBody, answer
from twinspire_server.gateway.dialects.infinity import InfinityBody
from twinspire_server.gateway.dialects.jina import JinaBody
from twinspire_server.gateway.dialects.nim import NimBody
from twinspire_server.gateway.dialects.openai import OpenAiBody
from twinspire_server.gateway.dialects.vllm import VllmBody
from twinspire_server.gateway.dialects.voyage import VoyageTextBody

_IMAGE = "data:image/png;base64,iVBORw0KGgo..."

# The first one that matches counts; whatever is left is OpenAI's.
_BODIES: tuple[type[EmbedBody], ...] = (VllmBody, VoyageTextBody, JinaBody, InfinityBody, NimBody)

EXAMPLES: dict[str, Any] = {
    "openai": {
        "summary": "OpenAI: texts",
        "value": {"model": "scenes", "input": ["a red car", "一只白色的狗"], "encoding_format": "float"},
    },
    "vllm": {
        "summary": "vLLM: a conversation, which has one vector",
        "value": {
            "model": "scenes",
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "a red car"},
                        {"type": "image_url", "image_url": {"url": _IMAGE}},
                    ],
                }
            ],
        },
    },
    "nim": {
        "summary": "NVIDIA NIM: texts and images in one list",
        "value": {"model": "scenes", "input": ["a red car", _IMAGE], "input_type": "query", "truncate": "END"},
    },
    "jina": {
        "summary": "Jina: objects",
        "value": {"model": "scenes", "input": [{"text": "a red car"}, {"image": _IMAGE}], "truncate": True},
    },
    "infinity": {
        "summary": "Infinity: a modality for all inputs, here and at /embeddings",
        "value": {"model": "scenes", "input": [_IMAGE], "modality": "image"},
    },
    "voyage": {
        "summary": "Voyage: texts",
        "value": {"model": "scenes", "input": ["a red car"], "input_type": "query", "truncation": True},
    },
}
"""A request of each dialect."""


def form_of(document: Any) -> str:  # noqa: ANN401 - JSON or a model
    """Return the tag of the dialect that a body is of."""
    if isinstance(document, EmbedBody):
        return tag_of(document.dialect)
    if not isinstance(document, dict):
        return tag_of(OpenAiBody.dialect)
    given = {key: value for key, value in document.items() if value is not None}
    return tag_of(next((body for body in _BODIES if body.matches(given)), OpenAiBody).dialect)


def tag_of(dialect: Dialect) -> str:
    """Return the tag of a dialect in the location of a fault."""
    return f"({dialect.name})"


SharedBody = Annotated[
    Annotated[OpenAiBody, Tag("(openai)")]
    | Annotated[VllmBody, Tag("(vllm)")]
    | Annotated[NimBody, Tag("(nim)")]
    | Annotated[JinaBody, Tag("(jina)")]
    | Annotated[InfinityBody, Tag("(infinity)")]
    | Annotated[VoyageTextBody, Tag("(voyage)")],
    Discriminator(form_of),
]


def add_shared_route(router: APIRouter) -> None:
    """Add /v1/embeddings."""

    @router.post("/v1/embeddings", summary="Embeddings in the dialects of OpenAI, vLLM, NIM, Jina, Infinity and Voyage")
    async def embeddings(request: Request, body: Annotated[SharedBody, Body(openapi_examples=EXAMPLES)]) -> Response:
        return await answer(request, body)
