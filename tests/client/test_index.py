"""What an index takes, finds, reports and refuses."""

from __future__ import annotations

import os
import re
import sys
import threading
import tracemalloc
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import twinspire.index
from support.arrays import random_vectors
from twinspire.errors import (
    EmbeddingError,
    IndexLockedError,
    IndexStoreError,
    InputError,
    MissingDependencyError,
    SpaceMismatchError,
)
from twinspire.index import AddReport, Index, Item, ItemKind, flat
from twinspire.index.schema import SCHEMA_VERSION

SPACE = "5" * 64
DIM = 8
unit = partial(random_vectors, dim=DIM)


def items(count: int, prefix: str = "p") -> list[Item]:
    """Make images with distinct content hashes."""
    return [Item(f"/{prefix}{i}.jpg", ItemKind.IMAGE, content_hash=f"{prefix}{i}") for i in range(count)]


@pytest.fixture
def index(tmp_path: Path) -> Index:
    """Make an empty index, open for writing."""
    return Index.create(tmp_path / "index", space=SPACE, dim=DIM)


def test_the_public_names_are_these() -> None:
    """What the room exports is pinned."""
    assert twinspire.index.__all__ == [
        "AddReport",
        "BundleReference",
        "CompactReport",
        "Hit",
        "Index",
        "IndexStats",
        "Item",
        "ItemKind",
        "RecoverReport",
        "StoredItem",
        "VectorType",
        "VerifyReport",
        "recover_index",
        "verify_index",
    ]


def test_an_item_is_found_by_its_own_vector_with_all_it_was_given(index: Index) -> None:
    """The hit carries id, uri, kind, caption and metadata as they were added."""
    item = Item("/猫.jpg", ItemKind.TEXT, "a red car, 红色的车", {"n": 1.5, "of": [None, {"x": "é"}]}, "hash")
    index.add(unit(3), [*items(2), item], space=SPACE)
    hit = index.search(unit(3)[2:], k=1, space=SPACE)[0][0]
    assert (hit.id, hit.uri, hit.kind, hit.caption) == (2, item.uri, item.kind, item.caption)
    assert hit.metadata == item.metadata
    assert hit.score == pytest.approx(1, abs=1e-6)


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    count=st.integers(1, 1500),
    dim=st.integers(1, 40),
    queries=st.integers(1, 25),
    k=st.integers(1, 100),
    distinct=st.integers(1, 1500),
    keep=st.sampled_from([None, 0.0, 0.001, 0.1, 0.5, 0.9, 1.0]),
    dtype=st.sampled_from([np.float32, np.float16]),
    start=st.integers(0, 100),
    block_bytes=st.sampled_from([1, 20_000, 8 << 20]),
)
def test_search_agrees_with_numpy(
    seed: int,
    count: int,
    dim: int,
    queries: int,
    k: int,
    distinct: int,
    keep: float | None,
    dtype: type,
    start: int,
    block_bytes: int,
) -> None:
    """The k best in float64 are the k found, scores within 1e-5, equal ones in order, whatever is kept."""
    distinct, start = min(distinct, count), min(start, count)  # the rest are duplicates
    chance = np.random.default_rng(seed)
    vectors = unit(distinct, seed, dim=dim)[chance.integers(0, distinct, count)].astype(dtype)
    asked, order = unit(queries, seed + 1, dim=dim), chance.permutation(count)
    allowed = None if keep is None else chance.random(count) < keep
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flat, "_BLOCK_BYTES", block_bytes)
        patch.setattr(flat, "_MINIMUM_ROWS_PER_RESULT", 1)
        scores, rows = flat.nearest(vectors, asked, k, allowed=allowed, order=order, start=start)
    exact = asked.astype(np.float64) @ vectors.astype(np.float64).T
    exact[:, :start] = -np.inf
    if allowed is not None:
        exact[:, ~allowed] = -np.inf
    n = min(k, int(np.isfinite(exact[0]).sum()))
    best = -np.sort(-exact, axis=1)[:, :n]
    assert scores.shape == rows.shape == (queries, n)
    worst = float(np.abs(scores - best).max(initial=0))
    assert worst < 1e-5, f"largest difference of the ranked scores {worst}"
    worst = float(np.abs(scores - np.take_along_axis(exact, rows, axis=1)).max(initial=0))
    assert worst < 1e-5, f"largest difference between a hit's score and its exact one {worst}"
    for row_scores, row_rows in zip(scores.tolist(), rows.tolist(), strict=True):
        assert len(set(row_rows)) == len(row_rows)
        ranked = list(zip([-score for score in row_scores], order[row_rows].tolist(), strict=True))
        assert ranked == sorted(ranked)


