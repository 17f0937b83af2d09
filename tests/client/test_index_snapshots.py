"""A kind built for an index on disk: searches, the tail, filters, removals, damage, catching up, settings."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from support.arrays import unit
from twinspire.errors import (
    IndexStoreError,
    InputError,
    MissingDependencyError,
    ProviderError,
    SpaceMismatchError,
)
from twinspire.index import Index, Item, ItemKind, VectorType, disk, snapshots
from twinspire.index.catalogue import Catalogue
from twinspire.stores.filters.filter import Filter

pytestmark = pytest.mark.slow

SPACE, DIM, COUNT, K = "space", 32, 3_000, 10


def drawn(count: int, seed: int) -> NDArray[np.float32]:
    """Draw vectors around 30 centres, the same for every seed."""
    centres = np.random.default_rng(0).standard_normal((30, DIM), dtype=np.float32)
    draw = np.random.default_rng(seed)
    return unit(centres[draw.integers(0, 30, count)] + draw.standard_normal((count, DIM), dtype=np.float32))


VECTORS, QUERIES = drawn(COUNT, 1), drawn(20, 2)


def items(count: int, start: int = 0) -> list[Item]:
    """Return items whose metadata count from `start`."""
    return [
        Item(f"/p/{n}.jpg", ItemKind.IMAGE if n % 4 else ItemKind.TEXT, metadata={"n": n}, content_hash=str(n))
        for n in range(start, start + count)
    ]


def made(path: Path, dtype: VectorType = VectorType.FLOAT32, count: int = COUNT) -> Index:
    """Make an index of `count` items."""
    index = Index.create(path, space=SPACE, dim=DIM, dtype=dtype)
    index.add(VECTORS[:count], items(count), space=SPACE)
    return index


def exact(vectors: NDArray[np.float32], mask: NDArray[np.bool_] | None = None) -> list[list[int]]:
    """Search by numpy."""
    scores = QUERIES.astype(np.float64) @ vectors.T.astype(np.float64)
    if mask is not None:
        scores[:, ~mask] = -np.inf
    return [row[:K] for row in np.argsort(-scores, axis=1, kind="stable").tolist()]


def found(index: Index, **options: object) -> list[list[int]]:
    """Return the ids that a search finds with the effort of all lists."""
    hits = index.search(QUERIES, k=K, space=SPACE, **({"effort": 4000} | options))  # type: ignore[arg-type]
    return [[hit.id for hit in row] for row in hits]


def recall(ids: list[list[int]], expected: list[list[int]]) -> float:
    """Return the share of what was expected that was found."""
    return float(np.mean([len(set(a) & set(b)) / len(b) for a, b in zip(ids, expected, strict=True)]))


@pytest.fixture(autouse=True)
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let snapshots be used, and tails be caught up, in indexes of some thousand items."""
    monkeypatch.setattr(snapshots, "EXACT_KEPT", 50)
    monkeypatch.setattr(snapshots, "TAIL_ROWS", 500)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", list(VectorType))
@pytest.mark.parametrize("kind", ["ivf", "ivf,sq8", "ivf,pq8", "ivf,pq16x4", "hnsw", "pca24,hnsw,sq8", "binary"])
def test_built_kind_answers_as_exact_search_does(kind: str, dtype: VectorType, tmp_path: Path) -> None:
    """With the greatest effort a built kind finds 95% of numpy's ten best, and a reader the same hits as the writer."""
    with made(tmp_path / "index", dtype) as index:
        report = index.build(kind, threads=2)
        assert (report.spec, report.rows) == (kind, COUNT)
        assert recall(found(index), exact(VECTORS)) >= 0.95
        with Index.open(tmp_path / "index") as reader:
            assert found(reader) == found(index)
            stats = reader.stats().snapshot
    assert stats is not None
    assert (stats.spec, stats.rows, stats.damage) == (kind, COUNT, None)
    assert stats.file_bytes == report.file_bytes > 0


def test_scores_are_those_of_the_vectors(tmp_path: Path) -> None:
    """A coded kind's scores are the exact inner products, within 2e-6, and hits come best first."""
    with made(tmp_path / "index") as index:
        index.build("ivf,pq8")
        for query, hits in zip(QUERIES, index.search(QUERIES, k=K, space=SPACE), strict=True):
            scores = [hit.score for hit in hits]
            expected = [float(query.astype(np.float64) @ VECTORS[hit.id].astype(np.float64)) for hit in hits]
            assert np.abs(np.subtract(scores, expected)).max() < 2e-6
            assert scores == sorted(scores, reverse=True)


