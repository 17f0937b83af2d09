"""Vectors in every dialect, by the bodies that its clients send, against a real gateway."""

from __future__ import annotations

import base64
import json
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from twinspire import Client
from twinspire.search import LruCache, Query
from twinspire.search.encoding import QueryEncoder

MODEL = "scenes"
TEXTS = ["a red car", "一只白色的狗"]
LONG = "red car " * 100

Vectors = NDArray[np.float32]


@pytest.fixture(scope="session")
def text_rows(local_client: Client) -> Vectors:
    """What `Client` makes of the texts."""
    return local_client.encode_texts(TEXTS)


@pytest.fixture(scope="session")
def image_rows(local_client: Client, pictures: list[bytes]) -> Vectors:
    """What `Client` makes of the pictures."""
    return local_client.encode_images(pictures)


@pytest.fixture(scope="session")
def mixed_row(local_client: Client, pictures: list[bytes]) -> Vectors:
    """What a search makes of the sum of the first text and the first picture."""
    encoder = QueryEncoder(local_client, cache=LruCache(0))
    return encoder.vector(Query.text(TEXTS[0]) + Query.image(pictures[0]))


def send(http: httpx.Client, path: str, body: dict[str, Any]) -> Any:
    """Post JSON and return the response's."""
    answer = http.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def rows_of(answer: dict[str, Any]) -> Vectors:
    """Return the vectors of OpenAI's list, as numbers or as base64."""
    assert [one["index"] for one in answer["data"]] == list(range(len(answer["data"])))
    rows = [one["embedding"] for one in answer["data"]]
    if rows and isinstance(rows[0], str):
        return np.array([np.frombuffer(base64.b64decode(row), "<f4") for row in rows])
    return np.array(rows, np.float32)


def content(kind: str, uri: str) -> list[dict[str, Any]]:
    """Return the first text and a picture as a content, in the form of Voyage or of the others."""
    image = (
        {"type": "image_base64", "image_base64": uri}
        if kind == "voyage"
        else {"type": "image_url", "image_url": {"url": uri}}
    )
    return [{"type": "text", "text": TEXTS[0]}, image]


@pytest.mark.parametrize("extra", [{}, {"encoding_format": "base64"}, {"user": "me", "dimensions": 128}])
def test_openai(http: httpx.Client, text_rows: Vectors, extra: dict[str, Any]) -> None:
    """Vectors are bit for bit those of `Client`, as numbers and as base64."""
    answer = send(http, "/v1/embeddings", {"model": MODEL, "input": TEXTS, **extra})
    assert np.array_equal(rows_of(answer), text_rows)


def test_openai_usage(http: httpx.Client, local_client: Client) -> None:
    """Tokens are counted as they were cut to the context."""
    answer = send(http, "/v1/embeddings", {"model": MODEL, "input": [TEXTS[0], LONG]})
    short = len(local_client.tokenize(TEXTS[:1])[0])
    assert answer["usage"]["prompt_tokens"] == answer["usage"]["total_tokens"] == short + 64


def test_vllm_conversation(http: httpx.Client, mixed_row: Vectors, data_uris: list[str]) -> None:
    """A conversation with a text and a picture has one vector, the one that a search makes of their sum."""
    messages = [{"role": "user", "content": content("vllm", data_uris[0])}]
    answer = send(http, "/v1/embeddings", {"model": MODEL, "messages": messages})
    assert np.allclose(rows_of(answer), mixed_row[None], atol=1e-6)


def test_vllm_batch(http: httpx.Client, text_rows: Vectors, image_rows: Vectors, data_uris: list[str]) -> None:
    """A list of conversations has a vector for each."""
    image = {"type": "image_url", "image_url": {"url": data_uris[0], "detail": "auto"}}
    messages = [[{"role": "user", "content": [image]}], *([{"role": "user", "content": text}] for text in TEXTS)]
    answer = send(http, "/v1/embeddings", {"model": MODEL, "messages": messages, "encoding_format": "base64"})
    assert np.array_equal(rows_of(answer), [image_rows[0], *text_rows])


def test_nim(http: httpx.Client, text_rows: Vectors, image_rows: Vectors, data_uris: list[str]) -> None:
    """Texts and pictures mixed in one list come back in its order."""
    given = [data_uris[0], TEXTS[0], data_uris[1], TEXTS[1], data_uris[2]]
    answer = send(http, "/v1/embeddings", {"model": MODEL, "input": given, "encoding_format": "float"})
    rows = rows_of(answer)
    assert np.array_equal(rows[[1, 3]], text_rows)
    assert np.array_equal(rows[[0, 2, 4]], image_rows)