@pytest.mark.parametrize("queries", [1, 40])
def test_equal_scores_are_cut_in_the_order_of_ids(index: Index, queries: int) -> None:
    """Of 50 equal vectors the first ids are returned, for one query as for a batch."""
    index.add(np.repeat(unit(1), 50, axis=0), items(50), space=SPACE)
    for hits in index.search(np.repeat(unit(1), queries, axis=0), k=7, space=SPACE):
        assert [hit.id for hit in hits] == list(range(7))


def test_k_above_the_size_gives_every_item(index: Index) -> None:
    """Asking for more hits than there are items is no error."""
    index.add(unit(3), items(3), space=SPACE)
    assert [len(hits) for hits in index.search(unit(2, seed=1), k=1000, space=SPACE)] == [3, 3]


def test_an_empty_index_and_an_empty_batch_give_empty_lists(index: Index) -> None:
    """There is one list a query, empty where nothing is there to find."""
    assert index.search(unit(2), space=SPACE) == [[], []]
    index.add(unit(1), items(1), space=SPACE)
    assert index.search(unit(0), space=SPACE) == []


@pytest.mark.parametrize("k", [0, -1, 1.5, True, "3"])
def test_k_must_be_a_whole_number_from_one(index: Index, k: object) -> None:
    """Any other k is an InputError that shows it."""
    with pytest.raises(InputError, match=re.escape(repr(k))):
        index.search(unit(1), k=k, space=SPACE)  # type: ignore[arg-type]


def test_another_space_is_refused(index: Index) -> None:
    """Neither add nor search takes embeddings of another space; the message says what to do."""
    with pytest.raises(SpaceMismatchError, match=r"\bbundle\b"):
        index.add(unit(1), items(1), space="6" * 64)
    with pytest.raises(SpaceMismatchError):
        index.search(unit(1), space="6" * 64)
    assert len(index) == 0


def bad(what: str) -> object:
    """Make three embeddings, of which the second or all are bad."""
    vectors = unit(3)
    match what:
        case "float64":
            return vectors.astype(np.float64)
        case "list":
            return vectors.tolist()
        case "rank":
            return vectors[0]
        case "dim":
            return vectors[:, :-1].copy()
        case "nan":
            vectors[1, 0] = np.nan
        case "infinite":
            vectors[1, 0] = -np.inf
        case "long":
            vectors[1] *= 1.002
        case "zero":
            vectors[1] = 0
    return vectors


@pytest.mark.parametrize("what", ["float64", "list", "rank", "dim"])
def test_embeddings_of_the_wrong_form_are_refused(index: Index, what: str) -> None:
    """Shape and dtype are named with what was expected; nothing is added."""
    with pytest.raises(EmbeddingError, match=r"\(N, 8\)"):
        index.add(bad(what), items(3), space=SPACE)  # type: ignore[arg-type]
    with pytest.raises(EmbeddingError):
        index.search(bad(what), space=SPACE)  # type: ignore[arg-type]
    assert len(index) == 0


@pytest.mark.parametrize("what", ["nan", "infinite", "long", "zero"])
def test_a_vector_that_is_no_unit_vector_is_refused_with_its_position(index: Index, what: str) -> None:
    """Not finite or more than 1e-3 off length 1: the error names position 1; nothing is added."""
    with pytest.raises(EmbeddingError, match="position 1"):
        index.add(bad(what), items(3), space=SPACE)  # type: ignore[arg-type]
    assert len(index) == 0