def test_what_was_added_is_found_at_once(tmp_path: Path) -> None:
    """Items added after the build, fewer than are caught up, are found with no effort at all: exactly."""
    with made(tmp_path / "index") as index, Index.open(tmp_path / "index") as reader:
        index.build("ivf,pq8")
        index.add(QUERIES, items(20, start=COUNT), space=SPACE)
        for opened in (index, reader):
            hits = opened.search(QUERIES, k=1, space=SPACE, effort=1)
            assert [row[0].id for row in hits] == list(range(COUNT, COUNT + 20))
            stats = opened.stats()
            assert stats.snapshot is not None
            assert (stats.snapshot.rows, stats.rows) == (COUNT, COUNT + 20)


def test_long_tail_is_caught_up(tmp_path: Path) -> None:
    """When more rows than the limit are behind the snapshot, an add takes them in; the old file goes."""
    more = drawn(800, 7)
    with made(tmp_path / "index") as index:
        index.build("ivf,pq8")
        index.tune(QUERIES, space=SPACE, recall=0.9)
        before = index.stats().snapshot
        index.add(more[:400], items(400, start=COUNT), space=SPACE)
        assert index.stats().snapshot == before
        index.add(more[400:], items(400, start=COUNT + 400), space=SPACE)
        after = index.stats().snapshot
        assert before is not None
        assert after is not None
        assert (after.rows, after.spec, after.effort) == (COUNT + 800, before.spec, before.effort)
        assert recall(found(index), exact(np.concatenate([VECTORS, more]))) >= 0.85
    assert [path.name for path in (tmp_path / "index").glob("ann-*")] == ["ann-2.faiss"]


def test_index_that_outgrew_its_lists_is_built_anew(tmp_path: Path) -> None:
    """With sixteen times the vectors there are four times the lists, and the effort grows with them."""
    with made(tmp_path / "index", count=150) as index:
        index.build("ivf")
        index.tune(QUERIES, space=SPACE, recall=0.9)
        before = index.stats().snapshot
        index.add(VECTORS[150:], items(COUNT - 150, start=150), space=SPACE)
        after = index.stats().snapshot
        assert before is not None
        assert after is not None
        assert before.effort is not None
        assert after.rows == COUNT
        assert after.effort == before.effort * 4  # of 64 lists, of 16 before
        assert recall(found(index), exact(VECTORS)) >= 0.99


@pytest.mark.parametrize("kind", ["ivf,pq8", "hnsw", "binary"])
def test_removed_items_are_never_found(kind: str, tmp_path: Path) -> None:
    """Removed and replaced vectors are not found, before compact as after; compact builds the same kind anew."""
    gone = {row[0] for row in exact(VECTORS)}
    alive = ~np.isin(np.arange(COUNT), list(gone))
    with made(tmp_path / "index") as index:
        index.build(kind)
        effort = index.tune(QUERIES, space=SPACE, recall=0.9).effort
        index.remove(gone)
        before = found(index)
        assert recall(before, exact(VECTORS, alive)) >= 0.85
        assert not {number for row in before for number in row} & gone
        index.compact()
        stats = index.stats().snapshot
        assert stats is not None
        assert (stats.spec, stats.rows, stats.damage) == (kind, COUNT - len(gone), None)
        assert stats.effort == effort
        assert recall(found(index), exact(VECTORS, alive)) >= 0.85
        number = exact(VECTORS, alive)[0][0]
        index.update(number, embedding=-QUERIES[0], space=SPACE)
        assert number not in found(index)[0]


