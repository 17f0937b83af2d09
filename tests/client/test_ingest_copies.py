"""An item is a file: two files of the same bytes are two items, with captions and metadata of their own."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from support.fakes import FakeClient
from twinspire.cli import main
from twinspire.index import Index, StoredItem, VectorType
from twinspire.ingest import Captions, FolderEvent, IngestOptions, Sidecars, add_images, find_images, sync, watch

SPACE = "e" * 64
DIM = 6


def vector_of(*values: float) -> NDArray[np.float32]:
    """Return a unit vector (6,) that depends on some numbers."""
    row = np.random.default_rng([int(value) for value in values]).normal(size=DIM)
    return np.asarray(row / np.linalg.norm(row), np.float32)


@pytest.fixture
def client() -> Any:
    """Make a fake client."""
    return FakeClient(
        SPACE,
        dim=DIM,
        image_vector=lambda pixels: vector_of(*pixels[0, 0]),
        text_vector=lambda text: vector_of(*text.encode()),
    )


@pytest.fixture
def index(tmp_path: Path) -> Any:
    """Make an empty index, open for writing."""
    with Index.create(tmp_path / "index", space=SPACE, dim=DIM) as index:
        yield index


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Make the same image in two folders under two names."""
    folder = tmp_path / "photos"
    for name in ("a/summer.jpg", "b/winter.jpg"):
        (folder / name).parent.mkdir(parents=True)
        Image.new("RGB", (4, 4), (200, 10, 10)).save(folder / name)
    return folder


def item_at(index: Index, path: Path) -> StoredItem:
    """Return the one item of a file."""
    (item,) = index.find(uri=str(path))
    return item


def test_each_copy_has_its_own_caption_and_metadata(index: Index, client: Any, photos: Path) -> None:
    """What a table says of the second file is not lost, and its image is decoded once."""
    (photos / "shop.csv").write_text("path,caption,price\na/summer.jpg,a beach,10\nb/winter.jpg,snow,20\n")
    said = Captions.read(photos / "shop.csv")
    report = add_images(index, client, find_images([photos]), IngestOptions(captions=said))
    assert (report.added, report.already, report.captioned, len(client.decoded)) == (2, 0, 2, 1)
    found = {path.name: item_at(index, path) for path in find_images([photos])}
    assert {name: (item.caption, item.metadata["price"]) for name, item in found.items()} == {
        "summer.jpg": ("a beach", 10),
        "winter.jpg": ("snow", 20),
    }
    np.testing.assert_array_equal(*index.vectors([item.id for item in found.values()]))
    generation = index.generation
    report = add_images(index, client, find_images([photos]), IngestOptions(captions=said))
    assert (report.added, report.already, index.generation) == (0, 2, generation)


def test_a_copy_of_what_the_index_has_is_not_decoded(index: Index, client: Any, photos: Path) -> None:
    """The vector comes from the index, also from one that stores half precision."""
    first, second = find_images([photos])
    with Index.create(photos / "half", space=SPACE, dim=DIM, dtype=VectorType.FLOAT16) as half:
        for target in (index, half):
            add_images(target, client, [first])
            before = len(client.decoded)
            assert add_images(target, client, [second]).added == 1
            assert len(client.decoded) == before
            np.testing.assert_array_equal(*target.vectors([item_at(target, first).id, item_at(target, second).id]))


def test_copies_with_captions_mixed_in_have_vectors_of_their_own(index: Index, client: Any, photos: Path) -> None:
    """Only copies that say the same share one."""
    first, second = find_images([photos])
    third = photos / "c.jpg"
    shutil.copy(first, third)
    said = Captions({"summer.jpg": ["warm"], "winter.jpg": ["cold"], "c.jpg": ["warm"]}, folder=Path("/"))
    report = add_images(index, client, [first, second, third], IngestOptions(captions=said, caption_weight=0.5))
    assert (report.added, len(client.decoded)) == (3, 2)
    vectors = index.vectors([item_at(index, path).id for path in (first, second, third)])
    np.testing.assert_array_equal(vectors[0], vectors[2])
    picture = client.encode_pixels(np.asarray(Image.open(first))[None])[0]
    for vector, text in zip(vectors, ("warm", "cold", "warm"), strict=True):
        mixed = picture + vector_of(*text.encode())
        np.testing.assert_allclose(vector, mixed / np.linalg.norm(mixed), atol=1e-6)
    plain = photos / "plain.jpg"
    shutil.copy(first, plain)
    assert add_images(index, client, [plain]).added == 1
    np.testing.assert_allclose(index.vectors([item_at(index, plain).id])[0], picture, atol=1e-6)


