"""A gateway before a real Triton that serves two models."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
import pytest
from PIL import Image

from support.gateway import served
from twinspire import Client, Index, sample_bundle
from twinspire.bundle import Bundle
from twinspire.errors import MissingDependencyError, SpaceMismatchError
from twinspire.ingest import add_images
from twinspire.migration import migrate
from twinspire_server.gateway.settings import GatewaySettings
from twinspire_server.repository import build_repository
from twinspire_server.triton import TritonServer, find_triton
from twinspire_server.triton.status import ServerStatus, StatusServer
from twinspire_server.triton.supervisor import Supervisor

pytestmark = pytest.mark.slow


class _Canary:
    ok, checked = True, True
    cosine: Mapping[str, float] = {"tiny_text": 0.9998}


class Two(NamedTuple):
    """A Triton that serves the tiny and the sample bundle, the address of its status, and pictures."""

    server: TritonServer
    status_url: str
    pictures: list[Path]


@pytest.fixture(scope="module")
def two(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Two]:
    """Start it."""
    try:
        find_triton()
    except MissingDependencyError as error:
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("two")
    pictures = [folder / f"{number}.png" for number in range(8)]
    for number, file in enumerate(pictures):
        pixels = np.random.default_rng(number).integers(0, 256, (16, 16, 3), np.uint8)
        Image.fromarray(pixels).resize((64, 64)).save(file)
    bundles = [tiny.bundle.path, sample_bundle()]
    build_repository(bundles, folder / "repository", threads=1, raw_inputs=False, description=True)
    with TritonServer(folder / "repository", log_file=folder / "triton.log") as server:
        status = ServerStatus(server, Supervisor(server), _Canary())
        with StatusServer(status, host="127.0.0.1", port=0) as pages:
            yield Two(server, pages.url, pictures)


def _make(path: Path, client: Client, pictures: list[Path]) -> None:
    with Index.create(path, space=client.space, dim=client.dim) as index:
        add_images(index, client, pictures)


def test_the_model_is_the_indexs(two: Two, tiny: Any, tmp_path: Path, local_client: Client) -> None:
    """Of several served models that of the index is used, and after a migration the other one of the same server."""
    with Client.connect(two.server.grpc_url, name="tiny") as client:
        _make(tmp_path / "index", client, two.pictures)
        settings = GatewaySettings(servers=(two.server.grpc_url,), index=str(tmp_path / "index"))
        with served(settings) as url, httpx.Client(base_url=url, timeout=60) as http:
            assert http.get("/v1/info").json()["model"] == "tiny"
            for encoder in (client, local_client):
                migrate(tmp_path / "index", encoder)
                hits = http.post("/v1/search", json={"text": "a red cat", "mode": "vector"}).json()["hits"]
                (vector,) = encoder.encode_texts(["a red cat"])
                with Index.open(tmp_path / "index") as index:
                    (expected,) = index.search(vector[None], space=encoder.space)
                scores = [hit["score"] for hit in hits]
                assert scores == pytest.approx([hit.score for hit in expected], abs=2e-2)
                response = http.post(
                    "/v1/search",
                    files={"image": two.pictures[3].read_bytes()},
                    data={"request": '{"query": [{"image": "upload:0"}]}'},
                )
                assert response.raise_for_status().json()["hits"][0]["id"] == 3
            assert http.get("/v1/info").json()["index"]["space"] == local_client.space


def test_an_index_of_no_served_model_is_refused_at_the_start(two: Two, make_tiny: Any, tmp_path: Path) -> None:
    """A gateway does not start where no model of its servers is of the index's space, and names the models."""
    other: Bundle = make_tiny("other", seed=7).bundle
    with Client.local(other) as client:
        _make(tmp_path / "index", client, two.pictures)
    settings = GatewaySettings(servers=(two.server.grpc_url,), index=str(tmp_path / "index"))
    with pytest.raises(SpaceMismatchError, match="scenes"), served(settings):
        pass


def test_the_status_has_batches_times_and_the_canary(two: Two, tmp_path: Path, tiny: Any) -> None:
    """The status shows what Triton counted of this gateway's searches, and what its canary found."""
    with Client.local(tiny.bundle) as client:
        _make(tmp_path / "index", client, two.pictures)
    settings = GatewaySettings(servers=(two.server.grpc_url,), index=str(tmp_path / "index"), status_url=two.status_url)
    with served(settings) as url, httpx.Client(base_url=url, timeout=60) as http:
        before = http.get("/v1/status").raise_for_status().json()["triton"]
        for number in range(5):
            http.post("/v1/search", json={"text": f"cat {number}", "mode": "vector"}).raise_for_status()
        deadline_s, after = time.monotonic() + 30, before
        while after["models"]["tiny_text"]["requests"] < before["models"]["tiny_text"]["requests"] + 5:
            assert time.monotonic() < deadline_s
            time.sleep(0.1)
            after = http.get("/v1/status").json()["triton"]
        model = after["models"]["tiny_text"]
        assert model["inputs"] >= before["models"]["tiny_text"]["inputs"] + 5
        assert model["recent"]["mean_batch"] >= 1
        assert model["recent"]["compute_ms"] > 0
        assert model["canary_cosine"] == pytest.approx(0.9998)
        assert (after["ready"], after["reasons"]) == (True, [])


def test_a_status_port_that_is_away_is_no_error(scenes_index: Path) -> None:
    """The status says that the port does not answer, and has the rest."""
    settings = GatewaySettings(index=str(scenes_index), status_url="http://127.0.0.1:9")
    with served(settings) as url:
        status = httpx.get(f"{url}/v1/status", timeout=60).raise_for_status().json()
    assert "127.0.0.1:9" in status["triton"]["error"]
    assert status["pending_inputs"] == 0


def test_the_status_counts_requests_by_route(scenes_index: Path) -> None:
    """The status has the rate and the latency of the last minute for each route."""
    with served(GatewaySettings(index=str(scenes_index))) as url, httpx.Client(base_url=url, timeout=60) as http:
        for number in range(3):
            http.get(f"/v1/items/{number}").raise_for_status()
        requests = http.get("/v1/status").json()["requests"]
    route = requests["routes"]["/v1/items/{id}"]
    assert (route["requests"], route["errors"]) == (3, 0)
    assert 0 < route["p50_ms"] <= route["p99_ms"]