def test_jina(http: httpx.Client, text_rows: Vectors, image_rows: Vectors, data_uris: list[str]) -> None:
    """Objects with a text, a data URI or a file in base64, and plain texts, come back in their order."""
    given = [{"image": data_uris[0]}, {"text": TEXTS[0]}, {"image": data_uris[1].partition(",")[2]}, TEXTS[1]]
    body = {"model": MODEL, "input": given, "normalized": True, "task": "retrieval.query", "dimensions": 128}
    rows = rows_of(send(http, "/v1/embeddings", {**body, "embedding_type": "base64"}))
    assert np.array_equal(rows[[1, 3]], text_rows)
    assert np.allclose(rows[[0, 2]], image_rows[:2], atol=1e-6)  # another batch than the client's three
    assert np.array_equal(rows, rows_of(send(http, "/v1/embeddings", body)))


def test_jina_binary(http: httpx.Client, text_rows: Vectors) -> None:
    """A packed vector has a bit for each component that is not negative, the first one highest."""
    body = {"model": MODEL, "input": TEXTS}
    packed = send(http, "/v1/embeddings", {**body, "embedding_type": "ubinary"})["data"]
    signed = send(http, "/v1/embeddings", {**body, "embedding_type": "binary"})["data"]
    for row, unsigned, minus in zip(text_rows, packed, signed, strict=True):
        bits = "".join("1" if component >= 0 else "0" for component in row)
        expected = [int(bits[start : start + 8], 2) for start in range(0, 128, 8)]
        assert unsigned["embedding"] == expected
        assert minus["embedding"] == [value - 128 for value in expected]


@pytest.mark.parametrize("path", ["/embeddings", "/v1/embeddings"])
def test_infinity(http: httpx.Client, text_rows: Vectors, image_rows: Vectors, data_uris: list[str], path: str) -> None:
    """A modality holds for all inputs; at Infinity's own path the model may be left out."""
    model = {} if path == "/embeddings" else {"model": MODEL}
    images = send(http, path, {**model, "input": data_uris, "modality": "image", "encoding_format": "base64"})
    texts = send(http, path, {**model, "input": TEXTS, "modality": "text", "dimensions": 0})
    assert np.array_equal(rows_of(images), image_rows)
    assert np.array_equal(rows_of(texts), text_rows)
    assert images["model"] == MODEL
    assert images["id"].startswith("infinity-")


