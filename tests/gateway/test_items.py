"""Items of the index and their pictures, over HTTP."""

from __future__ import annotations

import hashlib
import io
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from support.gateway import served
from twinspire import Client, Index
from twinspire.images import load_image
from twinspire.ingest import add_images, add_texts
from twinspire.stores import Item, ItemKind
from twinspire_server.gateway.settings import GatewaySettings

Add = Callable[..., int]


@pytest.fixture(scope="module")
def own(local_client: Client, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[httpx.Client, Path]]:
    """A gateway with an index that these tests change, and the folder of both."""
    folder = tmp_path_factory.mktemp("items")
    Index.create(folder / "index", space=local_client.space, dim=local_client.dim).close()
    with (
        served(GatewaySettings(index=str(folder / "index"))) as url,
        httpx.Client(base_url=url, timeout=60) as http,
    ):
        yield http, folder


@pytest.fixture
def add(own: tuple[httpx.Client, Path], local_client: Client) -> Add:
    """Write a file into the folder and add it to the index; return its item's id."""

    def add_file(name: str, image: Image.Image, **save: object) -> int:
        _, folder = own
        image.save(folder / name, **save)
        with Index.open(folder / "index", mode="write") as index:
            add_images(index, local_client, [folder / name])
            (item,) = index.find(uri=str(folder / name))
        return item.id

    return add_file


def _noise(seed: int, width: int = 300, height: int = 200) -> Image.Image:
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 255, (8, 12, 3), np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC)


def _picture(response: httpx.Response) -> Image.Image:
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "image/jpeg"
    return Image.open(io.BytesIO(response.content))


def _refused(response: httpx.Response, status: int, word: str) -> None:
    assert response.status_code == status, response.text
    assert word in response.json()["error"]["message"]


def test_an_item_is_what_the_index_has(api: httpx.Client, scenes_index: Path) -> None:
    """The JSON of an item has all that the index stores of it."""
    with Index.open(scenes_index) as index:
        for id_ in (3, 24):
            (item,) = index.get([id_])
            document = api.get(f"/v1/items/{id_}").raise_for_status().json()
            assert document == {
                "id": id_,
                "uri": item.uri,
                "kind": item.kind.value,
                "caption": item.caption,
                "metadata": item.metadata,
                "content_hash": item.content_hash,
                "added_at": item.added_at,
                "changed_at": item.changed_at,
            }


@pytest.mark.parametrize("path", ["/v1/items/26", "/v1/items/26/image", f"/v1/items/{2**63 - 1}"])
def test_an_unknown_item_is_404(api: httpx.Client, path: str) -> None:
    """An id that no item has is 404 and named."""
    _refused(api.get(path), 404, path.split("/")[3])


@pytest.mark.parametrize(
    "path",
    [
        "/v1/items/-1",
        f"/v1/items/{2**63}",
        "/v1/items/x/image",
        "/v1/items/1/image?size=0",
        "/v1/items/1/image?size=9999",
    ],
)
def test_a_bad_id_or_size_is_400(api: httpx.Client, path: str) -> None:
    """What is no id, and a size out of range, is refused."""
    assert api.get(path).status_code == 400


@pytest.mark.parametrize(
    "path",
    [
        "/v1/items/..%2f..%2fetc%2fpasswd/image",
        "/v1/items/%2fetc%2fpasswd",
        "/v1/items/../../etc/passwd",
        "/v1/items/0/image/../../../etc/passwd",
        "/v1/items/0%00/image",
    ],
)
def test_no_path_is_served(api: httpx.Client, path: str) -> None:
    """A path in place of an id is an error, however it is written."""
    request = httpx.Request("GET", f"{api.base_url.scheme}://{api.base_url.netloc.decode()}{path}")
    request.url = httpx.URL(str(request.url), raw_path=path.encode())
    response = api.send(request)
    assert response.status_code in (400, 404)


def test_a_thumbnail_is_the_picture_reduced(api: httpx.Client, scenes_index: Path) -> None:
    """A thumbnail has the longer side that is asked for and the picture's content; a small picture stays as it is."""
    original = load_image(scenes_index.parent / "scene3.jpg")
    small = _picture(api.get("/v1/items/3/image?size=64"))
    assert max(small.size) == 64
    expected = np.asarray(original.resize(small.size, Image.Resampling.LANCZOS), float)
    difference = float(np.abs(np.asarray(small, float) - expected).mean())
    print(f"mean difference {difference:.2f} of 255")
    assert difference < 6
    assert _picture(api.get("/v1/items/3/image?size=2048")).size == original.size


def test_a_thumbnail_is_upright_and_has_no_metadata(own: tuple[httpx.Client, Path], add: Add) -> None:
    """EXIF turns the picture and does not get out, nor do a comment, a colour profile and XMP."""
    http, _ = own
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "SECRET description"
    id_ = add("turned.jpg", _noise(1), exif=exif, comment=b"SECRET comment", icc_profile=b"SECRET profile" * 20)
    response = http.get(f"/v1/items/{id_}/image?size=100")
    picture = _picture(response)
    assert picture.size == (67, 100)
    assert b"SECRET" not in response.content
    assert not picture.getexif()
    assert {"icc_profile", "comment", "exif"}.isdisjoint(picture.info)


