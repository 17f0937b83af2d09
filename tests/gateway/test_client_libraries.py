"""The vendors' own client libraries, unmodified, against a real gateway."""

from __future__ import annotations

import asyncio
import io
import os
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from twinspire import Client

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of the libraries' own imports
    import cohere
    import openai
    import voyageai
    import voyageai.error

# Some of the clients leave their sockets to the collector.
pytestmark = [
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

MODEL, KEY = "scenes", "any"
TEXTS = ["a red car", "一只白色的狗"]

Vectors = NDArray[np.float32]


@pytest.fixture(scope="session")
def text_rows(local_client: Client) -> Vectors:
    """What `Client` makes of the texts."""
    return local_client.encode_texts(TEXTS)


@pytest.fixture(scope="session")
def image_rows(local_client: Client, pictures: list[bytes]) -> Vectors:
    """What `Client` makes of the pictures."""
    return local_client.encode_images(pictures)


@pytest.fixture
def openai_client(gateway: str) -> Iterator[openai.OpenAI]:
    """OpenAI's client of the gateway."""
    with openai.OpenAI(base_url=f"{gateway}/v1", api_key=KEY, max_retries=0) as client:
        yield client


@pytest.fixture
def cohere_client(gateway: str) -> Iterator[cohere.ClientV2]:
    """Cohere's client of the gateway; it cannot be closed, so that its connections are ours."""
    with httpx.Client() as connections:
        yield cohere.ClientV2(api_key=KEY, base_url=gateway, httpx_client=connections)


@pytest.fixture
def voyage_client(gateway: str) -> voyageai.Client:
    """Voyage's client of the gateway."""
    return voyageai.Client(api_key=KEY, base_url=f"{gateway}/v1")


def rows_of(answer: Any) -> Vectors:
    """Return the vectors of a response in OpenAI's form."""
    return np.array([one["embedding"] if isinstance(one, dict) else one.embedding for one in answer.data], np.float32)


def test_openai(openai_client: openai.OpenAI, text_rows: Vectors) -> None:
    """OpenAI's client, which asks for base64, gets `Client`'s vectors; as numbers too."""
    by_default = openai_client.embeddings.create(model=MODEL, input=TEXTS)
    numbers = openai_client.embeddings.create(model=MODEL, input=TEXTS, encoding_format="float")
    assert np.array_equal(rows_of(by_default), text_rows)
    assert np.array_equal(rows_of(numbers), text_rows)
    assert by_default.usage.prompt_tokens == numbers.usage.total_tokens > 0


def test_openai_models(openai_client: openai.OpenAI) -> None:
    """The model is listed and found by its name; another one is not."""
    assert [model.id for model in openai_client.models.list()] == [MODEL]
    assert openai_client.models.retrieve(MODEL).id == MODEL
    with pytest.raises(openai.NotFoundError):
        openai_client.models.retrieve("other")


def test_openai_errors(openai_client: openai.OpenAI) -> None:
    """OpenAI's client raises its own exceptions, with param and code."""
    with pytest.raises(openai.NotFoundError) as unknown:
        openai_client.embeddings.create(model="other", input="a")
    assert (unknown.value.param, unknown.value.code) == ("model", "model_not_found")
    with pytest.raises(openai.BadRequestError) as tokens:
        openai_client.embeddings.create(model=MODEL, input=[[1, 2, 3]])
    assert tokens.value.code == "token_ids_not_supported"
    with pytest.raises(openai.BadRequestError) as dimensions:
        openai_client.embeddings.create(model=MODEL, input="a", dimensions=100)
    assert (dimensions.value.param, dimensions.value.code) == ("dimensions", "dimensions_not_allowed")


def test_openai_with_images(openai_client: openai.OpenAI, image_rows: Vectors, data_uris: list[str]) -> None:
    """Pictures go through OpenAI's client as NIM's users send them, and as Infinity's do."""
    nim = openai_client.embeddings.create(
        model=MODEL, input=data_uris, extra_body={"input_type": "passage", "truncate": "NONE"}
    )
    infinity = openai_client.embeddings.create(model=MODEL, input=data_uris, extra_body={"modality": "image"})
    assert np.array_equal(rows_of(nim), image_rows)
    assert np.array_equal(rows_of(infinity), image_rows)


def test_openai_with_messages(openai_client: openai.OpenAI, image_rows: Vectors, data_uris: list[str]) -> None:
    """A conversation goes through OpenAI's client as vLLM's documentation shows it."""
    content = [{"type": "image_url", "image_url": {"url": data_uris[0]}}]
    answer = openai_client.post(
        "/embeddings",
        cast_to=openai.types.CreateEmbeddingResponse,
        body={"model": MODEL, "messages": [{"role": "user", "content": content}], "encoding_format": "float"},
    )
    assert np.allclose(rows_of(answer), image_rows[:1], atol=1e-6)  # of another batch


def test_async_openai(gateway: str, text_rows: Vectors) -> None:
    """OpenAI's client for asyncio gets the same vectors."""

    async def embedded() -> Any:
        async with openai.AsyncOpenAI(base_url=f"{gateway}/v1", api_key=KEY) as client:
            return await client.embeddings.create(model=MODEL, input=TEXTS)

    assert np.array_equal(rows_of(asyncio.run(embedded())), text_rows)


def test_cohere_texts(cohere_client: cohere.ClientV2, text_rows: Vectors) -> None:
    """Cohere's client gets every type of vector, and the texts."""
    answer = cohere_client.embed(
        model=MODEL,
        texts=TEXTS,
        input_type="search_document",
        embedding_types=["float", "int8", "uint8", "binary", "ubinary"],
    )
    assert np.array_equal(np.array(answer.embeddings.float_, np.float32), text_rows)
    assert np.array_equal(answer.embeddings.int8, np.rint(text_rows * 127))
    assert np.array_equal(answer.embeddings.ubinary, np.packbits(text_rows >= 0, axis=1))
    assert np.array_equal(np.array(answer.embeddings.binary) + 128, answer.embeddings.ubinary)
    assert answer.texts == TEXTS


def test_cohere_images(cohere_client: cohere.ClientV2, image_rows: Vectors, data_uris: list[str]) -> None:
    """Cohere's client sends pictures, alone and as inputs."""
    images = cohere_client.embed(model=MODEL, images=data_uris, input_type="image", embedding_types=["float"])
    inputs = [{"content": [{"type": "image_url", "image_url": {"url": uri}}]} for uri in data_uris]
    mixed = cohere_client.embed(model=MODEL, inputs=inputs, input_type="image", embedding_types=["float"])
    assert np.array_equal(np.array(images.embeddings.float_, np.float32), image_rows)
    assert images.embeddings.float_ == mixed.embeddings.float_


def test_cohere_errors(cohere_client: cohere.ClientV2) -> None:
    """Cohere's client raises its own exceptions, with the message."""
    with pytest.raises(cohere.NotFoundError) as unknown:
        cohere_client.embed(model="other", texts=TEXTS, input_type="search_query")
    assert "other" in unknown.value.body["message"]
    with pytest.raises(cohere.BadRequestError) as bad:
        cohere_client.embed(model=MODEL, texts=["cat " * 200], input_type="search_query", truncate="NONE")
    assert "texts[0]" in bad.value.body["message"]


def test_voyage(voyage_client: voyageai.Client, text_rows: Vectors, image_rows: Vectors, pictures: list[bytes]) -> None:
    """Voyage's client sends texts and pictures, which it writes as WebP without loss."""
    opened = [Image.open(io.BytesIO(picture)) for picture in pictures]
    answer = voyage_client.multimodal_embed([*([text] for text in TEXTS), *([image] for image in opened)], MODEL)
    rows = np.array(answer.embeddings, np.float32)
    assert np.array_equal(rows[:2], text_rows)
    assert np.array_equal(rows[2:], image_rows)
    assert (answer.image_pixels, answer.video_pixels) == (3 * 120 * 90, 0)
    assert answer.total_tokens - 3 * (112 // 16) ** 2 == answer.text_tokens > 0


def test_voyage_texts(voyage_client: voyageai.Client, text_rows: Vectors) -> None:
    """Voyage's client gets texts as float32 and as whole numbers."""
    answer = voyage_client.embed(TEXTS, model=MODEL, input_type="query")
    whole = voyage_client.embed(TEXTS, model=MODEL, input_type="document", output_dtype="int8", output_dimension=128)
    assert np.array_equal(np.array(answer.embeddings, np.float32), text_rows)
    assert np.array_equal(whole.embeddings, np.rint(text_rows * 127))


def test_voyage_errors(voyage_client: voyageai.Client) -> None:
    """Voyage's client raises its own exception, with the message."""
    with pytest.raises(voyageai.error.InvalidRequestError, match="tokens"):
        voyage_client.multimodal_embed([["cat " * 200]], MODEL, truncation=False)


@pytest.fixture(scope="session")
def litellm_rows(gateway: str) -> Callable[..., Vectors]:
    """Embed through LiteLLM as one of its providers; importing it takes seconds."""
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # or it asks another host for prices
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import litellm

    def rows(provider: str, inputs: list[str], path: str = "", **options: Any) -> Vectors:
        base = f"{gateway}{path}"
        return rows_of(litellm.embedding(f"{provider}/{MODEL}", input=inputs, api_base=base, api_key=KEY, **options))

    return rows


@pytest.mark.slow
@pytest.mark.parametrize(
    ("provider", "path"),
    [
        ("openai", "/v1"),
        ("hosted_vllm", "/v1"),
        ("nvidia_nim", "/v1"),
        ("jina_ai", "/v1"),
        ("infinity", ""),
        ("cohere", "/v2/embed"),
        ("voyage", "/v1/embeddings"),
    ],
)
def test_litellm_texts(litellm_rows: Callable[..., Vectors], text_rows: Vectors, provider: str, path: str) -> None:
    """LiteLLM gets texts in the dialect of each of its providers."""
    assert np.array_equal(litellm_rows(provider, TEXTS, path), text_rows)


@pytest.mark.slow
def test_litellm_images(litellm_rows: Callable[..., Vectors], image_rows: Vectors, data_uris: list[str]) -> None:
    """LiteLLM sends pictures as Jina's objects, and as Infinity's modality."""
    assert np.array_equal(litellm_rows("jina_ai", data_uris, "/v1"), image_rows)
    infinity = litellm_rows("infinity", data_uris, modality="image")
    assert np.array_equal(infinity, image_rows)


@pytest.mark.slow
def test_langchain(gateway: str, text_rows: Vectors) -> None:
    """LangChain gets documents and queries; it must not send OpenAI's token ids."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import langchain_openai

    embeddings = langchain_openai.OpenAIEmbeddings(
        model=MODEL, base_url=f"{gateway}/v1", api_key=KEY, check_embedding_ctx_length=False
    )
    documents = np.array(embeddings.embed_documents(TEXTS), np.float32)
    assert np.array_equal(documents, text_rows)
    assert np.allclose(embeddings.embed_query(TEXTS[0]), text_rows[0], atol=1e-6)