@pytest.mark.parametrize(("where", "share"), [("n < 2700", 0.9), ("n < 300", 0.1), ("n < 9", 0.003), ("n < 0", 0)])
@pytest.mark.parametrize("kind", ["ivf,pq8", "hnsw", "binary"])
def test_filters_keep_what_they_should(kind: str, where: str, share: float, tmp_path: Path) -> None:
    """Filters that keep much and little, some of it in the tail, give numpy's ten best of what is kept."""
    mask = np.arange(COUNT) < share * COUNT
    with made(tmp_path / "index", count=COUNT - 100) as index:
        index.build(kind)
        index.add(VECTORS[-100:], items(100, start=COUNT - 100), space=SPACE)
        assert recall(found(index), exact(VECTORS)) >= 0.97
        ids = found(index, where=Filter.parse(where), effort={"ivf,pq8": 8, "hnsw": 100, "binary": 400}[kind])
        assert all(mask[row].all() for row in ids)
        assert {len(row) for row in ids} == {min(K, int(mask.sum()))}
        if mask.any():
            assert recall(ids, [row[: int(mask.sum())] for row in exact(VECTORS, mask)]) >= 0.95
        texts = found(index, kind=ItemKind.TEXT)
        assert recall(texts, exact(VECTORS, np.arange(COUNT) % 4 == 0)) >= 0.95


def test_filter_far_from_the_query_still_gives_k(tmp_path: Path) -> None:
    """Where lists near the query hold nothing that the filter keeps, exact search gives the k hits."""
    near, far = np.zeros((1000, 4), np.float32), np.zeros((200, 4), np.float32)
    near[:, 0] = far[:, 3] = 1
    noise = np.random.default_rng(0).standard_normal((1200, 4), dtype=np.float32) * 0.05
    with Index.create(tmp_path / "index", space=SPACE, dim=4) as index:
        index.add(unit(np.concatenate([near, far]) + noise), items(1200), space=SPACE)
        index.build("ivf,nlist=8")
        hits = index.search(unit(near[:1]), k=5, space=SPACE, where=Filter.parse("n >= 1000"), effort=1)
        assert len(hits[0]) == 5
        assert all(hit.id >= 1000 for hit in hits[0])


def damage(path: Path) -> None:
    """Turn one bit in the middle of the file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("wound", [damage, Path.unlink, lambda path: path.write_bytes(b"")])
def test_damaged_snapshot_is_rebuilt_and_said(wound: object, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A reader searches exactly past a damaged or lost snapshot and says so once; a writer builds it anew."""
    with made(tmp_path / "index") as index:
        index.build("ivf,pq8")
        index.tune(QUERIES, space=SPACE, recall=0.9)
        expected = index.stats().snapshot
    (file,) = (tmp_path / "index").glob("ann-*")
    wound(file)  # type: ignore[operator]
    with Index.open(tmp_path / "index") as reader, caplog.at_level(logging.WARNING, "twinspire.index"):
        assert found(reader, effort=1) == exact(VECTORS)
        assert found(reader, effort=1) == exact(VECTORS)
        assert len(caplog.records) == 1
        assert [file.name in problem for problem in reader.verify().problems] == [True]
        assert "exact" in caplog.text
        stats = reader.stats().snapshot
        assert stats is not None
        assert "missing" in str(stats.damage) or "damaged" in str(stats.damage)
        caplog.clear()
        with Index.open(tmp_path / "index", mode="write") as writer:
            assert file.name in caplog.text
            stats = writer.stats().snapshot
            assert expected is not None
            assert stats is not None
            assert (stats.spec, stats.rows, stats.damage) == (expected.spec, expected.rows, None)
            assert (stats.effort, stats.rescore_factor) == (expected.effort, expected.rescore_factor)
            assert recall(found(writer), exact(VECTORS)) >= 0.85
        assert recall(found(reader), exact(VECTORS)) >= 0.85
        assert reader.stats().snapshot == stats
        assert reader.verify().ok


def test_going_back_to_flat_takes_the_snapshot_away(tmp_path: Path) -> None:
    """`flat`, and `auto` for few items, search exactly and leave no file; nothing is there to tune."""
    with made(tmp_path / "index") as index:
        for kind in ("flat", "auto"):
            index.build("ivf")
            assert index.stats().snapshot is not None
            assert index.build(kind).spec == "flat"
            assert index.stats().snapshot is None
            assert found(index) == exact(VECTORS)
            assert not list((tmp_path / "index").glob("ann-*"))
        with pytest.raises(InputError, match="exactly"):
            index.tune(QUERIES, space=SPACE)


