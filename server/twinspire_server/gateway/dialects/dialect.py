"""The interface of a dialect."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from fastapi import APIRouter, Request

from twinspire_server.gateway.embedder import Embedder
from twinspire_server.gateway.errors import GatewayError


class Dialect(ABC):
    """How clients of one kind write requests and read responses. `paths` are those whose errors have its form."""

    name: ClassVar[str]
    paths: ClassVar[tuple[str, ...]]

    @abstractmethod
    def add_routes(self, router: APIRouter) -> None:
        """Add the dialect's routes, which call `embedder_of(request).embed`."""

    @abstractmethod
    def error(self, error: GatewayError) -> Any:  # noqa: ANN401 - JSON
        """Return the JSON of an error as its clients expect it."""


def embedder_of(request: Request) -> Embedder:
    """Return the gateway's embedder."""
    embedder: Embedder = request.app.state.embedder
    return embedder
