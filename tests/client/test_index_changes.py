"""What remove, update and compact leave behind, and what get, find, vectors and words give back."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from support.arrays import random_vectors
from twinspire.errors import EmbeddingError, IndexStoreError, InputError, SpaceMismatchError
from twinspire.index import Index, Item, ItemKind, VectorType, state
from twinspire.stores.filters.filter import Filter
from twinspire.stores.text_query import TextQuery

SPACE = "5" * 64
DIM = 16
unit = partial(random_vectors, dim=DIM)


def items(count: int) -> list[Item]:
    """Make images with distinct content, every third a text."""
    kinds = [ItemKind.TEXT if n % 3 == 0 else ItemKind.IMAGE for n in range(count)]
    return [Item(f"/p/{n}.jpg", kinds[n], f"no {n}", {"n": n}, content_hash=f"h{n}") for n in range(count)]


@pytest.fixture
def index(tmp_path: Path) -> Index:
    """Make an index of 30 items, open for writing."""
    index = Index.create(tmp_path / "index", space=SPACE, dim=DIM)
    index.add(unit(30), items(30), space=SPACE)
    return index


def ranked(index: Index, query: NDArray[np.float32]) -> list[int]:
    """Return the ids of all items, best first."""
    return [hit.id for hit in index.search(query, k=1000, space=SPACE)[0]]


def expected(vectors: dict[int, NDArray[np.float32]], query: NDArray[np.float32]) -> list[int]:
    """Rank by numpy."""
    return sorted(vectors, key=lambda number: -float(query[0].astype(np.float64) @ vectors[number]))


def test_changes_are_what_readers_search_before_and_after_compaction(index: Index) -> None:
    """Removed items are gone, a replaced vector counts, ids stay; readers follow the new file."""
    query, there = unit(1, 5), dict(enumerate(unit(30)))
    with Index.open(index.path) as reader:
        assert ranked(reader, query) == expected(there, query)
        assert index.remove([3, 4, 5, 3, 99]) == 3
        there = {number: vector for number, vector in there.items() if number not in (3, 4, 5)}
        assert index.add(unit(1, 6), [Item("/new.jpg", ItemKind.IMAGE)], space=SPACE).added == [30]
        there[30] = unit(1, 6)[0]
        there[10] = unit(1, 7)[0]
        index.update(10, embedding=there[10], space=SPACE, caption="changed")
        for _ in range(2):
            for opened in (index, reader):
                assert ranked(opened, query) == expected(there, query)
                assert np.array_equal(opened.vectors([30, 10, 0]), np.stack([there[n] for n in (30, 10, 0)]))
                assert len(opened) == 28
                assert opened.get([10])[0].caption == "changed"
            generation = index.generation
            report = index.compact()
            assert report.dropped_rows == (4 if generation == 4 else 0)
        assert [file.name for file in index.path.glob("vectors-*")] == ["vectors-2.f32"]
        assert index.remove([30]) == 1
        assert index.add(unit(1, 8), [Item("/newer.jpg", ItemKind.IMAGE)], space=SPACE).added == [31]


def test_an_unknown_id_is_named(index: Index) -> None:
    """Get, vectors and update name it."""
    for call in (lambda: index.get([1, 77]), lambda: index.vectors([77]), lambda: index.update(77, caption="x")):
        with pytest.raises(InputError, match=r"\b77\b"):
            call()


def test_what_is_no_item_is_refused(index: Index) -> None:
    """A str in place of an item is named with its position, and nothing is added."""
    with pytest.raises(InputError, match="position 1"):
        index.add(unit(2), [Item("/a", ItemKind.IMAGE), "b.jpg"], space=SPACE)  # type: ignore[list-item]
    assert len(index) == 30


def test_what_is_no_filter_is_refused(index: Index) -> None:
    """Anything but a `Filter`, its text, a kind or its name is an InputError, and so are ids that are none."""
    for call in (
        lambda: index.search(unit(1), space=SPACE, where=3),  # type: ignore[arg-type]
        lambda: index.search_text(TextQuery.any_of("no"), where=["n = 1"]),  # type: ignore[arg-type]
        lambda: index.count(where="n ="),
        lambda: index.matching([1], None),  # type: ignore[arg-type]
        lambda: index.remove_where(None),  # type: ignore[arg-type]
        lambda: index.remove_where(""),
    ):
        with pytest.raises(InputError, match="filter"):
            call()
    with pytest.raises(InputError, match="kind"):
        index.search(unit(1), space=SPACE, kind="picture")
    for ids in ("12", [1.5], [True], [-1], 5, [2**63]):
        with pytest.raises(InputError, match=r"\bids?\b"):
            index.get(ids)  # type: ignore[arg-type]
    assert len(index) == 30


def test_an_update_that_cannot_be_is_refused(index: Index) -> None:
    """Another's uri and content, a vector without its space, of another space or length, and what no item may have."""
    before = index.get([3])
    with pytest.raises(InputError, match="item 4"):
        index.update(2, uri="/p/4.jpg", content_hash="h4")
    for change, error, word in (
        ({"embedding": unit(1)[0]}, InputError, "space"),
        ({"embedding": unit(1)[0], "space": "6" * 64}, SpaceMismatchError, "bundle"),
        ({"embedding": unit(1)[0] * 2, "space": SPACE}, EmbeddingError, "length 2"),
        ({"embedding": unit(2), "space": SPACE}, InputError, r"\b2\b"),
        ({"uri": ""}, InputError, "uri"),
        ({"metadata": {"x": float("nan")}}, InputError, "JSON"),
    ):
        with pytest.raises(error, match=word):
            index.update(3, **change)  # type: ignore[arg-type]
    assert index.get([3]) == before
    assert index.update(3, content_hash="h4").content_hash == "h4"  # of another uri
    assert index.update(3, caption=None, uri="/new").caption is None
    assert index.get([3])[0].changed_at > before[0].changed_at
    assert index.get([3])[0].added_at == before[0].added_at