@pytest.mark.parametrize(
    ("name", "mode"), [("a.png", "RGBA"), ("b.webp", "RGB"), ("c.gif", "P"), ("d.tif", "CMYK"), ("e.jpg", "L")]
)
def test_every_format_comes_as_jpeg(own: tuple[httpx.Client, Path], add: Add, name: str, mode: str) -> None:
    """Pictures of other formats and modes are encoded again as JPEG."""
    http, _ = own
    id_ = add(name, _noise(len(name) + len(mode)).convert(mode))
    assert _picture(http.get(f"/v1/items/{id_}/image")).mode == "RGB"


def test_a_known_picture_is_not_sent_again(api: httpx.Client) -> None:
    """With the ETag that a client has the answer is 304 and empty; another size has another ETag."""
    first = api.get("/v1/items/5/image?size=100")
    assert "private" in first.headers["cache-control"]
    again = api.get("/v1/items/5/image?size=100", headers={"if-none-match": f'W/"x", {first.headers["etag"]}'})
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", first.headers["etag"])
    other = api.get("/v1/items/5/image?size=101", headers={"if-none-match": first.headers["etag"]})
    assert other.status_code == 200
    assert api.get("/v1/items/5/image?size=100").content == first.content


def test_a_text_has_no_picture(api: httpx.Client) -> None:
    """The picture of a text is 404 and says why."""
    _refused(api.get("/v1/items/24/image"), 404, "text")


def test_a_removed_item_has_no_picture(own: tuple[httpx.Client, Path], add: Add) -> None:
    """An item that is removed between a search and its thumbnail is 404, though the thumbnail was made before."""
    http, folder = own
    id_ = add("removed.jpg", _noise(20))
    assert http.get(f"/v1/items/{id_}/image").status_code == 200
    with Index.open(folder / "index", mode="write") as index:
        index.remove([id_])
    _refused(http.get(f"/v1/items/{id_}/image"), 404, "no item")
    hits = http.post("/v1/search", json={"text": "a", "mode": "vector", "k": 100}).json()["hits"]
    assert id_ not in [hit["id"] for hit in hits]


@pytest.mark.parametrize("warm", [True, False])
def test_a_file_that_is_gone_is_404(own: tuple[httpx.Client, Path], add: Add, *, warm: bool) -> None:
    """A picture whose file is gone is 404 and says so, also where its thumbnail was made before."""
    http, folder = own
    id_ = add(f"gone{warm}.jpg", _noise(30 + warm))
    if warm:
        assert http.get(f"/v1/items/{id_}/image").status_code == 200
    (folder / f"gone{warm}.jpg").unlink()
    _refused(http.get(f"/v1/items/{id_}/image"), 404, "no such file")


@pytest.mark.parametrize("way", ["link", "overwritten", "folder", "pipe"])
def test_only_what_was_indexed_is_shown(own: tuple[httpx.Client, Path], add: Add, tmp_path: Path, way: str) -> None:
    """A link out of the folder, another picture or anything else in place of a file is not shown."""
    http, folder = own
    secret = tmp_path / "secret.jpg"
    _noise(41).save(secret)
    path = folder / f"swapped-{way}.jpg"
    id_ = add(path.name, _noise(40 + len(way)))
    assert http.get(f"/v1/items/{id_}/image").status_code == 200
    path.unlink()
    match way:
        case "link":
            path.symlink_to(secret)
        case "overwritten":
            shutil.copy(secret, path)
        case "folder":
            path.mkdir()
        case "pipe":
            import os

            os.mkfifo(path)
    _refused(http.get(f"/v1/items/{id_}/image"), 404, "cannot be shown")


@pytest.mark.parametrize(
    ("uri", "status"),
    [("/etc/passwd", 415), ("relative.jpg", 404), ("http://127.0.0.1/a.jpg", 404), ("/dev/zero", 404)],
)
def test_an_item_of_any_uri_shows_pictures_alone(
    own: tuple[httpx.Client, Path], local_client: Client, uri: str, status: int
) -> None:
    """Whatever uri an item was given, nothing but a decoded picture comes out."""
    http, folder = own
    with Index.open(folder / "index", mode="write") as index:
        vector = local_client.encode_texts([uri])
        (id_,) = index.add(vector, [Item(uri, ItemKind.IMAGE)], space=index.space).added
    response = http.get(f"/v1/items/{id_}/image")
    assert response.status_code == status, response.text
    assert b"root:" not in response.content


