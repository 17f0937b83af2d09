"""`describe_server` and `Client.connect` without a bundle, against servers that describe nothing, or wrongly."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import grpc
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2

from support.description import describing
from twinspire import AsyncClient, Client
from twinspire.bundle import Bundle
from twinspire.errors import (
    BundleError,
    InputError,
    ServerError,
    ServerRefusedError,
    ServerUnavailableError,
    SpaceMismatchError,
    TwinspireError,
)
from twinspire.towers.triton import describe_server

Start = Callable[..., Any]


def test_a_client_without_a_bundle_encodes_as_with_it(tiny: Any, start_fake: Start) -> None:
    """Manifest and tokenizer come from the server, and the embeddings are the same."""
    server = start_fake(hook=describing(tiny.bundle))
    with Client.connect(server.url) as client, Client.connect(server.url, tiny.bundle) as known:
        assert client.bundle.manifest == tiny.bundle.manifest
        assert np.array_equal(client.encode_texts(["a red cat"]), known.encode_texts(["a red cat"]))


def test_an_async_client_needs_no_bundle_either(tiny: Any, start_fake: Start) -> None:
    """`AsyncClient` reads the same description."""

    async def encode(url: str) -> np.ndarray:
        async with await AsyncClient.connect(url) as client:
            assert client.bundle.manifest == tiny.bundle.manifest
            return await client.encode_texts(["a red cat"])

    server = start_fake(hook=describing(tiny.bundle))
    with Client.connect(server.url, tiny.bundle) as known:
        assert np.array_equal(asyncio.run(encode(server.url)), known.encode_texts(["a red cat"]))


def test_the_first_server_that_answers_is_asked(tiny: Any, start_fake: Start) -> None:
    """Of several addresses one that does not answer is passed over."""
    server = start_fake(hook=describing(tiny.bundle))
    assert describe_server(["127.0.0.1:1", server.url], deadline_s=3).location == server.url


def test_a_fallbacks_bundle_is_taken_without_asking(tiny: Any, start_fake: Start) -> None:
    """Where the fallback is a bundle, the server need not describe anything."""
    with Client.connect(start_fake().url, fallback=tiny.bundle) as client:
        assert client.bundle is tiny.bundle


def test_a_server_without_description_is_refused(tiny: Any, start_fake: Start) -> None:
    """Where the model is missing, the error says so and to pass the bundle; it is not retried until the deadline."""

    def missing(server: Any, request: Any, context: Any) -> None:
        context.abort(grpc.StatusCode.NOT_FOUND, "Request for unknown model: 'twinspire' is not found")

    server = start_fake(hook=missing)
    with pytest.raises(ServerRefusedError, match="twinspire build") as caught:
        Client.connect(server.url)
    assert (caught.value.code, caught.value.model, caught.value.address) == ("NOT_FOUND", "twinspire", server.url)
    assert len(server.requests) == 1


def test_what_is_not_available_is_repeated(tiny: Any, start_fake: Start) -> None:
    """A server that is away at first is asked again."""
    describe, left = describing(tiny.bundle), [2]

    def hook(server: Any, request: Any, context: Any) -> Any:
        if left[0]:
            left[0] -= 1
            context.abort(grpc.StatusCode.UNAVAILABLE, "starting")
        return describe(server, request, context)

    assert describe_server(start_fake(hook=hook).url).name == "tiny"


def test_an_absent_server_is_given_up_at_the_deadline() -> None:
    """Where nothing listens, the deadline ends the call."""
    with pytest.raises(ServerUnavailableError) as caught:
        describe_server("127.0.0.1:1", deadline_s=0.3)
    assert caught.value.deadline_s == 0.3


@pytest.mark.parametrize("url", ["http://127.0.0.1:8001", "127.0.0.1", 8001])
def test_an_unusable_address_is_refused(url: Any) -> None:
    """A URL and a host alone are InputErrors."""
    with pytest.raises(InputError) as caught:
        describe_server(url)
    assert caught.value.option == "url"


def _other_space(bundle: Bundle) -> bytes:
    return replace(bundle.manifest, space="a" * 64).to_json().encode()


@pytest.mark.parametrize(
    ("changes", "error", "word"),
    [
        (lambda bundle: {"tokenizer": [b"{}"]}, ServerError, "tokenizer"),
        (lambda bundle: {"tokenizer": [bundle.tokenizer_path.read_bytes()[:-1]]}, ServerError, "tokenizer"),
        (lambda bundle: {"manifest": [_other_space(bundle)]}, ServerError, "space"),
        (lambda bundle: {"manifest": [b"\xff"]}, BundleError, "read"),
        (lambda bundle: {"manifest": [json.dumps({"schema_version": 99}).encode()]}, BundleError, "schema"),
        (lambda bundle: {"manifest": []}, ServerError, "manifest"),
        (lambda bundle: {"names": [], "spaces": []}, ServerError, "names"),
        (lambda bundle: {"names": [b"tiny", b"other"]}, ServerError, "names"),
    ],
)
def test_a_wrong_description_is_an_error(
    tiny: Any, start_fake: Start, changes: Callable[[Bundle], dict[str, list[bytes]]], error: type[Exception], word: str
) -> None:
    """A tokenizer, manifest or list that does not fit the rest is refused."""
    server = start_fake(hook=describing(tiny.bundle, **changes(tiny.bundle)))
    with pytest.raises(error, match=word):
        describe_server(server.url)


def test_models_of_another_space_than_described_are_refused(tiny: Any, start_fake: Start) -> None:
    """The description is checked against what the running towers say of their space."""
    server = start_fake(hook=describing(tiny.bundle), space="b" * 64)
    with pytest.raises(SpaceMismatchError) as caught:
        Client.connect(server.url)
    assert (caught.value.expected, caught.value.found) == (tiny.bundle.space, "b" * 64)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=60), shape=st.lists(st.integers(-2, 2**40), max_size=2), count=st.integers(0, 3))
def test_any_answer_is_an_error_of_ours(
    tiny: Any, answering: Any, content: bytes, shape: list[int], count: int
) -> None:
    """Whatever bytes a server sends as its list, the error is one of this package."""

    def hook(server: Any, request: Any, context: Any) -> Any:
        response = service_pb2.ModelInferResponse()
        for name in ("names", "spaces")[:count]:
            response.outputs.add(name=name, datatype="BYTES", shape=shape)
            response.raw_output_contents.append(content)
        return response

    answering.hook = hook
    with pytest.raises(TwinspireError):
        describe_server(answering.url, name="tiny")


@pytest.fixture
def answering(tiny: Any, start_fake: Start) -> Any:
    """Start a server whose hook the test sets."""
    return start_fake()