def test_find_takes_one_thing(index: Index) -> None:
    """None or two are refused."""
    for given in ({}, {"uri": "/a", "under": "/b"}):
        with pytest.raises(InputError, match="content_hash"):
            index.find(**given)


def test_a_kind_alone_is_found(index: Index) -> None:
    """Only items of the kind are hits, the right ones."""
    query = unit(1, 5)
    there = {n: vector for n, vector in enumerate(unit(30)) if n % 3 == 0}
    hits = index.search(query, k=1000, space=SPACE, kind=ItemKind.TEXT)[0]
    assert [hit.id for hit in hits] == expected(there, query)
    assert {hit.kind for hit in hits} == {ItemKind.TEXT}


def test_words_find_captions_and_file_names(index: Index) -> None:
    """The words follow add, update and remove."""
    assert [hit.id for hit in index.search_text(TextQuery.all_of("no 17"))] == [17]
    index.update(17, caption="红色的车")
    assert [hit.id for hit in index.search_text(TextQuery.all_of("红色 17"))] == [17]
    assert index.search_text(TextQuery.all_of("no 17")) == []
    index.remove([17])
    assert index.search_text(TextQuery.all_of("红色")) == []
    with pytest.raises(InputError, match="TextQuery"):
        index.search_text("no")  # type: ignore[arg-type]


def test_find_takes_a_uri_a_hash_or_a_folder(index: Index) -> None:
    """Each finds the items that have it."""
    assert [item.id for item in index.find(uri="/p/7.jpg")] == [7]
    assert [item.id for item in index.find(content_hash="h7")] == [7]
    assert [item.id for item in index.find(under="/p")] == list(range(30))
    assert index.find(under="/p/7") == []


