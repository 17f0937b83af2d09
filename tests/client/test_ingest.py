"""Which files are found, what is added of them, and what is reported of the rest."""

from __future__ import annotations

import os
import shutil
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from support.data import hash_of
from support.fakes import FakeClient
from twinspire.errors import EngineError, InputError, SpaceMismatchError
from twinspire.index import Index
from twinspire.ingest import FailedImage, IngestOptions, add_images, find_images

SPACE = "a" * 64


@pytest.fixture
def client() -> Any:
    """Make a fake client."""
    return FakeClient(SPACE)


@pytest.fixture
def index(tmp_path: Path) -> Index:
    """Make an empty index, open for writing."""
    return Index.create(tmp_path / "index", space=SPACE, dim=3)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Draw 20 images of different colours in two folders."""
    folder = tmp_path / "photos"
    (folder / "below").mkdir(parents=True)
    for number in range(20):
        parent = folder / "below" if number % 2 else folder
        Image.new("RGB", (20, 10), (number * 12, 255 - number * 12, number)).save(parent / f"{number:02}.png")
    return folder


def test_folders_are_walked_and_sorted(photos: Path) -> None:
    """Images of a folder and those below come sorted by path, told by suffix in any case; paths are absolute."""
    (photos / "notes.txt").write_text("x")
    shutil.copy(photos / "00.png", photos / "A.JPG")
    found = find_images([photos])
    assert found == sorted(found)
    assert len(found) == 21
    assert all(path.is_absolute() for path in found)
    assert photos / "A.JPG" in found


def test_a_named_file_is_taken_whatever_its_name_and_only_once(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Named paths keep their order; a file that comes up twice is one file."""
    monkeypatch.chdir(photos)
    (photos / "notes.txt").write_text("x")
    found = find_images(["notes.txt", "below/../02.png", photos, "02.png"])
    assert found[:2] == [photos / "notes.txt", photos / "02.png"]
    assert len(found) == 21


def test_a_path_without_images_is_an_error_that_names_it(photos: Path, tmp_path: Path) -> None:
    """Nothing there, an empty folder beside a full one, no path at all."""
    (tmp_path / "empty" / "deep").mkdir(parents=True)
    with pytest.raises(InputError, match="nowhere"):
        find_images([photos, tmp_path / "nowhere"])
    with pytest.raises(InputError, match=r"\.jpg") as caught:
        find_images([photos, tmp_path / "empty"])
    assert str(tmp_path / "empty") in str(caught.value)
    with pytest.raises(InputError, match="path"):
        find_images([])


def test_every_image_is_added_and_found(index: Index, client: Any, photos: Path) -> None:
    """Files end up in the order given, under their absolute paths, whatever the batch; the progress adds up."""
    files, steps = find_images([photos]), []
    report = add_images(index, client, files, IngestOptions(batch=3), on_progress=steps.append)
    assert (report.added, report.already, report.failed) == (20, 0, [])
    assert steps == [3] * 6 + [2]
    pixels, _ = client.preprocess(list(files), on_error="skip")
    hits = index.search(client.encode_pixels(pixels), k=1, space=SPACE)
    assert [hit[0].uri for hit in hits] == [str(file) for file in files]


def test_known_content_is_not_decoded_again(index: Index, client: Any, photos: Path, tmp_path: Path) -> None:
    """A second run is a no-op, a copy is an item of its own; a file that has changed since keeps its item's id."""
    add_images(index, client, find_images([photos]))
    client.decoded.clear()
    shutil.copy(photos / "00.png", tmp_path / "copy.png")
    report = add_images(index, client, find_images([photos, tmp_path / "copy.png"]))
    assert (report.added, report.already, client.decoded) == (1, 20, [])
    Image.new("RGB", (9, 9)).save(photos / "10.png")
    before = index.find(uri=str(photos / "10.png"))[0]
    report = add_images(index, client, find_images([photos]), IngestOptions(batch=4))
    assert (report.changed, report.already, client.decoded) == (1, 19, [(photos / "10.png").read_bytes()])
    (after,) = index.find(uri=str(photos / "10.png"))
    assert (after.id, after.metadata["width"]) == (before.id, 9)
    assert after.content_hash != before.content_hash


