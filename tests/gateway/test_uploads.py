"""Pictures that are added over HTTP, and the events of the index."""

from __future__ import annotations

import hashlib
import io
import json
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
import pytest
from PIL import Image

from support.gateway import served
from twinspire import Client, Index
from twinspire.errors import InputError
from twinspire.ingest import add_texts
from twinspire.stores import BundleReference
from twinspire_server.gateway.safety.options import SafetyOptions
from twinspire_server.gateway.settings import GatewaySettings

KEY = {"Authorization": "Bearer a-key-of-these-tests"}


def _keys(folder: Path) -> Path:
    path = folder / "keys.txt"
    path.write_text("a-key-of-these-tests tests\n", encoding="utf-8")
    return path


class Own(NamedTuple):
    """A gateway that takes pictures."""

    http: httpx.Client
    index: Path
    uploads: Path


@pytest.fixture(scope="module")
def own(local_client: Client, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Own]:
    """A gateway with an empty index, whose requests have a key."""
    folder = tmp_path_factory.mktemp("uploads")
    (folder / "uploads").mkdir()
    reference = BundleReference("scenes")
    Index.create(folder / "index", space=local_client.space, dim=local_client.dim, bundle=reference).close()
    settings = GatewaySettings(
        index=str(folder / "index"), uploads=folder / "uploads", safety=SafetyOptions(keys=_keys(folder))
    )
    with served(settings) as url, httpx.Client(base_url=url, timeout=60, headers=KEY) as http:
        yield Own(http, folder / "index", folder / "uploads")


def _encoded(seed: int, format_: str = "JPEG") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize((64, 48)).save(file, format_)
    return file.getvalue()


def _added(own: Own, *files: tuple[str, bytes], **fields: Any) -> dict[str, Any]:
    response = own.http.post("/v1/items", files=[("image", file) for file in files], data=fields)
    assert response.status_code == 200, response.text
    document: dict[str, Any] = response.json()
    return document


def test_added_pictures_are_found(own: Own, local_client: Client) -> None:
    """Each picture becomes an item with caption, metadata and the client's name for it, and its own vector."""
    first, second = _encoded(1), _encoded(2, "PNG")
    document = _added(
        own,
        ("holiday.jpg", first),
        ("../../b.png", second),
        caption=["a zebra in snow", "ein Zebra"],
        metadata=[json.dumps({"album": "zoo"}), "{}"],
    )
    assert (document["added"], document["duplicate"], document["failed"]) == (2, 0, 0)
    items = [own.http.get(f"/v1/items/{item['id']}").json() for item in document["items"]]
    assert [item["caption"] for item in items] == ["a zebra in snow", "ein Zebra"]
    assert [item["metadata"]["name"] for item in items] == ["holiday.jpg", "b.png"]
    assert items[0]["metadata"]["album"] == "zoo"
    for item, data, suffix in zip(items, (first, second), (".jpg", ".png"), strict=True):
        path = own.uploads / (hashlib.sha256(data).hexdigest() + suffix)
        assert item["uri"] == str(path)
        assert path.read_bytes() == data
    hits = own.http.post("/v1/search", json={"text": '"zebra in snow"', "where": "album = 'zoo'"}).json()["hits"]
    assert [hit["id"] for hit in hits] == [items[0]["id"]]
    with Index.open(own.index) as index:
        assert index.vectors([items[0]["id"]])[0] @ local_client.encode_images([first])[0] == pytest.approx(1, abs=1e-4)
    assert own.http.get(f"/v1/items/{items[0]['id']}/image").status_code == 200
    assert [path.name for path in own.uploads.iterdir() if path.name.startswith(".")] == []


def test_duplicates_and_failures_are_named_each(own: Own) -> None:
    """A known picture, one that comes twice and what is no picture are told apart, and the rest is added."""
    known = _added(own, ("a.jpg", _encoded(10)))["items"][0]
    files = set(own.uploads.iterdir())
    damaged = _encoded(13, "PNG")[:-30]
    document = _added(
        own,
        ("again.jpg", _encoded(10)),
        ("new.jpg", _encoded(11)),
        ("twice.jpg", _encoded(11)),
        ("x.svg", b"<svg/>"),
        ("y.png", damaged),
        ("empty.jpg", b""),
    )
    statuses = [item["status"] for item in document["items"]]
    assert statuses == ["duplicate", "added", "duplicate", "failed", "failed", "failed"]
    assert (document["added"], document["duplicate"], document["failed"]) == (1, 2, 3)
    assert document["items"][0]["id"] == known["id"]
    assert document["items"][2]["id"] == document["items"][1]["id"]
    assert all(item["cause"] for item in document["items"][3:])
    assert len(set(own.uploads.iterdir()) - files) == 1


def test_a_file_is_never_overwritten(own: Own) -> None:
    """A file of that name in the folder stays as it is."""
    data = _encoded(20)
    path = own.uploads / f"{hashlib.sha256(data).hexdigest()}.jpg"
    path.write_bytes(b"something else")
    document = _added(own, ("a.jpg", data))
    assert path.read_bytes() == b"something else"
    assert document["failed"] == 1


def test_a_bomb_is_not_decoded(own: Own) -> None:
    """A picture of more pixels than allowed fails by its header."""
    header = Image.new("1", (1, 1))
    file = io.BytesIO()
    header.save(file, "PNG")
    png = bytearray(file.getvalue())
    png[16:24] = (20_000).to_bytes(4, "big") * 2
    png[29:33] = zlib.crc32(png[12:29]).to_bytes(4, "big")
    document = _added(own, ("bomb.png", bytes(png)))
    assert "megapixels" in document["items"][0]["cause"]