def test_float16_vectors_are_searched_as_they_are_stored(tmp_path: Path) -> None:
    """Scores are those of the rounded vectors."""
    with Index.create(tmp_path / "half", space=SPACE, dim=DIM, dtype=VectorType.FLOAT16) as index:
        index.add(unit(30), items(30), space=SPACE)
        rounded = unit(30).astype(np.float16).astype(np.float32)
        assert np.array_equal(index.vectors(range(30)), rounded)
        query = unit(1, 5)
        hits = index.search(query, k=30, space=SPACE)[0]
        assert [hit.id for hit in hits] == expected(dict(enumerate(rounded)), query)


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("n >= 3", lambda n: n >= 3),
        ("n = 500", lambda n: n == 500),
        ("n < 0", lambda n: False),
        ("n != 7 and kind = 'image'", lambda n: n != 7 and n % 3 != 0),
    ],
)
@pytest.mark.parametrize("queries", [1, 9])
def test_a_filter_finds_the_best_of_what_it_keeps(
    tmp_path: Path, text: str, kept: Callable[[int], bool], queries: int
) -> None:
    """From all but three of a thousand to none: the hits are those of numpy over the kept, dead rows or not."""
    vectors, asked = unit(1000), unit(queries, 5)
    with Index.create(tmp_path / "index", space=SPACE, dim=DIM) as index:
        index.add(vectors, items(1000), space=SPACE)
        gone: set[int] = set()
        for _ in range(2):
            there = {n: vectors[n] for n in range(1000) if kept(n) and n not in gone}
            found = index.search(asked, k=10, space=SPACE, where=Filter.parse(text))
            assert [[hit.id for hit in hits] for hits in found] == [
                expected(there, query[None])[:10] for query in asked
            ]
            assert index.matching(range(1000), Filter.parse(text)) == set(there)
            words = index.search_text(TextQuery.any_of("jpg no"), k=2000, where=Filter.parse(text))
            assert {hit.id for hit in words} == set(there)
            assert index.count(where=Filter.parse(text)) == len(there)
            gone = set(range(0, 1000, 7))
            index.remove(gone)


def test_a_filter_removes_what_it_keeps(index: Index) -> None:
    """And nothing else."""
    assert index.remove_where(Filter.parse("n < 10")) == 10
    assert index.remove_where(Filter.parse("n < 10")) == 0
    assert [item.id for item in index.find(under="/p")] == list(range(10, 30))


def test_any_order_of_changes_is_what_a_dict_would_hold(tmp_path: Path) -> None:
    """Drawn orders of add, remove, update, compact: writer, reader and the index opened anew agree with a dict."""
    for seed in range(15):
        chance = random.Random(seed)
        dtype = chance.choice(list(VectorType))
        there: dict[int, tuple[str, NDArray[np.float32]]] = {}
        given = 0
        path = tmp_path / str(seed)
        with Index.create(path, space=SPACE, dim=DIM, dtype=dtype) as index, Index.open(path) as reader:
            for step in range(12):
                vectors = unit(5, 100 * seed + step).astype(dtype.numpy).astype(np.float32)
                match chance.choice(["add", "add", "remove", "vector", "caption", "compact"]):
                    case "add":
                        new = [Item(f"/{step}-{n}", ItemKind.IMAGE, f"c{step}") for n in range(5)]
                        added = index.add(unit(5, 100 * seed + step), new, space=SPACE).added
                        assert added == list(range(given, given + 5))
                        there |= {n: (f"c{step}", vector) for n, vector in zip(added, vectors, strict=True)}
                        given += 5
                    case "remove":
                        gone = chance.sample(range(given + 1), min(given, 4))
                        assert index.remove(gone) == len(there.keys() & set(gone))
                        there = {n: held for n, held in there.items() if n not in gone}
                    case "vector" if there:
                        n = chance.choice(list(there))
                        index.update(n, embedding=unit(5, 100 * seed + step)[0], space=SPACE)
                        there[n] = (there[n][0], vectors[0])
                    case "caption" if there:
                        n = chance.choice(list(there))
                        there[n] = (f"d{step}", there[n][1])
                        assert index.update(n, caption=f"d{step}").caption == f"d{step}"
                    case "compact":
                        index.compact()
                if chance.random() < 0.7:
                    agrees(chance.choice([index, reader]), there)
            agrees(index, there)
            agrees(reader, there)
            assert index.verify().problems == []
        with Index.open(path) as again:
            agrees(again, there)


