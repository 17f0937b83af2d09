"""A dialect that is added in one place: a class and a line in `DIALECTS`."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import pytest
from fastapi import APIRouter, Request, Response
from fastapi.testclient import TestClient

from twinspire import Client, sample_bundle
from twinspire_server.gateway import dialects
from twinspire_server.gateway.app import create_app
from twinspire_server.gateway.dialects.dialect import Dialect, EmbedBody, answer
from twinspire_server.gateway.dialects.responses import json_response
from twinspire_server.gateway.embedder import Embeddings
from twinspire_server.gateway.errors import GatewayError
from twinspire_server.gateway.inputs import EmbedRequest, Text
from twinspire_server.gateway.settings import GatewaySettings


class Shout(Dialect):
    """One text, embedded in lower case; errors are in capitals."""

    name = "shout"
    paths: ClassVar = ("/shout",)

    def add_routes(self, router: APIRouter) -> None:
        """Add /shout."""

        @router.post("/shout")
        async def shout(request: Request, body: ShoutBody) -> Response:
            return await answer(request, body)

    def error(self, error: GatewayError) -> Any:
        """Return the message in capitals."""
        return error.message.upper()


class ShoutBody(EmbedBody):
    """A text."""

    dialect: ClassVar[Dialect] = Shout()

    words: str

    def to_request(self) -> EmbedRequest:
        """Return the text in lower case."""
        return EmbedRequest(inputs=(Text(self.words.lower(), "words"),))

    def respond(self, found: Embeddings) -> Response:
        """Return the vector alone."""
        return json_response(found.vectors[0])


def test_a_dialect_in_one_place(monkeypatch: pytest.MonkeyPatch, local_client: Client) -> None:
    """A dialect's routes answer, and errors on its paths have its form, once it is listed."""
    monkeypatch.setattr(dialects, "DIALECTS", (*dialects.DIALECTS, Shout()))
    with TestClient(create_app(GatewaySettings(bundle=sample_bundle()))) as http:
        row = http.post("/shout", json={"words": "A RED CAR"}).raise_for_status().json()
        assert np.allclose(row, local_client.encode_texts(["a red car"])[0], atol=1e-6)
        refused = http.post("/shout", json={"words": 1})
        assert (refused.status_code, refused.json()) == (400, "WORDS: EXPECTED A TEXT, GOT 1")
