"""Ingest over any store: the same files give the same items in the embedded index and in the NumPy store."""

from __future__ import annotations

import io
import json
import shutil
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from stores.numpy_store import SCHEME, create_store, open_store
from twinspire import open_index
from twinspire.audio import AudioLimits
from twinspire.bundle import DecodeMode, Tower
from twinspire.cli import main
from twinspire.images import ImageLimits
from twinspire.index import Index
from twinspire.ingest import Captions, IngestOptions, add_images, add_texts, find_images, sync, watch
from twinspire.stores import ItemKind, VectorStore, register_store

SPACE = "6" * 64
DIM = 3


class FakeClient:
    """Encodes an image to the direction of its first pixel's colour, and a text to that of its length."""

    space, dim, limits, audio_limits = SPACE, DIM, ImageLimits(), AudioLimits()
    decode = DecodeMode.EXACT
    bundle = SimpleNamespace(towers=(Tower.IMAGE, Tower.TEXT))

    def __init__(self) -> None:
        self.towers = SimpleNamespace(encode_images=lambda pixels: unit(pixels.reshape(-1, DIM)))

    def preprocess(self, items: list[bytes], *, on_error: str) -> tuple[NDArray[np.uint8], list[Any]]:
        """Take the first pixel."""
        assert on_error == "skip"
        pixels = [np.asarray(Image.open(io.BytesIO(item)).convert("RGB"))[:1, :1] for item in items]
        return np.array(pixels, np.uint8).reshape(-1, 1, 1, DIM), []

    def encode_texts(self, texts: list[str]) -> NDArray[np.float32]:
        """Return (N, 3)."""
        return unit(np.array([[len(text), 1, 2] for text in texts]))


def unit(rows: NDArray[Any]) -> NDArray[np.float32]:
    """Normalise (N, D)."""
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def draw(path: Path, shade: int) -> None:
    """Write a small image."""
    Image.new("RGB", (4, 4), (shade, 90, 9)).save(path)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Draw images a, b and c."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, name in enumerate(("a.png", "b.png", "c.png")):
        draw(folder / name, 60 * number)
    return folder


@pytest.fixture(params=["index", "numpy"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[VectorStore]:
    """Make an empty store of each kind."""
    register_store(SCHEME, open_store)
    if request.param == "index":
        made: VectorStore = Index.create(tmp_path / "index", space=SPACE, dim=DIM)
    else:
        made = create_store("ingest", space=SPACE, dim=DIM)
    with made:
        yield made


def contents(store: VectorStore) -> list[tuple[int, str, str | None, Any]]:
    """Return id, name, caption and metadata of a user of every item."""
    return [(item.id, Path(item.uri).name, item.caption, item.metadata.get("price")) for item in store.items()]


def test_add_sync_and_watch_keep_a_store_in_step(store: VectorStore, photos: Path, tmp_path: Path) -> None:
    """New, copied, moved, changed, captioned and deleted images, and lines of text, as the embedded index has them."""
    client: Any = FakeClient()
    (photos / "shop.csv").write_text("image,caption,price\na.png,a cat,3\n")
    options = IngestOptions(captions=Captions.read(photos / "shop.csv"), caption_weight=0.3, batch=2)
    assert add_images(store, client, find_images([photos]), options).added == 3
    assert contents(store) == [(0, "a.png", "a cat", 3), (1, "b.png", None, None), (2, "c.png", None, None)]
    (item,) = store.find(uri=str(photos / "a.png"))
    image, caption = unit(np.array([[0, 90, 9]])), client.encode_texts(["a cat"])
    np.testing.assert_allclose(store.vectors([item.id]), unit(0.7 * image + 0.3 * caption), atol=1e-6)

    (photos / "b.png").rename(photos / "moved.png")
    shutil.copy(photos / "moved.png", photos / "z.png")
    draw(photos / "c.png", 200)
    (photos / "a.png").unlink()
    planned = sync(store, client, [photos], dry_run=True)
    assert len(store) == 3
    report = sync(store, client, [photos])
    assert report == planned
    assert (report.added, report.moved, report.changed, report.removed) == (1, 1, 2, 1)
    assert contents(store) == [(1, "moved.png", None, None), (2, "c.png", None, None), (3, "z.png", None, None)]

    (tmp_path / "lines.txt").write_text("one\ntwo\n")
    assert add_texts(store, client, [tmp_path / "lines.txt"]).added == 2
    assert store.count(kind=ItemKind.TEXT) == 2

    draw(photos / "new.png", 220)
    stop = threading.Event()
    watch(store, client, [photos], stop=stop, on_caught_up=stop.set)
    assert [name for _, name, *_ in contents(store)][-1] == "new.png"
    assert len(store) == 6


def test_commands_take_the_uri_of_a_store(
    photos: Path, tiny: Any, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`index add`, `sync` and `remove` change the store that is registered for a scheme."""
    register_store(SCHEME, open_store)
    create_store("commands", space=tiny.bundle.space, dim=tiny.bundle.dim)
    monkeypatch.chdir(photos.parent)

    def run(*arguments: object) -> Any:
        with pytest.raises(SystemExit) as ended:
            main([*map(str, arguments), "--json"])
        sys.stdout.flush()
        out, err = capfd.readouterr()
        assert not ended.value.code, err
        return json.loads(out)

    document = run("index", "add", "memory://commands", "photos", "-b", tiny.bundle.path)
    assert (document["index"], document["added"]) == ("memory://commands", 3)
    Path("photos/a.png").unlink()
    assert run("index", "sync", "memory://commands", "photos", "-b", tiny.bundle.path)["removed"] == 1
    assert run("index", "remove", "memory://commands", "photos/b.png")["removed"] == 1
    with open_index("memory://commands") as opened:
        assert [Path(item.uri).name for item in opened.items()] == ["c.png"]