def agrees(index: Index, there: dict[int, tuple[str, NDArray[np.float32]]]) -> None:
    """Check that an index holds these captions and vectors and ranks them as numpy does."""
    assert len(index) == len(there)
    stored = index.get(sorted(there))
    assert [(item.id, item.caption) for item in stored] == [(n, there[n][0]) for n in sorted(there)]
    if there:
        assert np.array_equal(index.vectors(sorted(there)), np.stack([there[n][1] for n in sorted(there)]))
    query = unit(1, 5)
    assert ranked(index, query) == expected({n: held[1] for n, held in there.items()}, query)


def test_threads_search_while_one_changes_and_compacts(index: Index) -> None:
    """Each answer is of one state: of 20 items updated in turn, the first ones are one update ahead of the rest."""
    path, done, failures = index.path, threading.Event(), list[str]()
    index.remove_where(Filter.parse("n >= 20"))
    for n in range(20):
        index.update(n, metadata={"age": 0})

    def search(opened: Index) -> None:
        answers = 0
        while not done.is_set():
            hits = opened.search(unit(1, 5), k=50, space=SPACE)[0]
            ages = [hit.metadata.get("age", 0) for hit in sorted(hits, key=lambda hit: hit.id)]
            if len(ages) != 20 or ages != sorted(ages, reverse=True) or ages[0] - ages[-1] > 1:
                failures.append(f"ages {ages}")
            if {item.uri for item in opened.get([hit.id for hit in hits[:3]])} != {hit.uri for hit in hits[:3]}:
                failures.append("get differs")
            answers += 1
        if answers < 5:
            failures.append(f"{answers} answers")

    def searching(opened: Index) -> None:
        try:
            search(opened)
        except Exception as error:
            failures.append(repr(error))

    with Index.open(path) as reader:
        threads = [threading.Thread(target=searching, args=(opened,)) for opened in (index, reader)]
        for thread in threads:
            thread.start()
        for age in range(1, 9):
            for n in range(20):
                index.update(n, metadata={"age": age}, embedding=unit(1, 1000 * age + n)[0], space=SPACE)
            index.compact()
        done.set()
        for thread in threads:
            thread.join()
    assert not failures, failures[:3]


def test_a_number_and_a_truth_are_two_filters(index: Index) -> None:
    """Filters that differ in the type of a literal alone are not taken for each other."""
    vector = unit(1, 9)
    index.add(vector, [Item("/true", ItemKind.IMAGE, metadata={"flag": True})], space=SPACE)
    index.add(vector, [Item("/one", ItemKind.IMAGE, metadata={"flag": 1})], space=SPACE)
    for text, uri in (("flag = 1", "/one"), ("flag = true", "/true"), ("flag = 1.0", "/one")):
        assert [hit.uri for hit in index.search(vector, space=SPACE, where=Filter.parse(text))[0]] == [uri]


def test_a_reader_overtaken_by_a_compaction_follows(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the vector file it is about to open is replaced and removed, it takes the next; a lost one is an error."""
    real = state.VectorFile

    def late(*arguments: Any) -> Any:
        monkeypatch.setattr(state, "VectorFile", real)
        index.remove([2])
        index.compact()
        return real(*arguments)

    with Index.open(index.path) as reader:
        index.remove([1])
        index.compact()
        monkeypatch.setattr(state, "VectorFile", late)
        assert len(reader) == 28
        assert [file.name for file in index.path.glob("vectors-*")] == ["vectors-3.f32"]
        index.remove([3])
        index.compact()
        (index.path / "vectors-4.f32").unlink()
        with pytest.raises(IndexStoreError, match=r"vectors-4\.f32"):
            len(reader)