def test_cohere(
    http: httpx.Client, text_rows: Vectors, image_rows: Vectors, mixed_row: Vectors, data_uris: list[str]
) -> None:
    """Texts, images, and inputs of both have vectors by type."""
    texts = send(http, "/v2/embed", {"model": MODEL, "texts": TEXTS, "input_type": "search_document"})
    images = send(http, "/v2/embed", {"model": MODEL, "images": data_uris, "embedding_types": ["base64"]})
    inputs = send(http, "/v2/embed", {"model": MODEL, "inputs": [{"content": content("cohere", data_uris[0])}]})
    assert np.array_equal(np.array(texts["embeddings"]["float"], np.float32), text_rows)
    assert texts["texts"] == TEXTS
    decoded = [np.frombuffer(base64.b64decode(row), "<f4") for row in images["embeddings"]["base64"]]
    assert np.array_equal(decoded, image_rows)
    assert images["meta"]["billed_units"] == {"input_tokens": 0, "images": 3}
    assert images["meta"]["tokens"]["input_tokens"] == 3 * (112 // 16) ** 2, "an image counts its patches"
    assert np.allclose(np.array(inputs["embeddings"]["float"], np.float32), mixed_row[None], atol=1e-6)


def test_cohere_whole_numbers(http: httpx.Client, text_rows: Vectors) -> None:
    """int8 is the component times 127, rounded; uint8 is that plus 128."""
    body = {"model": MODEL, "texts": TEXTS, "embedding_types": ["int8", "uint8"]}
    found = send(http, "/v2/embed", body)["embeddings"]
    signed = np.array(found["int8"])
    assert np.array_equal(signed, [[round(float(component) * 127) for component in row] for row in text_rows])
    assert np.array_equal(np.array(found["uint8"]), signed + 128)
    cosines = (signed / np.linalg.norm(signed, axis=1, keepdims=True) * text_rows).sum(axis=1)
    assert cosines.min() > 0.999


@pytest.mark.parametrize("truncate", ["START", "END"])
def test_truncation(http: httpx.Client, local_client: Client, truncate: str) -> None:
    """START cuts the start of a text off, END its end, for Cohere as for NIM."""
    text = "red car " * 40 + "dog " * 80
    starts, ends = (local_client.tokenize([text], truncation=cut)[0] for cut in ("start", "end"))
    assert not np.array_equal(starts, ends)
    ids = starts if truncate == "START" else ends
    cohere = send(http, "/v2/embed", {"model": MODEL, "texts": [text], "truncate": truncate})["embeddings"]["float"]
    nim = send(http, "/v1/embeddings", {"model": MODEL, "input": [text], "truncate": truncate})
    expected = local_client.towers.encode_texts([ids])
    assert np.array_equal(np.array(cohere, np.float32), expected)
    assert np.array_equal(rows_of(nim), expected)


def test_voyage(http: httpx.Client, mixed_row: Vectors, image_rows: Vectors, data_uris: list[str]) -> None:
    """Inputs of texts and pictures have a vector each; usage counts the pixels as they were sent."""
    image = [{"type": "image_url", "image_url": data_uris[1]}]
    inputs = [{"content": content("voyage", data_uris[0])}, {"content": image}]
    answer = send(http, "/v1/multimodalembeddings", {"model": MODEL, "inputs": inputs, "input_type": "document"})
    assert np.allclose(rows_of(answer)[0], mixed_row, atol=1e-6)
    assert np.allclose(rows_of(answer)[1], image_rows[1], atol=1e-6)
    assert answer["usage"]["image_pixels"] == 2 * 120 * 90


def test_voyage_texts(http: httpx.Client, text_rows: Vectors) -> None:
    """Voyage's texts share a path with OpenAI's, and may be whole numbers in base64."""
    body = {"model": MODEL, "input": TEXTS, "truncation": True, "output_dtype": "int8", "encoding_format": "base64"}
    rows = [
        np.frombuffer(base64.b64decode(one["embedding"]), np.int8) for one in send(http, "/v1/embeddings", body)["data"]
    ]
    assert np.array_equal(rows, np.rint(text_rows * 127))


def test_immich(http: httpx.Client, local_client: Client, text_rows: Vectors, pictures: list[bytes]) -> None:
    """A picture and a text give a vector as a text of JSON; a picture its size too."""

    def predict(kind: str, entry: dict[str, Any], **more: Any) -> Any:
        return http.post(
            "/predict", data={"entries": json.dumps({"clip": {kind: entry}})} | more.pop("data", {}), **more
        )

    image = predict("visual", {"modelName": MODEL}, files={"image": ("blob", pictures[1])}).raise_for_status().json()
    entry = {"modelName": MODEL, "options": {"language": "de"}}
    text = predict("textual", entry, data={"text": TEXTS[0]}).raise_for_status().json()
    assert np.array_equal(np.array(json.loads(image["clip"]), np.float32), local_client.encode_images(pictures[1:2])[0])
    assert (image["imageWidth"], image["imageHeight"]) == (120, 90)
    assert np.allclose(json.loads(text["clip"]), text_rows[0], atol=1e-6)
    assert set(text) == {"clip"}


def test_weaviate(http: httpx.Client, text_rows: Vectors, image_rows: Vectors, pictures: list[bytes]) -> None:
    """Texts and pictures come back apart. Weaviate sends null for what there is none of, and no Content-Type."""
    images = [base64.b64encode(picture).decode() for picture in pictures]
    both = http.post("/vectorize", content=json.dumps({"texts": TEXTS, "images": images})).raise_for_status().json()
    texts = http.post("/vectorize", content=json.dumps({"texts": TEXTS, "images": None})).raise_for_status().json()
    assert np.array_equal(np.array(both["textVectors"], np.float32), text_rows)
    assert np.array_equal(np.array(both["imageVectors"], np.float32), image_rows)
    assert texts == {"textVectors": both["textVectors"], "imageVectors": []}


@pytest.mark.parametrize(
    ("path", "status", "has"),
    [
        ("/health", 200, "unix"),
        ("/v1/health/live", 200, "live"),
        ("/v1/health/ready", 200, "ready"),
        ("/ping", 200, "pong"),
        ("/.well-known/live", 204, ""),
        ("/.well-known/ready", 204, ""),
        ("/meta", 200, "space"),
        ("/v1/metadata", 200, "modelInfo"),
        ("/models", 200, "image_embed"),
        ("/models", 200, '"owned_by":"infinity"'),
    ],
)
def test_health_and_description(http: httpx.Client, path: str, status: int, has: str) -> None:
    """Each dialect's routes of health and description answer as its clients expect."""
    answer = http.get(path)
    assert (answer.status_code, has in answer.text) == (status, True)


def test_every_form_has_an_example(http: httpx.Client) -> None:
    """The OpenAPI document shows an example of each dialect, and each is answered unless its picture is cut short."""
    document = http.get("/openapi.json").json()
    content_ = document["paths"]["/v1/embeddings"]["post"]["requestBody"]["content"]["application/json"]
    assert len(content_["schema"]["oneOf"]) == len(content_["examples"]) == 6
    for name, example in content_["examples"].items():
        answer = http.post("/v1/embeddings", json=example["value"])
        assert answer.status_code == 200 or "base64" in answer.text, (name, answer.text)
    for path in ("/embeddings", "/v2/embed", "/v1/multimodalembeddings", "/vectorize"):
        schema = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
        assert document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]["examples"]