def test_a_length_within_the_tolerance_is_taken_as_it_is(index: Index) -> None:
    """Vectors are stored bit by bit, never normalised again."""
    vectors = unit(2) * np.float32(1.0005)
    index.add(vectors, items(2), space=SPACE)
    stored = np.fromfile(index.path / "vectors-1.f32", dtype="<f4", offset=64).reshape(2, DIM)
    assert np.array_equal(stored, vectors)


def test_items_and_embeddings_must_be_as_many(index: Index) -> None:
    """A missing item is an InputError, and nothing is added."""
    with pytest.raises(InputError, match=r"\b3\b"):
        index.add(unit(3), items(2), space=SPACE)
    assert len(index) == 0


@pytest.mark.parametrize(
    "fields",
    [
        {"uri": ""},
        {"uri": "/bad\udcff.jpg"},
        {"kind": "picture"},
        {"caption": 3},
        {"metadata": {1: 2}},
        {"metadata": {"x": float("nan")}},
        {"metadata": {"x": (1, 2)}},
        {"metadata": {"x": object()}},
        {"metadata": {"x": "\udcff"}},
        {"metadata": [1]},
    ],
)
def test_an_item_that_could_not_be_given_back_is_refused(fields: dict[str, object]) -> None:
    """Each field is checked where the item is made."""
    with pytest.raises(InputError):
        Item(**({"uri": "/a.jpg", "kind": ItemKind.IMAGE} | fields))  # type: ignore[arg-type]


def test_the_same_file_is_taken_once(index: Index) -> None:
    """A known kind, uri and hash is skipped and reported, within one call too."""
    anonymous = Item("/a.jpg", ItemKind.IMAGE)
    batch = [*items(2), items(1)[0], anonymous, anonymous, Item("/p0", ItemKind.TEXT, content_hash="p0")]
    assert index.add(unit(6), batch, space=SPACE) == AddReport([0, 1, 2, 3, 4], [2])
    before = (index.path / "vectors-1.f32").read_bytes()
    assert index.add(unit(2), items(2), space=SPACE) == AddReport([], [0, 1])
    assert (index.path / "vectors-1.f32").read_bytes() == before
    assert index.add(unit(3), items(3), space=SPACE) == AddReport([5], [0, 1])
    assert index.search(unit(3)[2:], k=1, space=SPACE)[0][0].id in (2, 5)
    assert index.known_hashes(["p0", "p1", "p9"]) == {"p0", "p1"}
    assert index.known_hashes(["p0", "p1", "p9"], kind=ItemKind.TEXT) == {"p0"}


def test_many_hashes_are_looked_up_in_one_call(index: Index) -> None:
    """More hashes than SQLite takes variables are no trouble."""
    index.add(unit(1200), items(1200), space=SPACE)
    assert index.known_hashes(f"p{i}" for i in range(3000)) == {f"p{i}" for i in range(1200)}
    assert len(index.search(unit(1), k=1200, space=SPACE)[0]) == 1200


def test_adding_nothing_changes_nothing(index: Index) -> None:
    """An empty batch is valid and makes no commit."""
    generation = index.stats().generation
    assert index.add(unit(0), [], space=SPACE) == AddReport([], [])
    assert index.stats().generation == generation


def test_readers_see_what_a_writer_adds(index: Index) -> None:
    """A reader that is open sees later adds at its next call, in search, len and stats."""
    with Index.open(index.path) as reader:
        assert len(reader) == 0
        for number in range(3):
            index.add(unit(1, seed=number), items(1, f"q{number}"), space=SPACE)
            assert len(reader) == number + 1
            assert reader.search(unit(1, seed=number), k=1, space=SPACE)[0][0].uri == f"/q{number}0.jpg"
            assert reader.stats().items == number + 1


def test_opening_takes_few_bytes_an_item(index: Index) -> None:
    """A reader keeps 8 bytes an item, the id of each row, and needs less than 60 to read and check them."""
    count = 50_000
    index.add(unit(count), items(count), space=SPACE)
    tracemalloc.start()
    with Index.open(index.path) as reader:
        kept, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert len(reader) == count
    assert kept < 10 * count
    assert peak < 60 * count


