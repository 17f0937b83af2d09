"""An index follows its folder: new, changed, moved and deleted images, and what happened while nobody watched."""

from __future__ import annotations

import io
import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from support.arrays import unit
from support.data import hash_of
from support.fakes import FakeClient
from twinspire.errors import InputError
from twinspire.index import Index, Item, ItemKind, StoredItem
from twinspire.ingest import FolderEvent, Happened, IngestOptions, Sidecars, add_images, find_images, watch

SPACE = "d" * 64
DIM = 3


def draw(path: Path, shade: int) -> None:
    """Write an image of one colour at once, as careful programs do."""
    draft = path.with_name(f"{path.name}.part")
    Image.new("RGB", (8, 8), (shade, 255 - shade, 7)).save(draft, format="PNG")
    draft.replace(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Draw three images, one of them below."""
    folder = tmp_path / "photos"
    (folder / "below").mkdir(parents=True)
    for number, name in enumerate(("a.png", "b.png", "below/c.png")):
        draw(folder / name, 10 * number)
    return folder


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    """Make an empty index, open for writing."""
    with Index.create(tmp_path / "index", space=SPACE, dim=DIM) as index:
        yield index


def held(index: Index, folder: Path) -> dict[str, StoredItem]:
    """Return the items under a folder by their path in it."""
    return {os.path.relpath(item.uri, folder): item for item in index.find(under=str(folder))}


def catch_up(index: Index, client: Any, folder: Path, **options: Any) -> list[FolderEvent]:
    """Watch until the index has caught up, and no longer."""
    stop, events = threading.Event(), list[FolderEvent]()
    watch(index, client, [folder], IngestOptions(on_event=events.append), stop=stop, on_caught_up=stop.set, **options)
    return events


class Watching:
    """A watch in a thread of its own."""

    def __init__(self, index: Index, client: Any, folder: Path, *, settle_s: float = 0.1, **options: Any) -> None:
        self.events: list[FolderEvent] = []
        self.error: BaseException | None = None
        self._stop, caught_up = threading.Event(), threading.Event()

        names = [name for name in ("captions", "caption_weight") if name in options]
        ingest = IngestOptions(on_event=self.events.append, **{name: options.pop(name) for name in names})

        def run() -> None:
            try:
                watch(
                    index,
                    client,
                    [folder],
                    ingest,
                    stop=self._stop,
                    settle_s=settle_s,
                    gone_s=0.4,
                    on_caught_up=caught_up.set,
                    **options,
                )
            except BaseException as error:
                self.error = error
                caught_up.set()

        self.thread = threading.Thread(target=run)
        self.thread.start()
        assert caught_up.wait(20)

    def wait_for(self, *happened: str) -> None:
        """Wait until these have happened, in any order, and nothing else since the last call."""
        end = time.monotonic() + 20
        while len(self.events) < len(happened) and time.monotonic() < end:
            time.sleep(0.02)
        assert sorted(f"{event.happened} {event.path.name}" for event in self.events) == sorted(happened)
        self.events.clear()

    def __enter__(self) -> Watching:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self.thread.join(20)
        assert not self.thread.is_alive()


def test_new_changed_moved_and_deleted_files_are_followed(index: Index, folder: Path) -> None:
    """Each is told and durable; a changed file and a moved one keep their ids, a changed one gets its new vector."""
    client: Any = FakeClient(SPACE)
    with Watching(index, client, folder) as watching:
        watching.wait_for("added a.png", "added b.png", "added c.png")
        before = held(index, folder)
        draw(folder / "d.png", 100)
        watching.wait_for("added d.png")
        draw(folder / "a.png", 200)
        watching.wait_for("changed a.png")
        after = held(index, folder)
        assert (after["a.png"].id, after["a.png"].content_hash) == (before["a.png"].id, hash_of(folder / "a.png"))
        np.testing.assert_allclose(index.vectors([after["a.png"].id])[0], unit((200, 55, 7)), atol=1e-6)
        encoded = client.encoded_images
        (folder / "b.png").rename(folder / "below" / "moved.png")
        watching.wait_for("moved moved.png")
        (folder / "below").rename(folder / "elsewhere")
        watching.wait_for("moved moved.png", "moved c.png")
        after = held(index, folder)
        assert after["elsewhere/moved.png"].id == before["b.png"].id
        assert after["elsewhere/moved.png"].metadata["folder"] == str(folder / "elsewhere")
        assert after["elsewhere/c.png"].id == before["below/c.png"].id
        assert client.encoded_images == encoded, "a moved picture was encoded again"
        (folder / "a.png").unlink()
        watching.wait_for("removed a.png")
        shutil.rmtree(folder / "elsewhere")
        watching.wait_for("removed moved.png", "removed c.png")
        assert set(held(index, folder)) == {"d.png"}
    assert watching.error is None


def test_a_half_written_file_waits_until_it_is_whole(index: Index, folder: Path) -> None:
    """Written in three goes with pauses it is added once; one that rests broken is told, and added when it is whole."""
    data = (folder / "a.png").read_bytes()
    buffer = io.BytesIO()
    Image.effect_noise((64, 64), 90).save(buffer, format="PNG")
    noise, client = buffer.getvalue(), FakeClient(SPACE)
    with Watching(index, client, folder, settle_s=0.6) as watching:
        watching.wait_for("added a.png", "added b.png", "added c.png")
        with (folder / "slow.png").open("wb") as file:
            for start in range(0, len(noise), 1500):
                file.write(noise[start : start + 1500])
                file.flush()
                time.sleep(0.06)
        watching.wait_for("added slow.png")
        changed = bytearray(data)
        (folder / "broken.png").write_bytes(changed[:40])
        watching.wait_for("failed broken.png")
        buffer = io.BytesIO()
        Image.new("RGB", (5, 5), (1, 2, 3)).save(buffer, format="PNG")
        (folder / "broken.png").write_bytes(buffer.getvalue())
        watching.wait_for("added broken.png")


def test_a_copy_is_an_item_of_its_own(index: Index, folder: Path) -> None:
    """It is added without encoding; when one of the two goes only its item does."""
    client: Any = FakeClient(SPACE)
    with Watching(index, client, folder) as watching:
        watching.wait_for("added a.png", "added b.png", "added c.png")
        encoded = client.encoded_images
        shutil.copy(folder / "a.png", folder / "copy.png")
        watching.wait_for("added copy.png")
        both = held(index, folder)
        assert client.encoded_images == encoded
        np.testing.assert_array_equal(*index.vectors([both["a.png"].id, both["copy.png"].id]))
        (folder / "a.png").unlink()
        watching.wait_for("removed a.png")
        assert held(index, folder)["copy.png"].id == both["copy.png"].id


def test_it_catches_up_with_what_happened_while_nobody_watched(index: Index, folder: Path) -> None:
    """New, changed, moved, swapped and deleted files, told once; only what is new is encoded; then nothing is left."""
    client: Any = FakeClient(SPACE)
    for number in range(4):
        draw(folder / f"swap{number}.png", 100 + number)
    catch_up(index, client, folder)
    before = held(index, folder)
    client.encoded_images = 0
    (folder / "a.png").rename(folder / "below" / "z.png")
    draw(folder / "b.png", 77)
    (folder / "below" / "c.png").unlink()
    draw(folder / "new.png", 78)
    (folder / "swap0.png").rename(folder / "x.part")
    (folder / "swap1.png").rename(folder / "swap0.png")
    (folder / "x.part").rename(folder / "swap1.png")
    events = catch_up(index, client, folder)
    told = sorted(f"{event.happened} {event.path.name}" for event in events)
    expected = ["added new.png", "changed b.png", "moved swap0.png", "moved swap1.png", "moved z.png", "removed c.png"]
    assert told == expected
    assert client.encoded_images == 2
    after = held(index, folder)
    assert after["swap0.png"].id == before["swap1.png"].id
    assert after["swap1.png"].id == before["swap0.png"].id
    assert after["below/z.png"].id == before["a.png"].id
    assert after["b.png"].id == before["b.png"].id
    generation = index.generation
    assert catch_up(index, client, folder) == []
    assert index.generation == generation


NAMES = st.sampled_from(["a.png", "b.png", "c.png", "below/a.png", "below/d.png"])
STEP = st.one_of(
    st.tuples(st.just("draw"), NAMES, st.integers(0, 4)),
    st.tuples(st.just("move"), NAMES, NAMES),
    st.tuples(st.just("copy"), NAMES, NAMES),
    st.tuples(st.just("swap"), NAMES, NAMES),
    st.tuples(st.just("delete"), NAMES, st.just(0)),
)


def take_step(folder: Path, what: str, name: str, other: Any) -> None:
    """Do one thing to the files; nothing where they are not there."""
    path = folder / name
    if what == "draw":
        draw(path, 50 * other)
    elif path.exists():
        if what == "delete":
            path.unlink()
        elif what == "move":
            path.rename(folder / other)
        elif what == "copy" and name != other:
            shutil.copy(path, folder / other)
        elif what == "swap" and name != other and (folder / other).exists():
            path.rename(folder / "x.part")
            (folder / other).rename(path)
            (folder / "x.part").rename(folder / other)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.lists(STEP, max_size=5), min_size=1, max_size=3))
def test_whatever_happens_the_index_holds_what_is_there(
    tmp_path_factory: pytest.TempPathFactory, rounds: list[list[Any]]
) -> None:
    """After any changes each file has one item, of its content and with its vector; contents that stay keep ids."""
    base = tmp_path_factory.mktemp("any")
    folder, client = base / "photos", FakeClient(SPACE)
    (folder / "below").mkdir(parents=True)
    draw(folder / "stays.png", 255)
    with Index.create(base / "index", space=SPACE, dim=DIM) as index:
        ids: dict[str, set[int]] = {}
        for steps in rounds:
            for step in steps:
                take_step(folder, *step)
            events = catch_up(index, client, folder)
            assert not [event for event in events if event.happened is Happened.FAILED]
            items = index.find(under=str(folder))
            files = {str(path): hash_of(path) for path in find_images([folder])}
            assert sorted((item.uri, item.content_hash) for item in items) == sorted(files.items())
            now: dict[str, set[int]] = {}
            for item in items:
                now.setdefault(item.content_hash or "", set()).add(item.id)
            for known, numbers in ids.items():
                assert len(numbers & now.get(known, set())) == min(len(numbers), len(now.get(known, set())))
            ids = now
            for item in items:
                with Image.open(item.uri) as image:
                    colour = image.getpixel((0, 0))
                np.testing.assert_allclose(index.vectors([item.id])[0], unit(colour), atol=1e-6)  # type: ignore[arg-type]
    shutil.rmtree(base)


def test_what_is_not_the_folders_is_left_alone(index: Index, folder: Path, tmp_path: Path) -> None:
    """Images of elsewhere, texts, and files that `index add` took in spite of their names stay."""
    client: Any = FakeClient(SPACE)
    draw(tmp_path / "outside.png", 150)
    draw(folder / "named.dat", 151)
    add_images(index, client, [tmp_path / "outside.png", folder / "named.dat"])
    text = Item(f"{folder}/lines.txt#1", ItemKind.TEXT, "a line")
    index.add(unit([(9, 9, 9)]), [text], space=SPACE)
    (tmp_path / "outside.png").unlink()
    catch_up(index, client, folder)
    assert len(index) == 6
    (folder / "named.dat").unlink()
    assert [event.happened for event in catch_up(index, client, folder)] == [Happened.REMOVED]


def test_an_item_follows_its_file_into_the_folder(index: Index, folder: Path, tmp_path: Path) -> None:
    """An image that was added from elsewhere and then moved here keeps its id, and what others wrote about it."""
    client: Any = FakeClient(SPACE)
    draw(tmp_path / "outside.png", 150)
    add_images(index, client, [tmp_path / "outside.png"])
    (item,) = index.find(uri=str(tmp_path / "outside.png"))
    index.update(item.id, metadata={**item.metadata, "stars": 5})
    (tmp_path / "outside.png").rename(folder / "inside.png")
    catch_up(index, client, folder)
    inside = held(index, folder)["inside.png"]
    assert (inside.id, inside.metadata["stars"], inside.metadata["name"]) == (item.id, 5, "inside.png")


def test_an_empty_folder_removes_nothing(index: Index, folder: Path) -> None:
    """A disk that is not mounted looks the same; the message says what to do if they are gone for good."""
    client: Any = FakeClient(SPACE)
    catch_up(index, client, folder)
    shutil.rmtree(folder)
    folder.mkdir()
    with pytest.raises(InputError, match="twinspire index remove"):
        catch_up(index, client, folder)
    assert len(index) == 3


def test_a_folder_that_disappears_ends_the_watch_and_removes_nothing(index: Index, folder: Path) -> None:
    """Moved away as a whole it may come back."""
    client: Any = FakeClient(SPACE)
    with Watching(index, client, folder) as watching:
        watching.wait_for("added a.png", "added b.png", "added c.png")
        folder.rename(folder.with_name("away"))
        watching.thread.join(20)
    assert isinstance(watching.error, InputError)
    assert str(folder) in str(watching.error)
    assert len(index) == 3


def test_a_changed_file_that_is_no_image_leaves_its_item(index: Index, folder: Path) -> None:
    """It is told as failed with the id; when it is an image again the item follows."""
    client: Any = FakeClient(SPACE)
    catch_up(index, client, folder)
    number = held(index, folder)["a.png"].id
    (folder / "a.png").write_text("no picture")
    (event,) = catch_up(index, client, folder)
    assert (event.happened, event.id, event.cause) == (Happened.FAILED, number, "is no picture")
    assert held(index, folder)["a.png"].id == number
    draw(folder / "a.png", 222)
    (event,) = catch_up(index, client, folder)
    assert (event.happened, event.id) == (Happened.CHANGED, number)


def test_a_file_that_may_not_be_looked_at_is_not_gone(
    index: Index, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only a file that is certainly not there is removed: here the system refuses to say."""
    client: Any = FakeClient(SPACE)
    catch_up(index, client, folder)
    stat = os.stat

    def refuse(path: Any, *arguments: Any, **options: Any) -> os.stat_result:
        if str(path).endswith("a.png"):
            raise PermissionError(13, "Permission denied")
        return stat(path, *arguments, **options)

    monkeypatch.setattr(os, "stat", refuse)
    events = catch_up(index, client, folder)
    monkeypatch.undo()
    assert [event.happened for event in events] == [Happened.FAILED]
    assert len(index) == 3


def test_a_sidecar_gives_and_changes_a_caption(index: Index, folder: Path) -> None:
    """A text file beside an image is seen when it is written; with a weight the vector follows."""
    client: Any = FakeClient(SPACE)
    with Watching(index, client, folder, captions=Sidecars(), caption_weight=0.5) as watching:
        watching.wait_for("added a.png", "added b.png", "added c.png")
        (folder / "a.txt").write_text("a white thing")
        watching.wait_for("captioned a.png")
        item = held(index, folder)["a.png"]
        mixed = unit((0, 255, 7)) + unit((255, 255, 255))
        assert (item.caption, item.metadata["fused_captions"]) == ("a white thing", 0.5)
        np.testing.assert_allclose(index.vectors([item.id])[0], mixed / np.linalg.norm(mixed), atol=1e-6)


@pytest.mark.parametrize(
    ("folders", "word"),
    [
        (["nowhere"], "nowhere"),
        (["photos/a.png"], r"a\.png"),
        ([], r"\bfolder\b"),
        ("photos", "list"),
        (["photos", "photos/below"], "below"),
    ],
)
def test_what_is_no_folder_is_refused(
    index: Index, folder: Path, monkeypatch: pytest.MonkeyPatch, folders: Any, word: str
) -> None:
    """Before anything is watched."""
    monkeypatch.chdir(folder.parent)
    client: Any = FakeClient(SPACE)
    with pytest.raises(InputError, match=word):
        watch(index, client, folders)
    assert len(index) == 0