@pytest.mark.parametrize(
    "content", [b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>", b"GIF89a"]
)
def test_a_file_that_is_no_picture_is_415(own: tuple[httpx.Client, Path], local_client: Client, content: bytes) -> None:
    """SVG and damaged files are never passed through, though they are what was indexed."""
    http, folder = own
    path = folder / f"{hashlib.sha256(content).hexdigest()[:8]}.svg"
    path.write_bytes(content)
    with Index.open(folder / "index", mode="write") as index:
        item = Item(str(path), ItemKind.IMAGE, content_hash=hashlib.sha256(content).hexdigest())
        (id_,) = index.add(local_client.encode_texts(["svg"]), [item], space=index.space).added
    _refused(http.get(f"/v1/items/{id_}/image"), 415, "known format" if b"svg" in content else "GIF")


def test_a_picture_of_too_many_pixels_is_not_decoded(own: tuple[httpx.Client, Path], local_client: Client) -> None:
    """The limit of pixels holds for thumbnails, by the header alone."""
    http, folder = own
    path = folder / "bomb.png"
    Image.new("1", (9000, 9000)).save(path)
    with Index.open(folder / "index", mode="write") as index:
        (id_,) = index.add(local_client.encode_texts(["b"]), [Item(str(path), ItemKind.IMAGE)], space=index.space).added
    _refused(http.get(f"/v1/items/{id_}/image"), 415, "megapixels")


def test_metadata_of_any_json_comes_as_it_is(own: tuple[httpx.Client, Path], local_client: Client) -> None:
    """Integers beyond 64 bits, nested objects and any text come out of items and hits as they were stored."""
    http, folder = own
    metadata = {"large": 2**70, "nested": {"a": [1, None, {"b": "\u2028"}]}, "text": "中文 \U0001f600"}
    with Index.open(folder / "index", mode="write") as index:
        item = Item("sums.txt#1", ItemKind.TEXT, "quokkas", metadata)
        (id_,) = index.add(local_client.encode_texts(["quokkas"]), [item], space=index.space).added
    assert http.get(f"/v1/items/{id_}").json()["metadata"] == metadata
    (hit,) = http.post("/v1/search", json={"text": '"quokkas"'}).raise_for_status().json()["hits"]
    assert hit["metadata"] == metadata
    http.get("/v1/info").raise_for_status()


def test_an_index_that_is_emptied_is_searched(local_client: Client, tmp_path: Path) -> None:
    """A search of an empty index has no hits and says so; its description has no items."""
    texts = tmp_path / "texts.txt"
    texts.write_text("a red house\n", encoding="utf-8")
    with Index.create(tmp_path / "index", space=local_client.space, dim=local_client.dim) as index:
        add_texts(index, local_client, [texts])
    with served(GatewaySettings(index=str(tmp_path / "index"))) as url, httpx.Client(base_url=url, timeout=60) as http:
        assert len(http.post("/v1/search", json={"text": "house"}).json()["hits"]) == 1
        assert http.get("/v1/info").json()["index"]["kinds"] == {"text": 1}
        with Index.open(tmp_path / "index", mode="write") as index:
            index.remove_where("id >= 0")
        found = http.post("/v1/search", json={"text": "house"}).raise_for_status().json()
        assert (found["hits"], found["searched"]) == ([], 0)
        assert "empty" in found["notes"][0]
        assert http.get("/v1/info").json()["index"]["items"] == 0


def test_facets_are_those_of_the_metadata(api: httpx.Client, scenes_index: Path) -> None:
    """The description names keys with their types, most frequent values and ranges, and hides paths."""
    index = api.get("/v1/info").raise_for_status().json()["index"]
    assert (index["items"], index["kinds"]) == (26, {"image": 24, "text": 2})
    keys = {facet["key"]: facet for facet in index["metadata"]}
    assert keys["city"]["values"] == [{"value": f"town{number}", "count": 8} for number in range(3)]
    assert (keys["year"]["type"], keys["year"]["minimum"], keys["year"]["maximum"]) == ("number", 2010, 2013)
    assert (keys["tags"]["type"], keys["tags"]["values"][0]["count"]) == ("list", 12)
    assert str(scenes_index.parent) not in str(index)


def test_a_page_begins_with_pictures_and_captions(api: httpx.Client) -> None:
    """The description has pictures as items, and captions as examples of queries."""
    page = api.get("/v1/info").json()["page"]
    assert [item["id"] for item in page["items"]] == list(range(24))
    assert page["items"][3] == api.get("/v1/items/3").json()
    captions = {line for item in page["items"] for line in item["caption"].splitlines()}
    assert page["examples"]
    assert set(page["examples"]) <= captions


def test_a_large_jpeg_is_reduced_while_it_is_decoded(own: tuple[httpx.Client, Path], add: Add) -> None:
    """A JPEG that is decoded at a fraction of its size is still close to the picture."""
    http, _ = own
    original = _noise(77, 2400, 1600)
    id_ = add("big.jpg", original, quality=95)
    small = _picture(http.get(f"/v1/items/{id_}/image?size=330"))
    assert small.size == (330, 220)
    expected = np.asarray(original.resize(small.size, Image.Resampling.LANCZOS), float)
    assert float(np.abs(np.asarray(small, float) - expected).mean()) < 4
