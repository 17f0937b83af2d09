"""A watch in rough weather: storms of renames, lost events, links, folders that cannot be read."""

from __future__ import annotations

import os
import random
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from support.data import hash_of
from support.fakes import FakeClient
from twinspire.errors import InputError
from twinspire.index import Index, StoredItem
from twinspire.ingest import (
    FolderEvent,
    Happened,
    IngestOptions,
    Sidecars,
    add_images,
    changes,
    find_images,
    sync,
    watch,
)

pytestmark = pytest.mark.slow

SPACE = "f" * 64
DIM = 3


def draw(path: Path, number: int) -> None:
    """Write a small image of a colour of its own, at once."""
    header = b"P6 2 2 255\n"
    draft = path.with_name(path.name + ".part")
    draft.write_bytes(header + bytes([number // 256, number % 256, 7]) * 4)
    draft.rename(path)


@pytest.fixture
def client() -> Any:
    """Make a fake client."""
    return FakeClient(SPACE)


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    """Make an empty index, open for writing."""
    with Index.create(tmp_path / "index", space=SPACE, dim=DIM) as index:
        yield index


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Make an empty folder."""
    folder = tmp_path / "photos"
    folder.mkdir()
    return folder


class Watching:
    """A watch in a thread of its own."""

    def __init__(self, index: Index, client: Any, folder: Path, **options: Any) -> None:
        self.events: list[FolderEvent] = []
        self.error: BaseException | None = None
        self._index, self._folder = index, folder
        self._stop, caught_up = threading.Event(), threading.Event()
        options = {"settle_s": 0.1, "gone_s": 0.4, **options}

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
                    on_caught_up=caught_up.set,
                    **options,
                )
            except BaseException as error:
                self.error = error
                caught_up.set()

        self.thread = threading.Thread(target=run)
        self.thread.start()
        assert caught_up.wait(30)

    def wait_until(self, wanted: Callable[[], bool], seconds: float = 30) -> None:
        """Wait until something holds."""
        end = time.monotonic() + seconds
        while not wanted() and time.monotonic() < end and self.thread.is_alive():
            time.sleep(0.05)
        assert wanted(), [f"{event.happened} {event.path.name} {event.cause}" for event in self.events[-20:]]

    def in_step(self) -> bool:
        """Whether the index holds each image of the folder, and nothing else, as it is."""
        items = self._index.find(under=str(self._folder))
        return sorted(item.uri for item in items) == [str(path) for path in find_images_or_none(self._folder)]

    def happened(self, *kinds: Happened) -> list[str]:
        """Return the names of files to which something of these kinds happened."""
        return [event.path.name for event in self.events if event.happened in kinds]

    def __enter__(self) -> Watching:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self.thread.join(30)
        assert not self.thread.is_alive()


def find_images_or_none(folder: Path) -> list[Path]:
    """Return a folder's images, also when there is none."""
    with suppress(InputError):
        return find_images([folder])
    return []


def ids_by_content(index: Index, folder: Path) -> dict[str | None, int]:
    """Return the ids of a folder's items by their content."""
    return {item.content_hash: item.id for item in index.find(under=str(folder))}


@pytest.mark.parametrize("count", [100, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("storm", ["names", "chain", "swaps", "again and again", "folders"])
def test_no_id_is_lost_in_a_storm_of_renames(index: Index, client: Any, folder: Path, storm: str, count: int) -> None:
    """Files renamed in a burst: every item keeps its id and vector, and nothing is encoded again."""
    names = [folder / f"{number:04}.ppm" for number in range(count)]
    if storm == "folders":
        names = [folder / f"{number % 20:02}" / f"{number:04}.ppm" for number in range(count)]
    for number, path in enumerate(names):
        path.parent.mkdir(exist_ok=True)
        draw(path, number)
    with Watching(index, client, folder) as watching:
        before = ids_by_content(index, folder)
        assert (len(before), client.encoded_images) == (count, count)
        if storm == "names":
            for path in names:
                path.rename(path.with_name("renamed-" + path.name))
        elif storm == "chain":  # each takes the name of the next: b becomes c, then a becomes b
            for path, after in zip(reversed(names), [folder / "last.ppm", *reversed(names)], strict=False):
                path.rename(after)
        elif storm == "swaps":
            for first, second in zip(names[::2], names[1::2], strict=True):
                first.rename(folder / "x.part")
                second.rename(first)
                (folder / "x.part").rename(second)
        elif storm == "again and again":  # longer than an item without its file is kept
            end = time.monotonic() + 1.2
            step = 0
            while time.monotonic() < end:
                step += 1
                for number, path in enumerate(names):
                    names[number] = path.rename(folder / f"{step:03}-{number:04}.ppm")
                time.sleep(0.06)
        else:
            for number in range(20):
                (folder / f"{number:02}").rename(folder / f"x{number:02}")
                (folder / f"x{number:02}").rename(folder / f"y{number:02}")
        watching.wait_until(watching.in_step)
        assert ids_by_content(index, folder) == before
        assert client.encoded_images == count
        assert watching.happened(Happened.ADDED)[count:] == watching.happened(Happened.REMOVED) == []
    assert watching.error is None


def test_folders_that_change_places_are_followed_afterwards(index: Index, client: Any, folder: Path) -> None:
    """Whatever a folder was called before, what happens in it later is seen under its name of then."""
    names = [folder / name for name in "abcd"]
    for name in names:
        name.mkdir()
    with Watching(index, client, folder) as watching:
        for round_ in range(3):
            names[0].rename(folder / "x")
            for first, second in pairwise(names):
                second.rename(first)
            (folder / "x").rename(names[-1])
            (names[round_] / "below").mkdir(exist_ok=True)
            time.sleep(0.05 * round_)
        time.sleep(0.5)
        for number, name in enumerate(sorted(path for path in folder.rglob("*") if path.is_dir())):
            draw(name / f"{number}.ppm", number)
        watching.wait_until(watching.in_step)
        assert len(index) >= 5
    assert watching.error is None


OPERATIONS = (
    ["draw"] * 3 + ["move"] * 3 + ["swap", "overwrite", "delete", "make", "move folder", "delete folder", "rest"]
)


def take_step(folder: Path, chance: random.Random, number: int) -> None:
    """Do something to the images and folders below a folder; what cannot be done is left out."""
    files = sorted(path for path in folder.rglob("*.ppm") if path.name != "stays.ppm")
    folders = sorted(path for path in folder.rglob("*") if path.is_dir())
    somewhere = chance.choice([folder, *folders])
    name = somewhere / f"{chance.randint(0, 40)}.ppm"
    operation = chance.choice(OPERATIONS)
    if operation == "draw":
        draw(name, number)
    elif operation == "make" and len(folders) < 6:
        (somewhere / f"d{chance.randint(0, 5)}").mkdir()
    elif operation == "rest":
        time.sleep(chance.random() / 2)
    elif operation.endswith("folder") and folders:
        if operation == "move folder":
            chance.choice(folders).rename(somewhere / f"d{chance.randint(0, 5)}")
        elif chance.random() < 0.3:
            shutil.rmtree(chance.choice(folders))
    elif files:
        chosen = chance.choice(files)
        if operation == "move":
            chosen.rename(name)
        elif operation == "delete":
            chosen.unlink()
        elif operation == "overwrite":
            chosen.write_bytes(b"P6 2 2 255\n" + bytes([number // 256, number % 256, 9]) * 4)
        elif operation == "swap":
            other = chance.choice(files)
            chosen.rename(folder / "x.part")
            with suppress(OSError):
                other.rename(chosen)
            (folder / "x.part").rename(other)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(int(os.environ.get("TWINSPIRE_STORMS", "4"))))
def test_after_any_storm_the_index_is_in_step(index: Index, client: Any, folder: Path, seed: int) -> None:
    """Images and folders drawn, moved, swapped, written to and deleted by chance: contents that stay keep their ids.

    More seeds: TWINSPIRE_STORMS=100.
    """
    chance, number = random.Random(seed), 0
    draw(folder / "stays.ppm", 65535)
    with Watching(index, client, folder, rescan_s=float("inf")) as watching:
        for _ in range(10):
            before = ids_by_content(index, folder)
            for _ in range(chance.randint(1, 60)):
                number += 1
                with suppress(OSError):
                    take_step(folder, chance, number)
            files = {str(path): hash_of(path) for path in find_images([folder])}
            watching.wait_until(
                lambda expected=files: (
                    {item.uri: item.content_hash for item in index.find(under=str(folder))} == expected
                )
            )
            after = ids_by_content(index, folder)
            lost = {content for content in before.keys() & after.keys() if before[content] != after[content]}
            assert not lost
    assert watching.error is None


def test_a_image_moved_out_of_the_way_keeps_its_id(index: Index, client: Any, folder: Path) -> None:
    """As programs save backups: the old content goes on under its id at the new name, the new content is new."""
    draw(folder / "a.ppm", 1)
    with Watching(index, client, folder) as watching:
        before = ids_by_content(index, folder)
        (folder / "a.ppm").rename(folder / "a.backup.ppm")
        draw(folder / "a.ppm", 2)
        watching.wait_until(lambda: len(index) == 2 and watching.in_step())
        assert before.items() <= ids_by_content(index, folder).items()
        assert index.find(uri=str(folder / "a.backup.ppm"))[0].id in before.values()


def lose_events(monkeypatch: pytest.MonkeyPatch, *, lost: bool) -> None:
    """Let watches know of nothing that happens."""
    module = sys.modules["twinspire.ingest.watch"]  # the package has a function of this name
    monkeypatch.setattr(module, "change_source", lambda roots, *, poll: LossySource(lost=lost))


class LossySource:
    """Tells nothing, or that something was lost."""

    complete = False

    def __init__(self, *, lost: bool) -> None:
        self.failed: list[Any] = []
        self._lost = lost

    def wait(self, timeout_s: float) -> changes.Changes:
        """Wait, and lose everything."""
        time.sleep(timeout_s)
        return changes.Changes(lost=self._lost)

    def __enter__(self) -> LossySource:
        return self

    def __exit__(self, *_: object) -> None:
        pass


@pytest.mark.parametrize(("lost", "rescan_s"), [(True, float("inf")), (False, 0.3)])
def test_lost_events_are_caught_up_with(
    index: Index, client: Any, folder: Path, monkeypatch: pytest.MonkeyPatch, lost: bool, rescan_s: float
) -> None:
    """At once where the system says that its queue has overflowed, else at the next comparison of everything."""
    for number in range(4):
        draw(folder / f"{number}.ppm", number)
    lose_events(monkeypatch, lost=lost)
    with Watching(index, client, folder, rescan_s=rescan_s, captions=Sidecars()) as watching:
        before = ids_by_content(index, folder)
        draw(folder / "new.ppm", 10)
        (folder / "1.ppm").rename(folder / "moved.ppm")
        (folder / "2.ppm").unlink()
        draw(folder / "3.ppm", 11)
        (folder / "0.txt").write_text("a caption")
        (folder / "broken.ppm").write_text("no picture")
        watching.wait_until(lambda: {*watching.happened(Happened.REMOVED, Happened.FAILED)} == {"2.ppm", "broken.ppm"})
        watching.wait_until(lambda: index.find(uri=str(folder / "0.ppm"))[0].caption == "a caption")
        watching.wait_until(lambda: index.find(uri=str(folder / "moved.ppm"))[0].id in before.values())
        time.sleep(1)  # a file that failed is not told again as long as it stays as it is
        assert watching.happened(Happened.FAILED) == ["broken.ppm"]
        draw(folder / "broken.ppm", 12)
        watching.wait_until(watching.in_step)
    assert watching.error is None


def test_a_folder_found_empty_while_watching_removes_nothing(
    index: Index, client: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody told that its files were deleted: a disk that is not mounted any more looks the same."""
    draw(folder / "a.ppm", 1)
    monkeypatch.setattr(
        sys.modules["twinspire.ingest.watch"], "change_source", lambda roots, *, poll: LossySource(lost=False)
    )
    with Watching(index, client, folder, rescan_s=0.2) as watching:
        (folder / "a.ppm").unlink()
        watching.thread.join(20)
    assert isinstance(watching.error, InputError)
    assert len(index) == 1


@pytest.mark.parametrize("poll", [False, True])
def test_deleting_the_last_image_is_no_missing_disk(index: Index, client: Any, folder: Path, poll: bool) -> None:
    """It was seen, so its item is removed; a folder that is filled again is followed."""
    draw(folder / "a.ppm", 1)
    with Watching(index, client, folder, rescan_s=0.1, poll=poll, gone_s=0.6) as watching:
        (folder / "a.ppm").unlink()
        watching.wait_until(lambda: len(index) == 0)
        draw(folder / "b.ppm", 2)
        watching.wait_until(watching.in_step)
    assert watching.error is None


def test_links_to_folders_are_not_followed(index: Index, client: Any, folder: Path, tmp_path: Path) -> None:
    """As `add` has it: neither out of the folder nor in a circle; images behind them are taken once."""
    (tmp_path / "elsewhere").mkdir()
    (folder / "real").mkdir()
    for number, path in enumerate((tmp_path / "elsewhere" / "far.ppm", folder / "real" / "near.ppm")):
        draw(path, number)
    (folder / "out").symlink_to(tmp_path / "elsewhere")
    (folder / "circle").symlink_to(folder)
    with Watching(index, client, folder) as watching:
        assert watching.happened(Happened.ADDED) == ["near.ppm"]
        (folder / "later").symlink_to(tmp_path / "elsewhere")
        draw(tmp_path / "elsewhere" / "far2.ppm", 5)
        draw(folder / "circle" / "real" / "near2.ppm", 6)
        watching.wait_until(lambda: len(watching.events) == 2)
        time.sleep(0.5)
        assert {event.path for event in watching.events} == {
            folder / "real" / "near.ppm",
            folder / "real" / "near2.ppm",
        }


def test_a_link_to_nothing_is_told_and_the_rest_goes_on(index: Index, client: Any, folder: Path) -> None:
    """In `add_images`, `sync` and, once, `watch`; it is taken when it leads somewhere."""
    draw(folder / "a.ppm", 1)
    (folder / "link.ppm").symlink_to(folder / "target.dat")
    for report in (add_images(index, client, find_images([folder])), sync(index, client, [folder])):
        assert [path.name for path, _ in report.failed] == ["link.ppm"]
    with Watching(index, client, folder, rescan_s=0.2) as watching:
        time.sleep(0.6)
        assert watching.happened(Happened.FAILED) == ["link.ppm"]
        draw(folder / "target.dat", 2)
        watching.wait_until(watching.in_step)


@pytest.fixture
def deep(folder: Path) -> Iterator[Path]:
    """Make folders below `folder` until a path is too long for the system; return the first."""
    here = os.open(folder, os.O_RDONLY)
    for _ in range(20):
        os.mkdir("d" * 250, dir_fd=here)
        below = os.open("d" * 250, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    yield folder / ("d" * 250)
    shutil.rmtree(folder / ("d" * 250))


def test_an_overlong_path_is_told_and_the_rest_goes_on(index: Index, client: Any, folder: Path, deep: Path) -> None:
    """In `find_images`, `add_images`, `sync` and `watch`: the folder that cannot be read fails, with its cause."""
    draw(folder / "a.ppm", 1)
    with pytest.raises(InputError, match="too long"):
        find_images([folder])
    found = find_images([folder], on_error="skip")
    assert found == [folder / "a.ppm"]
    ((path, cause),) = found.failed
    assert deep in path.parents
    assert "too long" in cause
    report = add_images(index, client, found)
    assert (report.added, report.failed) == (1, found.failed)
    assert sync(index, client, [folder]).failed == found.failed
    with Watching(index, client, folder, rescan_s=0.2) as watching:
        draw(folder / "b.ppm", 2)
        watching.wait_until(lambda: "b.ppm" in watching.happened(Happened.ADDED))
        time.sleep(0.5)
        failed = [event for event in watching.events if event.happened is Happened.FAILED]
        assert failed
        assert all(deep in event.path.parents for event in failed)
        assert len({(event.path, event.cause) for event in failed}) == len(failed), "told again"
    assert watching.error is None


def test_items_of_a_folder_that_cannot_be_read_stay(
    index: Index, client: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody can tell what became of their files; here the system refuses to list it."""
    for number, name in enumerate(("a.ppm", "closed/b.ppm", "closed/c.ppm")):
        (folder / name).parent.mkdir(exist_ok=True)
        draw(folder / name, number)
    sync(index, client, [folder])
    (folder / "closed" / "b.ppm").unlink()
    draw(folder / "new.ppm", 9)
    scandir = os.scandir

    def refuse(path: Any) -> Any:
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    report = sync(index, client, [folder])
    monkeypatch.undo()
    assert [(failed.path, "denied" in failed.cause) for failed in report.failed] == [(folder / "closed", True)]
    assert (report.added, report.removed, len(index)) == (1, 0, 4)
    report = sync(index, client, [folder])
    assert (report.removed, len(index)) == (1, 3)


def test_files_that_are_skipped_are_counted_by_suffix(index: Index, client: Any, folder: Path) -> None:
    """In what is found, in the report, and in the message where there is nothing else."""
    for name in ("a.MP4", "b.mp4", "README", "c.txt"):
        (folder / name).write_text("x")
    with pytest.raises(InputError, match=r"2 \.mp4"):
        find_images([folder])
    draw(folder / "a.ppm", 1)
    expected = {".mp4": 2, "": 1, ".txt": 1}
    assert find_images([folder]).skipped == expected
    assert add_images(index, client, find_images([folder])).skipped == expected
    assert sync(index, client, [folder]).skipped == expected
    assert sync(index, client, [folder], IngestOptions(captions=Sidecars())).skipped == {".mp4": 2, "": 1}


@pytest.mark.parametrize("has_reader", [True, False])
def test_heic_counts_where_its_reader_is_installed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, has_reader: bool
) -> None:
    """Without it the message names the extra."""
    monkeypatch.setattr("twinspire.images.formats.has_heif", lambda: has_reader)
    (folder / "a.heic").write_text("x")
    (folder / "B.HEIF").write_text("x")
    if has_reader:
        assert len(find_images([folder])) == 2
    else:
        with pytest.raises(InputError, match=r"\[heif\]"):
            find_images([folder])


def test_a_dry_run_says_what_would_be_done(index: Index, client: Any, folder: Path) -> None:
    """The same as is then done, without a change or anything encoded."""
    for number in range(6):
        draw(folder / f"{number}.ppm", number)
    sync(index, client, [folder])
    (folder / "0.ppm").rename(folder / "moved.ppm")
    shutil.copy(folder / "1.ppm", folder / "copy.ppm")
    shutil.copy(folder / "moved.ppm", folder / "copy2.ppm")
    draw(folder / "2.ppm", 20)
    (folder / "3.ppm").unlink()
    draw(folder / "new.ppm", 21)
    generation, encoded = index.generation, client.encoded_images
    events: list[FolderEvent] = []
    planned = sync(index, client, [folder], IngestOptions(on_event=events.append), dry_run=True)
    assert (index.generation, client.encoded_images) == (generation, encoded)
    assert all(event.id is None for event in events if event.happened is Happened.ADDED)
    assert sync(index, client, [folder]) == planned
    assert (planned.added, planned.changed, planned.moved, planned.removed, planned.already) == (3, 2, 1, 1, 3)


def test_a_image_moved_between_two_folders_keeps_its_id(index: Index, client: Any, folder: Path) -> None:
    """Folders are brought in step together, in whatever order they are given."""
    for name in ("one", "two"):
        (folder / name).mkdir()
        draw(folder / name / f"stays-{name}.ppm", len(name))
    draw(folder / "one" / "a.ppm", 9)
    roots = [folder / "one", folder / "two"]
    sync(index, client, roots)
    (before,) = index.find(uri=str(folder / "one" / "a.ppm"))
    (folder / "one" / "a.ppm").rename(folder / "two" / "a.ppm")
    report = sync(index, client, roots)
    assert (report.moved, report.added, report.removed) == (1, 0, 0)
    after: StoredItem = index.find(uri=str(folder / "two" / "a.ppm"))[0]
    assert after.id == before.id