def test_items_follow_files_that_were_moved_swapped_and_overwritten(index: Index, client: Any, photos: Path) -> None:
    """Without encoding again what is known: after any of it each content is held once, under a path that has it."""
    add_images(index, client, find_images([photos]))
    ids = {item.content_hash: item.id for item in index.find(under=str(photos))}
    client.decoded.clear()
    (photos / "00.png").rename(photos / "moved.png")
    for old, new in (("02.png", "x"), ("04.png", "02.png"), ("x", "04.png")):
        (photos / old).rename(photos / new)
    (photos / "06.png").replace(photos / "08.png")  # what 08 was is nowhere any more
    Image.new("RGB", (7, 7)).save(photos / "06.png")
    report = add_images(index, client, find_images([photos]), IngestOptions(batch=4))
    assert (report.added, report.changed, len(client.decoded)) == (1, 4, 1)
    items = index.find(under=str(photos))
    assert {item.content_hash for item in items} == {hash_of(path) for path in find_images([photos])}
    assert all(hash_of(Path(item.uri)) == item.content_hash for item in items)
    assert all(ids.get(item.content_hash, item.id) == item.id for item in items)
    assert len(items) == 20


@pytest.mark.parametrize("batch", [1, 2, 32])
def test_the_same_content_within_a_run_is_encoded_once(index: Index, client: Any, photos: Path, batch: int) -> None:
    """Copies in one batch or in different ones are items of their own with the vector of the first."""
    for number in range(5):
        shutil.copy(photos / "00.png", photos / f"copy{number}.png")
    report = add_images(index, client, find_images([photos]), IngestOptions(batch=batch))
    assert (report.added, report.already, len(client.decoded)) == (25, 0, 20)
    items = index.find(content_hash=hash_of(photos / "00.png"))
    assert sorted(Path(item.uri).name for item in items) == ["00.png", *(f"copy{number}.png" for number in range(5))]
    vectors = index.vectors([item.id for item in items])
    assert (vectors == vectors[0]).all()


def test_files_that_fail_are_listed_and_do_not_stop_the_rest(index: Index, client: Any, photos: Path) -> None:
    """No image, a copy of it, a folder, a pipe, a dangling link and a name that is no text: each with its cause."""
    (photos / "bad1.png").write_text("no picture")
    (photos / "bad2.png").write_text("no picture")
    os.mkfifo(photos / "pipe.png")
    (photos / "gone.png").symlink_to(photos / "nowhere")
    odd = Path(os.fsdecode(os.fsencode(photos) + b"/\xff.png"))
    shutil.copy(photos / "00.png", odd)
    files = find_images([photos])
    report = add_images(index, client, [*files, photos / "below"], IngestOptions(batch=4))
    assert report.added == 20
    assert sorted(report.failed) == sorted(
        [
            FailedImage(photos / "bad1.png", "is no picture"),
            FailedImage(photos / "bad2.png", "is no picture"),
            FailedImage(photos / "below", "is not a regular file"),
            FailedImage(photos / "gone.png", "cannot be read: No such file or directory"),
            FailedImage(photos / "pipe.png", "is not a regular file"),
            FailedImage(odd, "its name is not UTF-8: rename it"),
        ]
    )


def test_another_space_is_refused_before_anything_is_read(index: Index, client: Any, photos: Path) -> None:
    """Even where all content is known."""
    add_images(index, client, find_images([photos]))
    client.space = "b" * 64
    client.decoded.clear()
    with pytest.raises(SpaceMismatchError):
        add_images(index, client, find_images([photos]))
    assert client.decoded == []


def test_an_error_of_the_towers_stops_the_run_and_its_thread(index: Index, client: Any, photos: Path) -> None:
    """What was encoded before is written; a second run adds the rest."""

    def fail(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        if client.encoded_images >= 6:
            raise EngineError("broken")
        return client.encode_pixels(pixels)

    client.towers.encode_images = fail
    before = threading.active_count()
    with pytest.raises(EngineError, match="broken"):
        add_images(index, client, find_images([photos]), IngestOptions(batch=2))
    assert threading.active_count() == before
    assert len(index) == 6
    assert len(client.decoded) <= 6 + 2 * 3, "decoded far ahead"
    client.towers.encode_images = client.encode_pixels
    report = add_images(index, client, find_images([photos]), IngestOptions(batch=2))
    assert (report.added, report.already) == (14, 6)


class Watched:
    """An index of which some methods are replaced."""

    def __init__(self, index: Index, **replaced: Any) -> None:
        self._index = index
        self.__dict__.update(replaced)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._index, name)

    def __len__(self) -> int:
        return len(self._index)