def test_a_reader_cannot_add(index: Index) -> None:
    """The message says how to open for writing."""
    with Index.open(index.path) as reader, pytest.raises(IndexStoreError, match="mode='write'"):
        reader.add(unit(1), items(1), space=SPACE)


def test_there_is_one_writer(index: Index) -> None:
    """A second writer is refused at once; after the first has closed it is let in."""
    with pytest.raises(IndexLockedError, match=str(os.getpid())):
        Index.open(index.path, mode="write")
    index.close()
    Index.open(index.path, mode="write").close()


def test_a_closed_index_says_so(index: Index) -> None:
    """Every method of a closed index raises IndexStoreError; closing twice is fine."""
    index.close()
    index.close()
    for call in (
        lambda: index.add(unit(1), items(1), space=SPACE),
        lambda: index.search(unit(1), space=SPACE),
        lambda: index.known_hashes(["x"]),
        lambda: index.stats(),
        lambda: len(index),
    ):
        with pytest.raises(IndexStoreError, match=r"\bclosed\b"):
            call()


def test_threads_search_while_one_adds(index: Index) -> None:
    """Searches of four threads, in the writer and a reader, see whole adds and the right neighbours."""
    vectors = unit(400)
    failures: list[str] = []
    done = threading.Event()
    index.add(vectors[:10], items(400)[:10], space=SPACE)

    def search(opened: Index) -> None:
        while not done.is_set():
            scores = [[hit.score for hit in hits] for hits in opened.search(vectors[:5], k=3, space=SPACE)]
            if scores != [sorted(row, reverse=True) for row in scores]:
                failures.append("out of order")
            best = [hits[0].id for hits in opened.search(vectors[:5], k=1, space=SPACE)]
            if best != list(range(5)):
                failures.append(f"{best} found")
            if len(opened) % 10:
                failures.append("half an add seen")

    def searching(opened: Index) -> None:
        try:
            search(opened)
        except Exception as error:
            failures.append(repr(error))

    with Index.open(index.path) as reader:
        threads = [threading.Thread(target=searching, args=(opened,)) for opened in (index, index, reader, reader)]
        for thread in threads:
            thread.start()
        for start in range(10, 400, 10):
            index.add(vectors[start : start + 10], items(400)[start : start + 10], space=SPACE)
        done.set()
        for thread in threads:
            thread.join()
    assert not failures, failures[:3]
    assert len(index) == 400


def test_stats_tell_what_is_there(index: Index) -> None:
    """Items by kind, dimension, space and sizes in bytes."""
    index.add(unit(2), [*items(1), Item("x", ItemKind.TEXT)], space=SPACE)
    stats = index.stats()
    assert (stats.items, stats.space, stats.dim, stats.schema_version) == (2, SPACE, DIM, SCHEMA_VERSION)
    assert stats.items_by_kind == {ItemKind.IMAGE: 1, ItemKind.TEXT: 1, ItemKind.AUDIO: 0}
    assert stats.vectors_bytes == 64 + 2 * DIM * 4
    assert stats.catalogue_bytes > 0


@pytest.mark.parametrize(("space", "dim"), [("", 8), (" ", 8), ("s", 0), ("s", True), ("s", 2.0), (None, 8)])
def test_an_index_needs_a_space_and_a_dimension(tmp_path: Path, space: str, dim: int) -> None:
    """Anything else is an InputError, and no folder appears."""
    with pytest.raises(InputError):
        Index.create(tmp_path / "index", space=space, dim=dim)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_mode_is_refused(index: Index) -> None:
    """There is no third way to open an index."""
    with pytest.raises(InputError, match="mode"):
        Index.open(index.path, mode="r")  # type: ignore[arg-type]


def test_without_faiss_the_error_names_the_extra(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    """Searching needs FAISS; where it is missing the message says how to get it. Adding does not."""
    monkeypatch.setitem(sys.modules, "faiss", None)
    index.add(unit(1), items(1), space=SPACE)
    with pytest.raises(MissingDependencyError) as caught:
        index.search(unit(1), space=SPACE)
    assert (caught.value.package, caught.value.extra) == ("faiss-cpu", "cpu")
