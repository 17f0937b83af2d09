"""The interface of a dialect."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, model_validator

from twinspire_server.gateway.embedder import Embedder, Embeddings
from twinspire_server.gateway.errors import GatewayError
from twinspire_server.gateway.inputs import EmbedRequest
from twinspire_server.gateway.safety.health import Readiness


class Dialect(ABC):
    """How clients of one kind write requests and read responses. `paths` are those whose errors have its form."""

    name: ClassVar[str]
    paths: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def add_routes(self, router: APIRouter) -> None:
        """Add the dialect's routes, which call `answer` or `embedder_of(request).embed`."""

    @abstractmethod
    def error(self, error: GatewayError) -> Any:  # noqa: ANN401 - JSON
        """Return the JSON of an error as its clients expect it."""


class EmbedBody(BaseModel):
    """The body of a dialect's request for embeddings, as JSON. Unknown fields are errors; null is a field left out."""

    model_config = ConfigDict(extra="forbid")

    dialect: ClassVar[Dialect]

    @model_validator(mode="before")
    @classmethod
    def _without_null(cls, document: Any) -> Any:  # noqa: ANN401 - JSON
        if not isinstance(document, dict):
            return document
        return {key: value for key, value in document.items() if value is not None or key not in cls.model_fields}

    @classmethod
    def matches(cls, document: dict[str, Any]) -> bool:
        """Return whether a body, without null, on a path that several dialects share is of this one."""
        raise NotImplementedError(cls)

    def to_request(self) -> EmbedRequest:
        """Return the request of any dialect. Raises GatewayError for inputs that cannot be read."""
        raise NotImplementedError(type(self))

    def respond(self, found: Embeddings) -> Response:
        """Return the response with the vectors of `to_request`."""
        raise NotImplementedError(type(self))


async def answer(request: Request, body: EmbedBody) -> Response:
    """Embed what a body names, and respond in its dialect; errors have its form from here on."""
    request.state.dialect = body.dialect
    request.state.context.dialect = body.dialect.name
    return body.respond(await embedder_of(request).embed(body.to_request()))


def embedder_of(request: Request) -> Embedder:
    """Return the gateway's embedder."""
    embedder: Embedder = request.app.state.embedder
    return embedder


def readiness_of(request: Request) -> Readiness:
    """Return whether requests should come here."""
    readiness: Readiness = request.app.state.readiness
    return readiness
