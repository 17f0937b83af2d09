"""Dialects of a gateway in front of a real Triton, while it is there and when it has gone."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import httpx
import numpy as np
import pytest

from twinspire import Client, sample_bundle
from twinspire.errors import MissingDependencyError
from twinspire_server.repository import build_repository
from twinspire_server.triton import TritonServer, find_triton

pytestmark = pytest.mark.slow

MODEL = "scenes"


@pytest.fixture(scope="module")
def triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """A Triton that serves the sample bundle."""
    try:
        find_triton()
    except MissingDependencyError as error:
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("triton")
    build_repository([sample_bundle()], folder / "repository", threads=1, description=True)
    with TritonServer(folder / "repository", log_file=folder / "triton.log") as server:
        yield server


@pytest.fixture(scope="module")
def url(triton: TritonServer, run_gateway: Callable[..., AbstractContextManager[str]]) -> Iterator[str]:
    """The address of a gateway in front of it, which has no bundle of its own."""
    with run_gateway("--server", triton.grpc_url) as address:
        yield address


def test_vectors_are_those_of_a_client(
    triton: TritonServer, url: str, pictures: list[bytes], data_uris: list[str]
) -> None:
    """Texts and pictures of one request are what `Client.connect` gets of the same server."""
    texts = ["a red car", "一只白色的狗"]
    body = {"model": MODEL, "input": [data_uris[0], texts[0], data_uris[1], texts[1], data_uris[2]]}
    data = httpx.post(f"{url}/v1/embeddings", json=body, timeout=60).raise_for_status().json()["data"]
    rows = np.array([one["embedding"] for one in data], np.float32)
    with Client.connect(triton.grpc_url) as client:
        assert np.array_equal(rows[[1, 3]], client.encode_texts(texts))
        assert np.array_equal(rows[[0, 2, 4]], client.encode_images(pictures))
    assert httpx.get(f"{url}/v1/health/ready").json()["ready"] is True


def test_a_server_that_went_away(triton: TritonServer, url: str) -> None:
    """NIM and Weaviate are told that the gateway lives and is not ready. The last test: it stops the server."""
    triton.stop()
    until_s = time.monotonic() + 30  # the last check may have been just before
    while httpx.get(f"{url}/.well-known/ready", timeout=60).status_code != 503:
        assert time.monotonic() < until_s
        time.sleep(0.2)
    ready = httpx.get(f"{url}/v1/health/ready", timeout=60)
    assert (ready.status_code, ready.json()["ready"]) == (503, False)
    assert set(httpx.get(f"{url}/.well-known/ready", timeout=60).json()) == {"error"}
    assert httpx.get(f"{url}/v1/health/live").status_code == 200
