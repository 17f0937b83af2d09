"""OpenAI's dialect against a real gateway."""

from __future__ import annotations

import base64

import httpx
import numpy as np
import pytest

from twinspire import Client

TEXTS = ["a red car", "一只白色的狗", ""]


@pytest.mark.parametrize("encoding", ["float", "base64"])
def test_embeddings_are_the_clients(http: httpx.Client, local_client: Client, encoding: str) -> None:
    """Vectors are bit for bit those of `Client`, as numbers and as base64."""
    body = {"model": "scenes", "input": TEXTS, "encoding_format": encoding}
    answer = http.post("/v1/embeddings", json=body).raise_for_status().json()
    rows = [one["embedding"] for one in answer["data"]]
    if encoding == "base64":
        rows = [np.frombuffer(base64.b64decode(row), "<f4") for row in rows]
    assert np.array_equal(np.array(rows, np.float32), local_client.encode_texts(TEXTS))
    assert answer["usage"]["prompt_tokens"] == sum(map(len, local_client.tokenize(TEXTS)))


def test_an_unknown_model_is_404(http: httpx.Client) -> None:
    """A model that is not served is 404, in OpenAI's form."""
    answer = http.post("/v1/embeddings", json={"model": "other", "input": "a"})
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "model_not_found"