class Rendezvous(Watched):
    """Lets one stage of each of four consecutive batches in only together, and counts who was there."""

    def __init__(self, index: Index, client: FakeClient) -> None:
        super().__init__(index)
        self._barrier = threading.Barrier(4, timeout=20)
        self._client = client
        self._seen = {"read": 0, "decode": 0, "encode": 0, "write": 0}
        self._turn = {"read": 4, "decode": 3, "encode": 2, "write": 1}
        self.met: list[str] = []
        self.space, self.dim, self.towers = client.space, client.dim, SimpleNamespace(encode_images=self.encode)
        self.limits, self.decode, self.bundle = client.limits, client.decode, client.bundle

    def _at(self, stage: str) -> None:
        self._seen[stage] += 1
        if self._seen[stage] == self._turn[stage]:
            self._barrier.wait()
            self.met.append(stage)

    def known_hashes(self, hashes: Any, **kind: Any) -> set[str]:
        """Read."""
        self._at("read")
        return self._index.known_hashes(hashes, **kind)

    def preprocess(self, items: Any, *, on_error: str) -> Any:
        """Decode."""
        self._at("decode")
        return self._client.preprocess(items, on_error=on_error)

    def encode(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Encode."""
        self._at("encode")
        return self._client.encode_pixels(pixels)

    def add(self, *arguments: Any, **options: Any) -> Any:
        """Write."""
        self._at("write")
        return self._index.add(*arguments, **options)


def test_the_four_stages_work_at_the_same_time(index: Index, client: Any, photos: Path) -> None:
    """The 4th file is read while the 3rd is decoded, the 2nd encoded and the 1st written: each waits for the others."""
    both: Any = Rendezvous(index, client)
    report = add_images(both, both, find_images([photos])[:8], IngestOptions(batch=1))
    assert (report.added, sorted(both.met)) == (8, ["decode", "encode", "read", "write"])


def test_a_slow_index_holds_everything_before_it_back(index: Index, client: Any, photos: Path) -> None:
    """While the first batch is written at most 3 are encoded and 5 decoded: memory is bounded."""
    files = [photos / f"{number:03}.png" for number in range(40)]
    for number, path in enumerate(files):
        Image.new("RGB", (8, 8), (number, 3, 3)).save(path)
    seen: list[tuple[int, int]] = []

    def add(*arguments: Any, **options: Any) -> Any:
        if not seen:
            for _ in range(40):  # until nothing moves any more
                before = (len(client.decoded), client.encoded_images)
                time.sleep(0.05)
                if seen and before == seen[-1]:
                    break
                seen.append(before)
        return index.add(*arguments, **options)

    slow: Any = Watched(index, add=add)
    assert add_images(slow, client, files, IngestOptions(batch=1)).added == 40
    decoded, encoded = seen[-1]
    assert encoded <= 3
    assert decoded <= 5


def test_ctrl_c_ends_every_thread_and_keeps_what_was_written(index: Index, client: Any, photos: Path) -> None:
    """An interruption in the calling thread stops reading, decoding, encoding and writing; the same call goes on."""
    before = threading.active_count()

    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        add_images(index, client, find_images([photos]), IngestOptions(batch=2), on_progress=interrupt)
    assert threading.active_count() == before
    kept = len(index)
    assert 2 <= kept < 20
    report = add_images(index, client, find_images([photos]), IngestOptions(batch=2))
    assert (report.added, report.already) == (20 - kept, kept)


@pytest.mark.parametrize("stage", ["read", "decode", "encode", "write"])
def test_an_error_of_any_stage_reaches_the_caller_and_ends_the_rest(
    index: Index, client: Any, photos: Path, stage: str
) -> None:
    """Whatever a stage raises is raised by the call, after what came before it was written; no thread is left."""
    calls: list[int] = []

    def failing(function: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            calls.append(1)
            if len(calls) == 4:
                raise EngineError("broken")
            return function(*arguments, **options)

        return call

    target: Any = Watched(index)
    if stage == "decode":
        client.preprocess = failing(client.preprocess)
    elif stage == "encode":
        client.towers.encode_images = failing(client.encode_pixels)
    else:
        name = "known_hashes" if stage == "read" else "add"
        setattr(target, name, failing(getattr(index, name)))
    before = threading.active_count()
    with pytest.raises(EngineError, match="broken"):
        add_images(target, client, find_images([photos]), IngestOptions(batch=1))
    assert threading.active_count() == before
    assert len(index) == 3


def test_a_batch_holds_a_file_at_least(index: Index, client: Any) -> None:
    """A batch of none is an InputError."""
    with pytest.raises(InputError, match="batch"):
        add_images(index, client, [], IngestOptions(batch=0))