def test_tuned_effort_holds_for_all_searches(tmp_path: Path) -> None:
    """A search without an effort of its own then reaches what `tune` reports, in a reader too."""
    with made(tmp_path / "index") as index, Index.open(tmp_path / "index") as reader:
        index.build("ivf,pq8")
        for wanted in (0.99, 0.5):
            report = index.tune(QUERIES, space=SPACE, recall=wanted, k=K)
            stats = reader.stats().snapshot
            assert stats is not None
            assert (stats.effort, stats.rescore_factor) == (report.effort, report.rescore_factor)
            hits = reader.search(QUERIES, k=K, space=SPACE)
            reached = recall([[hit.id for hit in row] for row in hits], exact(VECTORS))
            assert reached >= report.recall - 1e-6  # more where lists hold fewer than K, which are searched exactly
            assert report.recall >= wanted
        with pytest.raises(InputError, match="recall"):
            index.tune(QUERIES, space=SPACE, recall=1.5)
        with pytest.raises(SpaceMismatchError):
            index.tune(QUERIES, space="other")


def test_prediction_comes_without_building(tmp_path: Path) -> None:
    """`predict` says what would be built and what it takes, and builds nothing."""
    with made(tmp_path / "index") as index:
        kind, predicted = index.predict("ivf,pq8")
        assert kind == "ivf,pq8"
        assert 8 * COUNT < predicted.memory_bytes < DIM * 4 * COUNT
        assert index.predict()[0] == "flat"
        assert index.stats().snapshot is None


def test_what_cannot_be_built_is_a_clear_error(tmp_path: Path) -> None:
    """Unknown kinds, GPU kinds without a GPU, an empty index and a reader are errors, and change nothing."""
    with Index.create(tmp_path / "empty", space=SPACE, dim=DIM) as index, pytest.raises(InputError, match=r"\sempty"):
        index.build("ivf")
    with made(tmp_path / "index") as index:
        with pytest.raises(InputError, match="lsh"):
            index.build("lsh")
        with pytest.raises(InputError, match="pca32"):
            index.build("pca32,ivf")
        with pytest.raises((MissingDependencyError, ProviderError), match="cagra"):
            index.build("cagra")
        assert index.stats().snapshot is None
        with Index.open(tmp_path / "index") as reader, pytest.raises(IndexStoreError, match="mode='write'"):
            reader.build("ivf")


def test_full_disk_keeps_the_snapshot_that_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A build that the disk has no room for is an error, leaves no file, and searches go on as before."""
    with made(tmp_path / "index") as index:
        index.build("ivf")
        before = index.stats().snapshot
        write = disk.write_at

        def full(fd: int, data: memoryview | bytes, offset: int) -> None:
            if offset == 0:
                write(fd, data[: len(data) // 2], offset)
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(disk, "write_at", full)
        with pytest.raises(IndexStoreError, match="room"):
            index.build("ivf,pq8")
        monkeypatch.undo()
        assert index.stats().snapshot == before
        assert [path.name for path in (tmp_path / "index").glob("ann-*")] == ["ann-1.faiss"]
        assert recall(found(index), exact(VECTORS)) >= 0.99


def test_add_outlives_a_snapshot_that_cannot_follow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where the snapshot cannot be written, the add has worked and its items are found; a warning says it."""
    with made(tmp_path / "index", count=1000) as index:
        index.build("ivf")

        def fails(*_: object) -> int:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(snapshots, "write_snapshot", fails)
        index.add(VECTORS[1000:], items(COUNT - 1000, start=1000), space=SPACE)
        assert "No space left" in caplog.text
        assert recall(found(index), exact(VECTORS)) >= 0.99


def test_left_over_files_go_when_a_writer_opens(tmp_path: Path) -> None:
    """A snapshot file that the catalogue does not name is removed, others stay."""
    with made(tmp_path / "index") as index:
        index.build("ivf")
    (tmp_path / "index" / "ann-7.faiss").write_bytes(b"torn")
    (tmp_path / "index" / "ann-notes.faiss").write_bytes(b"not ours")
    with Index.open(tmp_path / "index", mode="write"):
        pass
    assert sorted(path.name for path in (tmp_path / "index").glob("ann-*")) == ["ann-1.faiss", "ann-notes.faiss"]


