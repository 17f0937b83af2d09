"""An index that changes while a gateway searches it."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from support.gateway import served
from twinspire import Client, Index
from twinspire.bundle import Bundle
from twinspire.errors import IndexStoreError, InputError, SpaceMismatchError
from twinspire.ingest import add_images
from twinspire.migration import migrate
from twinspire.stores import BundleReference
from twinspire_server.gateway.settings import GatewaySettings

COUNT = 12
MakeTiny = Callable[..., Any]


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    """Files of pictures that differ."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    files = [folder / f"{number}.png" for number in range(COUNT)]
    for number, file in enumerate(files):
        pixels = np.random.default_rng(number).integers(0, 256, (16, 16, 3), np.uint8)
        Image.fromarray(pixels).save(file)
    return files


def _make(path: Path, bundle: Bundle, files: list[Path]) -> None:
    """Make an index of files that remembers its bundle."""
    reference = BundleReference("tiny", str(bundle.path))
    with (
        Client.local(bundle) as client,
        Index.create(path, space=client.space, dim=client.dim, bundle=reference) as index,
    ):
        add_images(index, client, files)


def _wait(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


@contextmanager
def _load(url: str) -> Iterator[list[tuple[int, str]]]:
    """Search and show pictures from four threads during a block; gives the answers that were not 200."""
    failed: list[tuple[int, str]] = []
    answered = [0] * 4
    stop = threading.Event()

    def ask(number: int) -> None:
        with httpx.Client(base_url=url, timeout=60) as http:
            while not stop.is_set():
                responses = [
                    http.post("/v1/search", json={"text": f"cat {answered[number]}", "mode": "vector"}),
                    http.post("/v1/search", json={"query": [{"image": "item:1"}]}),
                    http.get("/v1/items/1/image"),
                    http.get("/v1/info"),
                ]
                failed.extend((each.status_code, each.text) for each in responses if each.status_code != 200)
                answered[number] += 1

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    try:
        _wait(lambda: all(answered))
        yield failed
        before = list(answered)
        _wait(lambda: all(now > earlier for now, earlier in zip(answered, before, strict=True)))
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def _best(http: httpx.Client, id_: int) -> tuple[float, int]:
    hit = http.post("/v1/search", json={"query": [{"image": f"item:{id_}"}]}).raise_for_status().json()["hits"][0]
    return hit["score"], hit["id"]


def test_a_migration_fails_no_request(make_tiny: MakeTiny, pictures: list[Path], tmp_path: Path) -> None:
    """While the index is migrated to another model every request is answered, afterwards by the new model."""
    first, second = make_tiny("first").bundle, make_tiny("second", seed=1, dim=16).bundle
    _make(tmp_path / "index", first, pictures)
    settings = GatewaySettings(index=str(tmp_path / "index"))
    with served(settings) as url, httpx.Client(base_url=url, timeout=60) as http, Client.local(second) as client:
        with _load(url) as failed:
            report = migrate(tmp_path / "index", client, bundle=BundleReference("tiny", str(second.path)))
        assert report.switched
        assert failed == []
        assert http.get("/v1/info").json()["index"]["space"] == second.space
        (expected,) = client.encode_texts(["a red cat"])
        hits = http.post("/v1/search", json={"text": "a red cat", "mode": "vector"}).json()["hits"]
        with Index.open(tmp_path / "index") as index:
            (best,) = index.search(expected[None], k=1, space=client.space)[0]
        assert hits[0]["score"] == pytest.approx(best.score, abs=1e-4)


def test_a_replaced_and_a_built_index_fail_no_request(
    make_tiny: MakeTiny, pictures: list[Path], tmp_path: Path
) -> None:
    """A link that is switched to another index, one that is built for ANN search and compacted: all go on."""
    bundle = make_tiny().bundle
    _make(tmp_path / "one", bundle, pictures)
    _make(tmp_path / "two", bundle, pictures[:6])
    (tmp_path / "index").symlink_to("one")
    settings = GatewaySettings(index=str(tmp_path / "index"))
    with served(settings) as url, httpx.Client(base_url=url, timeout=60) as http:
        assert http.get("/v1/info").json()["index"]["items"] == COUNT
        with _load(url) as failed:
            (tmp_path / "next").symlink_to("two")
            os.replace(tmp_path / "next", tmp_path / "index")  # noqa: PTH105 - atomic, of links
            with Index.open(tmp_path / "two", mode="write") as index:
                index.build("hnsw")
                index.remove([5])
                index.compact()
        assert failed == []
        assert http.get("/v1/info").json()["index"]["items"] == 5
        assert _best(http, 3) == (pytest.approx(1, abs=1e-5), 3)


def test_an_index_that_is_gone_is_503(make_tiny: MakeTiny, pictures: list[Path], tmp_path: Path) -> None:
    """An index whose folder is moved away is 503 with Retry-After until it is back."""
    _make(tmp_path / "index", make_tiny().bundle, pictures)
    settings = GatewaySettings(index=str(tmp_path / "index"))
    with served(settings) as url, httpx.Client(base_url=url, timeout=60) as http:
        (tmp_path / "index").rename(tmp_path / "moved")
        response = http.post("/v1/search", json={"text": "a cat"})
        assert (response.status_code, response.json()["error"]["code"]) == (503, "index_gone")
        assert int(response.headers["retry-after"]) >= 1
        (tmp_path / "moved").rename(tmp_path / "index")
        assert _best(http, 2)[1] == 2


def test_an_index_of_an_unknown_model_is_409(make_tiny: MakeTiny, pictures: list[Path], tmp_path: Path) -> None:
    """An index that is migrated to a model that cannot be had is 409, and embeddings go on."""
    first, second = make_tiny("first").bundle, make_tiny("second", seed=1).bundle
    _make(tmp_path / "index", first, pictures)
    settings = GatewaySettings(index=str(tmp_path / "index"))
    with served(settings) as url, httpx.Client(base_url=url, timeout=60) as http:
        with Client.local(second) as client:
            migrate(tmp_path / "index", client, bundle=BundleReference("tiny", str(tmp_path / "elsewhere")))
        for response in (http.post("/v1/search", json={"text": "a cat"}), http.get("/v1/items/1")):
            assert (response.status_code, response.json()["error"]["code"]) == (409, "space_mismatch")
            assert "elsewhere" in response.json()["error"]["message"]
        http.post("/v1/embeddings", json={"model": "tiny", "input": "a cat"}).raise_for_status()


def test_an_index_of_another_space_is_refused_at_the_start(
    make_tiny: MakeTiny, pictures: list[Path], tmp_path: Path
) -> None:
    """A gateway with a bundle that did not make the index does not start."""
    _make(tmp_path / "index", make_tiny("first").bundle, pictures)
    settings = GatewaySettings(index=str(tmp_path / "index"), bundle=make_tiny("second", seed=1).bundle.path)
    with pytest.raises(SpaceMismatchError, match="--bundle"), served(settings):
        pass


def test_a_missing_index_is_refused_at_the_start(tmp_path: Path) -> None:
    """A gateway whose index does not exist does not start, and says where it looked."""
    with (
        pytest.raises((InputError, IndexStoreError), match="missing"),
        served(GatewaySettings(index=str(tmp_path / "missing"))),
    ):
        pass


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/v1/search", {"text": "a"}),
        ("POST", "/v1/classify", {"labels": ["a"], "images": ["item:1"]}),
        ("GET", "/v1/items/1", None),
        ("GET", "/v1/items/1/image", None),
        ("GET", "/v1/items/events", None),
    ],
)
def test_without_an_index_the_routes_say_so(http: httpx.Client, method: str, path: str, body: object) -> None:
    """A gateway that was started without an index answers 404 and names the option."""
    response = http.request(method, path, json=body)
    assert response.status_code == 404, response.text
    assert "--index" in response.json()["error"]["message"]
    assert http.get("/v1/info").json()["index"] is None