@pytest.mark.parametrize(
    ("fields", "files", "word"),
    [
        ({}, [], "image"),
        ({"caption": ["a", "b", "c"]}, [("a.jpg", b"x"), ("b.jpg", b"y")], "caption"),
        ({"metadata": "[]"}, [("a.jpg", b"x")], "object"),
        ({"metadata": "{"}, [("a.jpg", b"x")], "JSON"),
        ({"caption": "a\0b"}, [("a.jpg", b"x")], "NUL"),
        ({"path": "/etc/passwd"}, [("a.jpg", b"x")], "path"),
        ({}, [(f"{number}.jpg", b"x") for number in range(65)], "64"),
    ],
)
def test_other_forms_are_refused(own: Own, fields: dict[str, Any], files: list[tuple[str, bytes]], word: str) -> None:
    """What is wrong with a form is named, and nothing is written."""
    before = set(own.uploads.iterdir())
    parts = [("image", file) for file in files] or [("nothing", ("", b""))]
    response = own.http.post("/v1/items", files=parts if files else {"caption": (None, "a")}, data=fields)
    assert response.status_code == 400, response.text
    assert word in response.json()["error"]["message"]
    assert set(own.uploads.iterdir()) == before


def test_a_busy_index_is_503(own: Own) -> None:
    """While another process writes to the index the answer is 503 with Retry-After, and no file is left."""
    before = set(own.uploads.iterdir())
    with Index.open(own.index, mode="write"):
        response = own.http.post("/v1/items", files={"image": ("a.jpg", _encoded(30))})
    assert response.status_code == 503, response.text
    assert int(response.headers["retry-after"]) >= 1
    assert set(own.uploads.iterdir()) == before
    assert _added(own, ("a.jpg", _encoded(30)))["added"] == 1


def test_many_at_a_time_are_all_added(own: Own) -> None:
    """Requests that come together wait for each other: each is added, none fails for the writer's lock."""
    statuses: list[int] = []

    def add(number: int) -> None:
        response = own.http.post("/v1/items", files={"image": (f"{number}.jpg", _encoded(100 + number))})
        statuses.append(response.status_code)

    threads = [threading.Thread(target=add, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses == [200] * 6


def test_a_wrong_key_adds_nothing(own: Own) -> None:
    """Without the key, and with a wrong one, the answer is 401 and nothing is written."""
    before = set(own.uploads.iterdir())
    for headers in ({"Authorization": ""}, {"Authorization": "Bearer a-key-of-other-tests"}):
        response = own.http.post("/v1/items", files={"image": ("a.jpg", _encoded(50))}, headers=headers)
        assert response.status_code == 401
    assert set(own.uploads.iterdir()) == before


def test_without_a_key_nothing_is_added(api: httpx.Client, scenes_index: Path, tmp_path: Path) -> None:
    """A gateway without keys adds nothing, with a folder for pictures and without one."""
    response = api.post("/v1/items", files={"image": ("a.jpg", _encoded(1))})
    assert (response.status_code, response.json()["error"]["code"]) == (403, "key_required")
    settings = GatewaySettings(index=str(scenes_index), uploads=tmp_path)
    with served(settings) as url:
        response = httpx.post(f"{url}/v1/items", files={"image": ("a.jpg", _encoded(1))}, timeout=60)
        assert response.status_code == 403
    assert list(tmp_path.iterdir()) == []


def test_without_a_folder_nothing_is_added(scenes_index: Path, tmp_path: Path) -> None:
    """With a key and no --uploads the answer is 404 and names the option."""
    settings = GatewaySettings(index=str(scenes_index), safety=SafetyOptions(keys=_keys(tmp_path)))
    with served(settings) as url:
        response = httpx.post(f"{url}/v1/items", files={"image": ("a.jpg", _encoded(1))}, headers=KEY, timeout=60)
    assert response.status_code == 404
    assert "--uploads" in response.json()["error"]["message"]


def test_a_missing_folder_for_pictures_is_refused(tmp_path: Path) -> None:
    """The folder of --uploads must exist, and needs an index."""
    with pytest.raises(InputError) as missing:
        GatewaySettings(index="index", uploads=tmp_path / "none")
    assert missing.value.option == "--uploads"
    with pytest.raises(InputError, match="--index"):
        GatewaySettings(servers=("127.0.0.1:1",), uploads=tmp_path)


def test_listeners_hear_of_uploads_and_of_other_processes(own: Own, local_client: Client, tmp_path: Path) -> None:
    """Events give the size at once, the progress of an upload, and the size after another writer has added."""
    texts = tmp_path / "texts.txt"
    texts.write_text("a red house\n", encoding="utf-8")
    with own.http.stream("GET", "/v1/items/events", timeout=30) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        events = _events(response)
        name, first = next(events)
        assert name == "index"
        assert first["items"] == own.http.get("/v1/info").json()["index"]["items"]
        _added(own, ("a.jpg", _encoded(40)), ("b.jpg", _encoded(41)))
        seen = [next(events) for _ in range(2)]
        assert ("upload", {"done": 2, "total": 2}) in seen
        assert first["items"] + 2 in [data.get("items") for _, data in seen]
        with Index.open(own.index, mode="write") as index:
            add_texts(index, local_client, [texts])
        name, last = next(events)
        assert (name, last["items"]) == ("index", first["items"] + 3)


def _events(response: httpx.Response) -> Iterator[tuple[str, dict[str, Any]]]:
    name = ""
    for line in response.iter_lines():
        key, _, value = line.partition(": ")
        if key == "event":
            name = value
        elif key == "data":
            yield name, json.loads(value)
        assert line != ": nothing new", "no event came for 15 s"