def test_writer_killed_between_file_and_catalogue_loses_nothing(tmp_path: Path) -> None:
    """A build killed when its file is written and the catalogue does not know it leaves the earlier snapshot."""
    path = tmp_path / "index"
    with made(path) as index:
        index.build("ivf")
    program = (
        "import os, sys\n"
        "from twinspire.index import Index\n"
        "from twinspire.index.writer import Writer\n"
        "Writer.put_snapshot = lambda self, row: os._exit(9)\n"
        "Index.open(sys.argv[1], mode='write').build('ivf,pq8')\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(path)], check=False, timeout=60)
    assert done.returncode == 9
    assert len(list(path.glob("ann-*"))) == 2
    with Index.open(path, mode="write") as index:
        stats = index.stats().snapshot
        assert stats is not None
        assert stats.spec == "ivf"
        assert recall(found(index), exact(VECTORS)) >= 0.99
    assert len(list(path.glob("ann-*"))) == 1


def test_compact_cut_short_builds_anew_at_the_next_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the process ends between compact and the build, the next writer builds the same kind."""
    with made(tmp_path / "index") as index:
        index.build("hnsw")
        index.remove(range(100))
        monkeypatch.setattr(snapshots.Snapshots, "refresh", lambda *_, **__: None)
        index.compact()
        assert found(index) == exact(VECTORS, np.arange(COUNT) >= 100)
        monkeypatch.undo()
    with Index.open(tmp_path / "index", mode="write") as index:
        stats = index.stats().snapshot
        assert stats is not None
        assert (stats.spec, stats.rows, stats.damage) == ("hnsw", COUNT - 100, None)


def test_too_few_items_after_compact_are_searched_exactly(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A kind that cannot be built from what is left gives way to exact search, and that is said."""
    with made(tmp_path / "index") as index:
        index.build("ivf,pq8")
        index.remove(range(100, COUNT))
        index.compact()
        assert "256" in caplog.text
        assert index.stats().snapshot is None
        assert found(index) == exact(VECTORS[:100])


def test_threads_search_while_one_adds_and_builds(tmp_path: Path) -> None:
    """Searches of four threads during adds, catching up and builds always find the item that they ask for."""
    with made(tmp_path / "index", count=1500) as index, ThreadPoolExecutor(4) as threads:
        index.build("ivf,pq8")

        def search(number: int) -> bool:
            query = VECTORS[number % 1500][None]
            (hits,) = index.search(query, k=3, space=SPACE, effort=99)
            return hits[0].id == number % 1500

        searching = [threads.submit(search, number) for number in range(0, 6000, 7)]
        for start in range(1500, COUNT, 300):
            index.add(VECTORS[start : start + 300], items(300, start=start), space=SPACE)
        index.build("hnsw")
        index.build("ivf")
        assert all(each.result() for each in searching)


def test_snapshot_of_an_unknown_kind_is_an_error(tmp_path: Path) -> None:
    """A catalogue that names a kind this twinspire does not know is an error that says so."""
    with made(tmp_path / "index") as index:
        index.build("ivf")
    catalogue = Catalogue(tmp_path / "index", writable=True)
    with closing(catalogue), catalogue.change() as change:
        row = change.snapshot()
        assert row is not None
        change.put_snapshot(replace(row, spec="lsh"))
    with Index.open(tmp_path / "index") as reader, pytest.raises(InputError, match="lsh"):
        reader.search(QUERIES, space=SPACE)


def test_importing_the_index_imports_no_faiss() -> None:
    """The library is loaded at the first search."""
    program = "import sys, twinspire.index.ann, twinspire.index.snapshots; sys.exit('faiss' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False, timeout=60).returncode == 0


def noting(name: str, real: Callable[..., object], calls: list[str]) -> Callable[..., object]:
    """Return `real`, which notes its name where it is called."""

    def call(*arguments: object) -> object:
        calls.append(name)
        return real(*arguments)

    return call


def test_snapshot_is_on_the_disk_before_it_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its bytes are synced, then its name, then the catalogue names it, then the old file goes: a power cut is safe.

    Between the last two the commit is recorded as acknowledged.
    """
    with made(tmp_path / "index") as index:
        index.build("ivf")
        calls: list[str] = []
        for name in ("write_at", "sync", "sync_folder", "commit", "remove"):
            monkeypatch.setattr(disk, name, noting(name, getattr(disk, name), calls))
        index.build("hnsw")
        assert [call for place, call in enumerate(calls) if place == 0 or calls[place - 1] != call] == [
            "write_at",
            "sync",
            "sync_folder",
            "commit",
            "write_at",
            "remove",
        ]