def test_sidecars_caption_each_copy(index: Index, client: Any, photos: Path) -> None:
    """Text files beside two copies are two captions."""
    for name, text in (("a/summer.txt", "warm"), ("b/winter.txt", "cold")):
        (photos / name).write_text(text)
    assert add_images(index, client, find_images([photos]), IngestOptions(captions=Sidecars())).captioned == 2
    assert [item_at(index, path).caption for path in find_images([photos])] == ["warm", "cold"]


def test_copies_that_cannot_be_decoded_all_fail(index: Index, client: Any, photos: Path) -> None:
    """Each is named with the cause, which is found once; in one batch or in two."""
    files = [photos / f"broken{number}.jpg" for number in range(3)]
    for path in files:
        path.write_text("no picture")
    for batch in (1, 8):
        before = len(client.decoded)
        report = add_images(index, client, files, IngestOptions(batch=batch))
        assert sorted(report.failed) == sorted((path, "is no picture") for path in files)
        assert (report.added, len(client.decoded) - before) == (0, 1)


def test_of_several_copies_each_file_keeps_its_id_when_all_are_renamed(index: Index, client: Any, photos: Path) -> None:
    """The inode tells them apart, so that captions and metadata go with their files."""
    files = find_images([photos])
    add_images(index, client, files)
    before = {path.name: item_at(index, path).id for path in files}
    (photos / "a" / "summer.jpg").rename(photos / "b" / "z.jpg")
    (photos / "b" / "winter.jpg").rename(photos / "a" / "y.jpg")
    report = sync(index, client, [photos])
    assert (report.moved, report.added, report.removed) == (2, 0, 0)
    assert item_at(index, photos / "b" / "z.jpg").id == before["summer.jpg"]
    assert item_at(index, photos / "a" / "y.jpg").id == before["winter.jpg"]


def test_removing_one_copy_removes_only_its_item(index: Index, client: Any, photos: Path) -> None:
    """The other keeps its id; so does a copy that becomes another image."""
    files = find_images([photos])
    sync(index, client, [photos])
    before = item_at(index, files[1]).id
    files[0].unlink()
    report = sync(index, client, [photos])
    assert (report.removed, report.already, item_at(index, files[1]).id) == (1, 1, before)
    shutil.copy(files[1], files[0])
    sync(index, client, [photos])
    Image.new("RGB", (5, 5), (1, 2, 3)).save(files[0])
    number = item_at(index, files[0]).id
    assert sync(index, client, [photos]).changed == 1
    assert [item_at(index, path).id for path in files] == [number, before]
    np.testing.assert_allclose(
        index.vectors([number])[0], client.encode_pixels(np.asarray(Image.open(files[0]))[None])[0]
    )


def test_a_watch_tells_copies_as_added(index: Index, client: Any, photos: Path) -> None:
    """When it catches up and later."""
    stop, events = threading.Event(), list[FolderEvent]()
    watch(
        index,
        client,
        [photos],
        IngestOptions(on_event=events.append, captions=Sidecars()),
        stop=stop,
        on_caught_up=stop.set,
    )
    assert sorted(f"{event.happened} {event.path.name}" for event in events) == ["added summer.jpg", "added winter.jpg"]
    assert len(client.decoded) == 1


def test_many_copies_cost_one_look_up_each(index: Index, client: Any, photos: Path) -> None:
    """Adding n copies asks the index for the items of their content once, not n times."""
    source = find_images([photos])[0]
    copies = [photos / f"{number:03}.jpg" for number in range(200)]
    for path in copies:
        shutil.copy(source, path)
    add_images(index, client, [source])
    asked = []
    find = index.find

    def counted(**given: Any) -> list[StoredItem]:
        asked.append(given)
        return find(**given)

    index.find = counted  # type: ignore[method-assign]
    assert add_images(index, client, copies, IngestOptions(batch=8)).added == 200
    assert sum("content_hash" in given for given in asked) == 1
    assert len(client.decoded) == 1
    assert {item.content_hash for item in find(under=str(photos))} == {hashlib.sha256(source.read_bytes()).hexdigest()}


def test_the_command_line_finds_both_copies(
    photos: Path, tiny: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """`index add` of two equal files with prices of their own, then `search --where` for the second's."""
    monkeypatch.chdir(photos)
    Path("shop.csv").write_text("path,price\na/summer.jpg,10\nb/winter.jpg,20\n")

    def run(*arguments: object) -> Any:
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        sys.stdout.flush()
        out, err = capfd.readouterr()
        assert not ended.value.code, err
        return json.loads(out)

    bundle = ("-b", tiny.bundle.path, "--json")
    assert run("index", "add", "../idx", "a", "b", "--captions", "shop.csv", *bundle)["added"] == 2
    hits = run("search", "../idx", "a cat", "--where", "price = 20", *bundle)["hits"]
    assert [Path(hit["uri"]).name for hit in hits] == ["winter.jpg"]
    assert run("index", "add", "../idx", "a", "b", "--captions", "shop.csv", *bundle)["already"] == 2
