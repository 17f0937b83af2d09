"""Migrating an index to another model: what it becomes, what it refuses, what readers and writers meet meanwhile."""

from __future__ import annotations

import shutil
import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from support.arrays import unit
from support.data import hash_of
from support.fakes import FakeClient, mean_colour, named_colour
from twinspire.bundle import Tower
from twinspire.errors import BundleError, IndexLockedError, IndexReplacedError, InputError, SpaceMismatchError
from twinspire.index import BundleReference, Index, Item, ItemKind, StoredItem, VectorType, verify_index
from twinspire.index.ann import parse_choice
from twinspire.ingest import Captions, IngestOptions, add_images, add_texts
from twinspire.migration import migrate
from twinspire.search import LiveSearcher, Mode, Query, SearchRequest
from twinspire.stores import TextQuery

OLD, NEW, OTHER = "a" * 64, "b" * 64, "c" * 64
IMAGES, TEXTS = 70, 5


def five(colour: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return a vector of another length than the old model's."""
    return np.array([colour[0], colour[1], colour[2], colour[0] * colour[1] / 255, 9.0])


def old_client() -> Any:
    """Return the client of the model that the index was made with, 3 numbers a vector."""
    return FakeClient(OLD)


def new_client(space: str = NEW) -> Any:
    """Return a client of another model, 5 numbers a vector."""
    return FakeClient(
        space,
        dim=5,
        image_vector=lambda pixels: five(mean_colour(pixels)),
        text_vector=lambda text: five(named_colour(text)),
    )


def draw(path: Path, number: int) -> None:
    """Draw an image that no other number has."""
    Image.new("RGB", (20, 10), (number * 3 % 256, 255 - number * 3 % 256, number * 7 % 256)).save(path)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Draw images."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(IMAGES):
        draw(folder / f"{number:03}.png", number)
    (tmp_path / "lines.txt").write_text("".join(f"a red thing no {number}\n" for number in range(TEXTS)))
    return folder


@pytest.fixture
def path(tmp_path: Path, photos: Path) -> Path:
    """Make an index of images and texts, whose ids have gaps and whose vector file has dead rows."""
    path = tmp_path / "index"
    with Index.create(path, space=OLD, dim=3, bundle=BundleReference("old", "/bundles/old")) as index:
        add_texts(index, old_client(), [tmp_path / "lines.txt"])
        add_images(index, old_client(), sorted(photos.iterdir()))
        index.remove([2, 30])
        for number in (8, 9):
            stored = index.get([number])[0]
            index.update(number, caption=f"caption {number}", metadata={**stored.metadata, "mine": number})
            index.update(number, embedding=index.vectors([number])[0], space=OLD)
    return path


def content(index: Index) -> list[StoredItem]:
    """Return all items."""
    return list(index.items())


def check(path: Path, client: Any, items: list[StoredItem], *, exact: bool = True) -> None:
    """Check that an index has these items, and that its answers are those of a fresh index of the client's model.

    An approximate index has to find the items by their own vectors instead.
    """
    assert verify_index(path).ok
    with Index.open(path) as index:
        assert index.space == client.space
        assert [(item.id, item.uri, item.caption) for item in content(index)] == [
            (item.id, item.uri, item.caption) for item in items
        ]
        images = [item for item in items if item.kind is ItemKind.IMAGE]
        texts = [item for item in items if item.kind is ItemKind.TEXT]
        rows = [
            client.encode_images([item.uri for item in images]),
            client.encode_texts([item.caption for item in texts]),
        ]
        ids = [item.id for item in [*images, *texts]]
        assert np.array_equal(index.vectors(ids), np.concatenate(rows))
        if not exact:
            best = [hits[0].score for hits in index.search(np.concatenate(rows), k=1, space=client.space)]
            assert np.mean(np.array(best) > 0.999) > 0.9
        for query in unit(np.random.default_rng(1).standard_normal((20, client.dim)) if exact else ()):
            hits = index.search(query[None], k=7, space=client.space)[0]
            scores = np.sort(np.concatenate(rows) @ query)[::-1][:7]
            assert np.allclose([hit.score for hit in hits], scores, atol=1e-6)
        found = {hit.id for hit in index.search_text(TextQuery(phrases=(("thing",),)), k=99)}
        assert found == {item.id for item in texts if "thing" in (item.caption or "")}
    assert not (path / "migration").exists()


def test_every_item_keeps_its_id_and_gets_the_vector_of_the_new_model(path: Path) -> None:
    """Ids, captions, metadata and times stay; vectors, space, dim and bundle are those of the new model."""
    with Index.open(path) as index:
        before, generation = content(index), index.generation
    client = new_client()
    report = migrate(path, client, bundle=BundleReference("new", "/bundles/new"))
    assert (report.switched, report.items, report.encoded, report.lost) == (True, len(before), len(before), [])
    check(path, new_client(), before)
    with Index.open(path) as index:
        assert content(index) == before
        assert (index.dim, index.bundle) == (5, BundleReference("new", "/bundles/new"))
        assert index.generation == generation + 1
        assert index.stats().dead_rows == 0
    assert [name.name for name in path.glob("vectors-*")] == ["vectors-2.f32"]


def test_a_migrated_index_takes_changes_and_new_ids_go_on(path: Path, photos: Path) -> None:
    """After the switch items are added, changed and removed as before, and no id comes twice."""
    migrate(path, new_client())
    draw(photos / "new.png", 99)
    with Index.open(path, mode="write") as index:
        report = add_images(index, new_client(), sorted(photos.iterdir()))
        assert (report.added, report.already) == (3 - 1, IMAGES - 1)  # one was removed, one is new
        assert max(item.id for item in content(index)) == IMAGES + TEXTS + 1
        index.compact()
        items = content(index)
    check(path, new_client(), items)


def test_a_second_call_after_the_switch_does_nothing(path: Path) -> None:
    """An index of the new space is left alone."""
    migrate(path, new_client())
    client = new_client()
    report = migrate(path, client)
    assert (report.switched, report.encoded, client.encoded_images) == (True, 0, 0)


def test_an_open_reader_is_told_to_open_it_again(path: Path) -> None:
    """No search mixes spaces: until the switch it is of the old one, then it raises, reopened it is of the new one."""
    query = unit(np.ones((1, 3)))
    with Index.open(path) as reader:
        hits = reader.search(query, space=OLD)
        during: list[bool] = []
        migrate(path, new_client(), on_progress=lambda *_: during.append(hits == reader.search(query, space=OLD)))
        assert during
        assert all(during)
        for call in (lambda: reader.search(query, space=OLD), lambda: reader.get([1]), lambda: len(reader)):
            with pytest.raises(IndexReplacedError, match="open it again"):
                call()
        with pytest.raises(IndexReplacedError):
            reader.search(unit(np.ones((1, 5))), space=NEW)
    with Index.open(path) as reader, pytest.raises(SpaceMismatchError):
        reader.search(query, space=OLD)


def test_an_interrupted_migration_goes_on_where_it_was(path: Path) -> None:
    """What was encoded before an error is not encoded again, and the old index answers meanwhile."""
    first = new_client()

    def stop(done: int, _: int) -> None:
        if done >= 32:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        migrate(path, first, on_progress=stop)
    with Index.open(path) as index:
        assert index.space == OLD
        items = content(index)
    second = new_client()
    report = migrate(path, second)
    assert report.already >= 32
    assert (report.switched, report.encoded) == (True, len(items) - report.already)
    assert second.encoded_images + len(second.encoded_texts) == report.encoded
    check(path, new_client(), items)


def test_changes_during_the_migration_are_in_the_new_index(path: Path, photos: Path) -> None:
    """Items that were added, changed, renamed or removed while it encodes are so after the switch."""
    done = False

    def change(count: int, _: int) -> None:
        nonlocal done
        if done or count < 20:
            return
        done = True
        draw(photos / "late.png", 90)
        draw(photos / "000.png", 91)
        (photos / "001.png").rename(photos / "renamed.png")
        with Index.open(path, mode="write") as index:
            add_images(index, old_client(), [photos / "late.png", photos / "000.png", photos / "renamed.png"])
            index.remove([12])
            index.update(3, caption="a blue thing")

    report = migrate(path, new_client(), on_progress=change)
    assert done
    assert (report.switched, report.lost) == (True, [])
    with Index.open(path) as index:
        items = content(index)
        by_name = {Path(item.uri).name: item for item in items}
        assert {"late.png", "renamed.png", "000.png"} <= by_name.keys()
        assert 12 not in {item.id for item in items}
        assert by_name["000.png"].content_hash == hash_of(photos / "000.png")
    check(path, new_client(), items)


def test_a_writer_that_stays_stops_the_switch_alone(path: Path) -> None:
    """Beside a process that writes all is encoded, then the error says that it waits; the next call only switches."""
    first, second = new_client(), new_client()
    with Index.open(path, mode="write") as writer:
        items = content(writer)
        with pytest.raises(IndexLockedError, match="encoded"):
            migrate(path, first)
        assert writer.search(unit(np.ones((1, 3))), space=OLD)
    assert first.encoded_images + len(first.encoded_texts) == len(items)
    assert migrate(path, second).switched
    assert second.encoded_images == 0
    check(path, new_client(), items)


def test_two_migrations_at_once_exclude_each_other(path: Path) -> None:
    """The second of two migrations raises `IndexLockedError`, also with --restart."""
    errors: list[BaseException] = []

    def second(done: int, _: int) -> None:
        for restart in (False, True):
            with pytest.raises(IndexLockedError) as caught:
                migrate(path, new_client(), restart=restart)
            errors.append(caught.value)

    assert migrate(path, new_client(), on_progress=second).switched
    assert errors


@pytest.mark.parametrize("lose", ["gone", "broken", "no file", "no text"])
def test_items_that_cannot_be_encoded_are_named_and_stop_the_switch(path: Path, photos: Path, lose: str) -> None:
    """The index switches only without items that have no readable file or text, and only where that is asked for."""
    with Index.open(path, mode="write") as index:
        if lose in ("no file", "no text"):
            kind = "image" if lose == "no file" else "text"
            (lost,) = index.add(unit(np.ones((1, 3))), [Item("https://example.org/x", kind)], space=OLD).added
        else:
            lost = index.find(uri=str(photos / "040.png"))[0].id
            (photos / "040.png").write_bytes(b"no image")
            if lose == "gone":
                (photos / "040.png").unlink()
        items = content(index)
    report = migrate(path, new_client())
    assert not report.switched
    assert [(item.id, bool(item.cause)) for item in report.lost] == [(lost, True)]
    with Index.open(path) as index:
        assert (index.space, content(index)) == (OLD, items)
    client = new_client()
    report = migrate(path, client, drop_missing=True)
    assert (report.switched, report.dropped, report.items, client.encoded_images) == (True, 1, len(items) - 1, 0)
    check(path, new_client(), [item for item in items if item.id != lost])


def test_an_item_whose_file_is_back_is_encoded_after_all(path: Path, photos: Path) -> None:
    """A file that was missing in one run and is there in the next is no loss."""
    (photos / "040.png").rename(photos.parent / "away.png")
    assert not migrate(path, new_client()).switched
    (photos.parent / "away.png").rename(photos / "040.png")
    assert migrate(path, new_client()).switched


def test_no_file_at_all_is_refused_even_if_missing_ones_may_be_dropped(path: Path, photos: Path) -> None:
    """A disk that is not mounted does not empty the index."""
    shutil.move(photos, photos.parent / "elsewhere")
    with pytest.raises(InputError, match="mounted"):
        migrate(path, new_client(), drop_missing=True)
    with Index.open(path) as index:
        assert index.space == OLD


def test_a_file_with_other_content_is_encoded_as_it_is_now(path: Path, photos: Path) -> None:
    """Its item takes the new content's hash and metadata, and keeps its id, its caption and the user's own keys."""
    with Index.open(path) as index:
        before = index.get([8])[0]
    Image.new("RGB", (7, 9), (1, 2, 3)).save(before.uri)
    report = migrate(path, new_client())
    assert (report.switched, report.changed) == (True, 1)
    with Index.open(path) as index:
        after, items = index.get([8])[0], content(index)
    assert after.content_hash == hash_of(Path(before.uri)) != before.content_hash
    assert (after.caption, after.metadata["mine"], after.metadata["width"]) == ("caption 8", 8, 7)
    check(path, new_client(), items)


def test_captions_that_were_fused_are_fused_again(tmp_path: Path, photos: Path) -> None:
    """The vector of an item with fused captions is that of `index add --fuse-captions` with the new model."""
    table = tmp_path / "captions.csv"
    table.write_text("image,caption\n000.png,red\n000.png,green\n001.png,blue\n")
    files, options = sorted(photos.iterdir())[:4], IngestOptions(captions=Captions.read(table), caption_weight=0.3)
    rows = []
    for name, client in (("old", old_client()), ("new", new_client())):
        with Index.create(tmp_path / name, space=client.space, dim=client.dim) as index:
            add_images(index, client, files, options)
            rows.append(index.vectors(range(4)))
    migrate(tmp_path / "old", new_client())
    with Index.open(tmp_path / "old") as index:
        assert np.allclose(index.vectors(range(4)), rows[1], atol=1e-7)
        assert not np.allclose(index.vectors([0]), new_client().encode_images(files[:1]))


def test_another_model_than_the_begun_one_needs_restart(path: Path) -> None:
    """A migration to another space that was begun is refused, and begins anew with `restart`."""
    with Index.open(path, mode="write") as index:
        items = content(index)
        with pytest.raises(IndexLockedError):
            migrate(path, new_client(OTHER))
    with pytest.raises(InputError) as caught:
        migrate(path, new_client())
    assert caught.value.option == "--restart"
    client = new_client()
    assert migrate(path, client, restart=True).switched
    assert client.encoded_images + len(client.encoded_texts) == len(items)
    check(path, new_client(), items)


def test_a_dry_run_changes_nothing_and_says_what_is_missing(path: Path, photos: Path) -> None:
    """It counts what would be encoded, and names the items without a file; nothing is written or decoded."""
    (photos / "040.png").unlink()
    draw(photos / "041.png", 200)

    def state() -> dict[str, int]:
        return {
            file.name: file.stat().st_mtime_ns for file in path.iterdir() if not file.name.endswith(("-wal", "-shm"))
        }

    before = state()
    client = new_client()
    report = migrate(path, client, dry_run=True)
    assert (report.switched, report.changed, len(report.lost), client.encoded_images) == (False, 1, 1, 0)
    assert report.encoded == IMAGES + TEXTS - 2 - 1
    assert state() == before


def test_a_model_without_the_tower_of_an_item_is_refused(path: Path) -> None:
    """An index with images does not go to a model of texts alone."""
    client = new_client()
    client.bundle.towers = (Tower.TEXT,)
    with pytest.raises(BundleError, match="image"):
        migrate(path, client)
    assert not (path / "migration").exists()


@pytest.mark.parametrize("spec", ["ivf", "hnsw"])
def test_the_approximate_index_is_built_before_the_switch(path: Path, spec: str) -> None:
    """The new index is searched with the spec that the old one had, without damage, from the first search on."""
    with Index.open(path, mode="write") as index:
        index.build(spec)
        items = content(index)
    migrate(path, new_client())
    with Index.open(path) as index:
        snapshot = index.stats().snapshot
        assert snapshot is not None
        assert (snapshot.spec, snapshot.damage, snapshot.rows) == (str(parse_choice(spec)), None, len(items))
    check(path, new_client(), items, exact=False)


def test_a_spec_that_does_not_suit_the_new_vectors_is_refused_first(path: Path) -> None:
    """Nothing is encoded for a spec that cannot be built; another one can be named."""
    with Index.open(path) as index:
        items = content(index)
    with pytest.raises(InputError):
        migrate(path, new_client(), spec="pca16,flat")
    assert not (path / "migration").exists()
    migrate(path, new_client(), spec="hnsw")
    with Index.open(path) as index:
        snapshot = index.stats().snapshot
        assert snapshot is not None
        assert snapshot.spec == "hnsw"
    check(path, new_client(), items, exact=False)


def test_the_old_index_is_kept_where_that_is_asked_for(path: Path, tmp_path: Path) -> None:
    """With `keep_old` the index as it was is at that path: items, vectors and approximate index; both take changes."""
    with Index.open(path, mode="write") as index:
        index.build("hnsw")
        items, vectors = content(index), index.vectors([1, 8, 20])
    migrate(path, new_client(), keep_old=tmp_path / "before")
    with Index.open(tmp_path / "before", mode="write") as old, Index.open(path, mode="write") as new:
        assert (old.space, content(old), old.bundle) == (OLD, items, BundleReference("old", "/bundles/old"))
        assert np.array_equal(old.vectors([1, 8, 20]), vectors)
        snapshot = old.stats().snapshot
        assert snapshot is not None
        assert snapshot.damage is None
        old.add(unit(np.ones((3, 3))), [Item(f"/o/{n}", "image") for n in range(3)], space=OLD)
        new.add(unit(np.ones((2, 5))), [Item(f"/n/{n}", "image") for n in range(2)], space=NEW)
    assert [verify_index(each).problems for each in (tmp_path / "before", path)] == [[], []]
    with pytest.raises(InputError) as caught:
        migrate(path, new_client(OTHER), keep_old=tmp_path / "before")
    assert caught.value.option == "--keep-old"


def test_the_type_of_stored_numbers_stays(tmp_path: Path, photos: Path) -> None:
    """An index of float16 is one after the migration."""
    with Index.create(tmp_path / "half", space=OLD, dim=3, dtype="float16") as index:
        add_images(index, old_client(), sorted(photos.iterdir()))
    migrate(tmp_path / "half", new_client())
    with Index.open(tmp_path / "half") as index:
        assert index.dtype is VectorType.FLOAT16
        vectors = index.vectors(range(IMAGES))
    wanted = new_client().encode_images(sorted(photos.iterdir()))
    assert np.array_equal(vectors, wanted.astype(np.float16).astype(np.float32))


def several(client: Any, count: int) -> Any:
    """Let a client give several vectors an image."""
    encode: Callable[[Any], NDArray[np.float32]] = client.towers.encode_images
    if count == 1:
        return client
    client.vectors_per_item = count
    client.towers.encode_images = lambda pixels: unit(encode(pixels)[:, None] + 0.1 * np.arange(count)[None, :, None])
    return client


@pytest.mark.parametrize(("before", "after"), [(1, 4), (4, 1), (2, 4)])
def test_the_number_of_vectors_an_item_may_change(tmp_path: Path, photos: Path, before: int, after: int) -> None:
    """An index of one vector an item becomes one of several, and back: as a fresh one of the new model is."""
    files = sorted(photos.iterdir())
    (tmp_path / "lines.txt").write_text("red\ngreen\n")
    for name, client in (("moved", several(old_client(), before)), ("fresh", several(new_client(), after))):
        q = client.vectors_per_item
        with Index.create(tmp_path / name, space=client.space, dim=client.dim, vectors_per_item=q) as index:
            add_images(index, client, files)
            add_texts(index, client, [tmp_path / "lines.txt"])
    migrate(tmp_path / "moved", several(new_client(), after))
    assert verify_index(tmp_path / "moved").ok
    query = unit(np.random.default_rng(3).standard_normal((9, 5)))
    found, tables = [], []
    for name in ("moved", "fresh"):
        with Index.open(tmp_path / name, mode="write") as index:
            hits = index.search(query, k=5, space=NEW)
            found.append([[(hit.id, round(hit.score, 6)) for hit in row] for row in hits])
            assert index.vectors_per_item == after
            assert index.vectors([0]).shape == ((1, 5) if after == 1 else (1, after, 5))
        with closing(sqlite3.connect(tmp_path / name / "catalogue.sqlite")) as catalogue:
            tables.append(catalogue.execute("SELECT tables, schema_version FROM catalogue").fetchone())
    assert found[0] == found[1]
    assert tables[0] == tables[1]


def test_a_service_goes_on_through_the_switch(path: Path) -> None:
    """A `LiveSearcher` opens the index again with the model that it names: no search fails, none mixes spaces."""
    clients = {OLD: old_client(), NEW: new_client()}
    wrong: list[object] = []
    spaces: set[int] = set()
    stop = threading.Event()

    def search(searcher: LiveSearcher) -> None:
        while not stop.is_set():
            try:
                hits = searcher.run(SearchRequest(Query.text("green"), k=40, kind="image", mode=Mode.VECTOR)).hits
            except Exception as error:
                wrong.append(error)
                return
            last = hits[-1]  # the first one's score is near 1 in both spaces
            scores = [
                (client.encode_texts(["green"]) @ client.encode_images([last.uri]).T).item()
                for client in clients.values()
            ]
            matching = [place for place, score in enumerate(scores) if abs(score - last.parts["vector"]) < 1e-6]
            if len(matching) != 1:
                wrong.append((last, scores))
            spaces.update(matching)

    def connect(store: Any) -> Any:
        return {OLD: old_client, NEW: new_client}[store.space]()

    with LiveSearcher(str(path), connect, cache=False) as searcher:
        threads = [threading.Thread(target=search, args=(searcher,)) for _ in range(3)]
        for thread in threads:
            thread.start()
        time.sleep(0.3)
        migrate(path, new_client())
        time.sleep(0.3)
        stop.set()
        for thread in threads:
            thread.join()
    assert wrong == []
    assert spaces == {0, 1}


def test_an_old_index_that_was_kept_is_moved_by_the_next_call_if_that_was_interrupted(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between the switch and the move of the old index: the same call moves it, and nothing is left over."""
    monkeypatch.setattr("twinspire.migration.run.kept_old", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        migrate(path, new_client(), keep_old=tmp_path / "before")
    monkeypatch.undo()
    with Index.open(path, mode="write") as index:  # the index goes on, in the file that it shares with the staged one
        index.add(unit(np.ones((2, 5))), [Item(f"/n/{n}", "image") for n in range(2)], space=NEW)
    assert migrate(path, new_client(), keep_old=tmp_path / "before").switched
    with Index.open(tmp_path / "before") as index:
        assert index.space == OLD
    assert not (path / "migration").exists()
    assert verify_index(path).problems == []


def test_vectors_of_a_finished_migration_are_not_touched_by_the_next(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a killed clean-up left shares a file with the index: a migration to a third model discards it unopened."""
    monkeypatch.setattr("twinspire.migration.run._finish", lambda *_: None)
    migrate(path, new_client())
    monkeypatch.undo()
    with Index.open(path, mode="write") as index:
        added = index.add(unit(np.ones((2, 5))), [Item(f"/n/{n}", "image") for n in range(2)], space=NEW).added
    assert (path / "migration").exists()
    with Index.open(path, mode="write"), pytest.raises(IndexLockedError):
        migrate(path, new_client(OTHER), drop_missing=True)
    with Index.open(path) as index:
        assert index.vectors(added).shape == (2, 5)
    assert verify_index(path).problems == []


def test_an_item_that_was_encoded_and_is_lost_since_can_be_dropped(path: Path, photos: Path) -> None:
    """Its vector is there from an earlier run, its file has changed and then gone: it is named, then dropped."""
    with Index.open(path, mode="write") as writer:
        draw(photos / "040.png", 201)  # so that there is something to change in its item
        with pytest.raises(IndexLockedError):
            migrate(path, new_client())
        item = writer.find(uri=str(photos / "040.png"))[0]
        writer.update(item.id, uri=str(photos / "away.png"))
        items = [other for other in content(writer) if other.id != item.id]
    assert [lost.id for lost in migrate(path, new_client()).lost] == [item.id]
    report = migrate(path, new_client(), drop_missing=True)
    assert (report.switched, report.items, report.dropped) == (True, len(items), 1)
    check(path, new_client(), items)


def test_a_path_that_is_not_in_its_normal_form_is_named_as_it_is(path: Path, photos: Path) -> None:
    """An item whose uri has two slashes is encoded, and lost where its file is no image, like any other."""
    with Index.open(path, mode="write") as index:
        rows = unit(np.ones((2, 3)))
        uris = [f"{photos.parent}//photos/000.png", f"{photos.parent}//photos/none.png"]
        good, bad = index.add(rows, [Item(uri, "image", content_hash=uri[-9:]) for uri in uris], space=OLD).added
    (photos / "none.png").write_bytes(b"no image")
    report = migrate(path, new_client(), drop_missing=True)
    assert [lost.id for lost in report.lost] == [bad]
    with Index.open(path) as index:
        assert index.get([good])[0].content_hash == hash_of(photos / "000.png")