def test_searches_are_bounded_as_embeddings_are(make_tiny: MakeTiny, pictures: list[Path], tmp_path: Path) -> None:
    """Beyond the bound on waiting inputs searches get 429 with Retry-After; nothing else happens to them."""
    _make(tmp_path / "index", make_tiny().bundle, pictures)
    settings = GatewaySettings(index=str(tmp_path / "index"), max_inputs=1, max_pending=2)
    parts = [{"text": word} for word in ("cat", "dog", "boat")]
    with served(settings) as url, httpx.Client(base_url=url, timeout=60) as http:
        refused = http.post("/v1/search", json={"query": parts})
        assert (refused.status_code, int(refused.headers["retry-after"]) >= 1) == (429, True)
        assert http.post("/v1/search", json={"query": parts[:2]}).status_code == 200
        labels = http.post("/v1/classify", json={"labels": ["cat", "dog"], "images": ["item:1"]})
        assert labels.status_code == 429

        def ask(number: int) -> int:
            return http.post("/v1/search", json={"text": f"cat {number}"}).status_code

        with ThreadPoolExecutor(16) as threads:
            assert set(threads.map(ask, range(64))) <= {200, 429}
        assert http.post("/v1/search", json={"query": parts[:2]}).status_code == 200
        assert http.get("/v1/status").json()["pending_inputs"] == 0
