"""What every vector store has to do: the tests that a store passes to be one.

A test module subclasses `StoreConformance` and gives the fixture `make`, which makes empty stores of `SPACE` and `DIM`,
open for writing, that `open_index` opens again by their `uri`; `make(3)` makes one of three vectors an item.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from stores.filter_evaluation import keeps
from twinspire import open_index
from twinspire.errors import EmbeddingError, IndexStoreError, InputError, SpaceMismatchError
from twinspire.stores import BundleReference, Filter, Item, ItemKind, TextQuery, VectorStore

SPACE = "5" * 64
DIM = 8


def unit(count: int, seed: int = 0) -> NDArray[np.float32]:
    """Return random unit vectors, (count, DIM)."""
    rows = np.random.default_rng(seed).normal(size=(count, DIM))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def ids(items: Any) -> list[int]:
    """Return the ids of items or hits."""
    return [item.id for item in items]


CAPTIONS = ["a red car", "two cars in the snow", "红色的汽车", "雪地里的自行车", "the Zor-Blatt", None]
QUERIES = [
    (TextQuery.any_of("car"), {0}),
    (TextQuery.any_of("red snow"), {0, 1}),
    (TextQuery.all_of("red snow"), set()),
    (TextQuery.all_of("a red"), {0}),
    (TextQuery.any_of("汽车"), {2}),
    (TextQuery.any_of("车"), {2, 3}),
    (TextQuery.any_of("photo5"), {5}),
    (TextQuery(should=((("car",), ("cars",)),)), {0, 1}),
    (TextQuery(must=((("car",), ("cars",)), (("snow",),))), {1}),
    (TextQuery(phrases=(("red", "car"),)), {0}),
    (TextQuery(phrases=(("car", "red"),)), set()),
    (TextQuery(phrases=(("zor", "blatt"),), should=((("snow",),),)), {4}),
    (TextQuery(phrases=(("in", "the"),), must=((("snow",), ("red",)),)), {1}),
    (TextQuery.any_of("OR AND NOT * ^"), set()),
    (TextQuery(), set()),
]

# ----------------------------------------------------------------------------- random items and filters

_TEXTS = ["x", "X1", "Sea", "sea%", "红色", "2020", "it's", "", "a_b", "2024-05-01", "2024-05-01T08:00:00.250Z", "now"]
_NUMBERS = [0, 1, -1, 2, 2020, 2020.5, 2**53 + 1, 10**20, 10**20 + 1, 1e300, 1714521600, 1714550400.25]
_TIMES = ["2024-05-01", "2024-05-01T08:00:00.250Z", "2024-05-01T10:00+02:00", "2023-01-01 00:00"]
_KEYS = ["year", "tags", "modified", "shot date"]


def random_metadata(random: np.random.Generator) -> dict[str, Any]:
    """Return metadata with values of all JSON types."""

    def value(depth: int) -> Any:
        choice = random.integers(0, 7 if depth else 5)
        if choice == 5:
            return [value(depth - 1) for _ in range(random.integers(0, 3))]
        if choice == 6:
            return {str(key): value(depth - 1) for key in random.choice(_KEYS, 2)}
        return [
            str(random.choice(_TEXTS)),
            _NUMBERS[random.integers(len(_NUMBERS))],
            bool(random.integers(2)),
            None,
            str(random.choice(_TIMES)),
        ][choice]

    return {key: value(2) for key in _KEYS if random.random() < 0.8}


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


@st.composite
def _tests(draw: st.DrawFn) -> str:
    """Return a condition on one field."""
    number = st.sampled_from(_NUMBERS).map(repr)
    text = st.sampled_from(_TEXTS).map(_quoted)
    order, equal = st.sampled_from(["=", "!=", "<", "<=", ">", ">="]), st.sampled_from(["=", "!=", "==", "<>"])
    field = draw(st.sampled_from(["year", "tags", "tags.year", "modified", "`shot date`", "caption", "uri", "kind"]))
    if field == "kind":
        return f"kind {draw(equal)} {draw(st.sampled_from(['image', 'text']).map(_quoted))}"
    literal = text if field in ("caption", "uri") else st.one_of(number, text, st.sampled_from(_TIMES))
    if field == "modified":
        literal = st.one_of(st.sampled_from(["1714550400.25", "1714521600"]), st.sampled_from(_TIMES).map(_quoted))
    negated = draw(st.sampled_from(["", "not "]))
    match draw(st.sampled_from(["order", "in", "like", "contains", "null", "exists", "boolean"])):
        case "order":
            return f"{field} {draw(order)} {draw(literal)}"
        case "in":
            kinds = literal if field in ("caption", "uri", "modified") else st.one_of(number, text)
            return f"{field} {negated}in ({', '.join(draw(st.lists(kinds, min_size=1, max_size=4)))})"
        case "like":
            return f"{field} {negated}like {draw(st.sampled_from(['%S%', 's__', '%', '_', '2020', '%%']).map(_quoted))}"
        case "contains":
            return f"{field} {negated}contains {draw(text)}"
        case "boolean" if field not in ("caption", "uri"):
            return f"{field} {draw(equal)} {draw(st.sampled_from(['true', 'FALSE']))}"
        case "null":
            return f"{field} is {negated}null"
        case _:
            return f"{field} exists"


_FILTERS = st.recursive(
    _tests(),
    lambda inner: st.one_of(
        inner.map(lambda part: f"not ({part})"),
        st.tuples(inner, st.sampled_from(["and", "or"]), inner).map(lambda parts: f"({' '.join(parts)})"),
    ),
    max_leaves=6,
)


class StoreConformance:
    """The tests; each store has a subclass."""

    @pytest.fixture
    def make(self) -> Callable[..., VectorStore]:
        """Make an empty store, open for writing; another one with each call. Its argument is `vectors_per_item`."""
        raise NotImplementedError

    @pytest.fixture
    def store(self, make: Callable[[], VectorStore]) -> VectorStore:
        """Give a store of 30 items: every third a text, uris /p/N.jpg, captions, hashes and metadata by number."""
        store = make()
        items = [
            Item(f"/p/{n}.jpg", "text" if n % 3 == 0 else "image", f"no {n}", {"n": n, "even": n % 2 == 0}, f"h{n}")
            for n in range(30)
        ]
        assert store.add(unit(30), items, space=SPACE).added == list(range(30))
        return store

    # ------------------------------------------------------------------------------------------- several vectors

    def test_an_item_may_have_several_vectors(self, make: Callable[..., VectorStore]) -> None:
        """The best of them scores, also of a query with several; a text has one, and an update replaces all."""
        store = make(3)
        assert (store.vectors_per_item, make().vectors_per_item) == (3, 1)
        vectors = unit(60).reshape(20, 3, DIM)
        store.add(vectors, [Item(f"/p/{n}.jpg", "image", metadata={"n": n}) for n in range(20)], space=SPACE)
        (text,) = store.add(unit(1, 5), [Item("/t", "text", "a text")], space=SPACE).added
        store.update(7, embedding=unit(3, 6), space=SPACE)
        vectors[7] = unit(3, 6)
        assert np.array_equal(store.vectors([7, 2]), vectors[[7, 2]])
        stored = np.concatenate([vectors, np.repeat(unit(1, 5)[None], 3, axis=1)])
        for queries in (unit(4, 8), unit(12, 9).reshape(4, 3, DIM)):
            pairs = queries.reshape(4, -1, DIM)
            scores = np.einsum("mpd,nqd->mnpq", pairs, stored).max(axis=(2, 3))
            scores[:, 3] = -np.inf
            found = store.search(queries, k=5, space=SPACE, where="n <> 3 or n is null")
            assert [ids(hits) for hits in found] == np.argsort(-scores, axis=1)[:, :5].tolist()
            assert (
                np.abs([[hit.score for hit in hits] for hits in found] - -np.sort(-scores, axis=1)[:, :5]).max() < 1e-6
            )
        assert ids(store.search(unit(1, 5), k=1, space=SPACE)[0]) == [text]
        for wrong in (unit(2), vectors[:2, :2], vectors[:2] * 2):  # one vector an image, too few, too long
            with pytest.raises(EmbeddingError):
                store.add(wrong, [Item("/a", "image"), Item("/b", "image")], space=SPACE)
        with open_index(store.uri) as reader:
            assert reader.vectors_per_item == 3
            assert np.array_equal(reader.vectors([7]), vectors[[7]])

    # ------------------------------------------------------------------------------------------- the interface

    def test_it_is_a_vector_store(self, store: VectorStore) -> None:
        """It has every member of the protocol."""
        assert isinstance(store, VectorStore)
        assert (store.space, store.dim) == (SPACE, DIM)

    def test_its_uri_opens_it_again(self, store: VectorStore) -> None:
        """`open_index` gives what was committed; opened to read, it refuses every change."""
        with open_index(store.uri) as reader:
            assert reader.uri == store.uri
            assert ids(reader.items()) == list(range(30))
            assert np.array_equal(reader.vectors(range(30)), unit(30))
            changes: list[Callable[[], object]] = [
                lambda: reader.add(unit(1), [Item("/new", "image")], space=SPACE),
                lambda: reader.update(0, caption="new"),
                lambda: reader.remove([0]),
                lambda: reader.remove_where("n = 0"),
                lambda: reader.set_bundle(BundleReference("b")),
            ]
            for change in changes:
                with pytest.raises(IndexStoreError):
                    change()
            assert len(reader) == 30

    def test_a_reader_sees_later_changes(self, store: VectorStore) -> None:
        """At its next call, with the generation."""
        with open_index(store.uri) as reader:
            before = reader.generation
            store.remove([3])
            assert len(reader) == 29
            assert reader.generation == store.generation > before

    def test_a_closed_store_answers_no_more(self, store: VectorStore) -> None:
        """Every method raises IndexStoreError after `close`, which may be called twice."""
        with store as same:
            assert same is store
        store.close()
        calls: list[Callable[[], object]] = [
            lambda: len(store),
            lambda: store.generation,
            lambda: store.bundle,
            lambda: store.add(unit(1), [Item("/a", "image")], space=SPACE),
            lambda: store.remove([1]),
            lambda: store.get([1]),
            lambda: store.vectors([1]),
            lambda: store.find(uri="/p/1.jpg"),
            lambda: store.known_hashes(["h1"]),
            lambda: list(store.items()),
            lambda: store.count(),
            lambda: store.matching([1], "n = 1"),
            lambda: store.explain_filter("n = 1"),
            lambda: store.search(unit(1), space=SPACE),
            lambda: store.search_text(TextQuery.any_of("no")),
            lambda: store.count_text(TextQuery.any_of("no"), at_most=1),
        ]
        for call in calls:
            with pytest.raises(IndexStoreError):
                call()

    def test_the_generation_grows_with_every_change(self, store: VectorStore) -> None:
        """Equal generations mean equal content; a call that changes nothing leaves it as it is."""
        seen = [store.generation]
        for change in (
            lambda: store.add(unit(1), [Item("/new", "image")], space=SPACE),
            lambda: store.update(0, caption="new"),
            lambda: store.remove([1]),
            lambda: store.remove_where("n = 2"),
        ):
            change()
            seen.append(store.generation)
        assert seen == sorted(set(seen))
        store.add(unit(1), [Item("/p/5.jpg", "image", content_hash="h5")], space=SPACE)
        store.remove([1, 99])
        list(store.items())
        assert store.generation == seen[-1]

    def test_it_records_a_bundle(self, store: VectorStore) -> None:
        """None at first, then what was set; anything but a reference is refused."""
        assert store.bundle is None
        store.set_bundle(BundleReference("clip", "/b"))
        assert store.bundle == BundleReference("clip", "/b")
        with pytest.raises(InputError):
            store.set_bundle("clip")  # type: ignore[arg-type]

    # ------------------------------------------------------------------------------------------- changes

    def test_items_come_back_as_they_were_added(self, make: Callable[[], VectorStore]) -> None:
        """All fields, with an id and the time."""
        store = make()
        metadata = {"a": [1, 2.5, None, True, "é红"], "b": {"c": {}}, "n": 2**70}
        store.add(unit(1), [Item("/a b/ü.jpg", ItemKind.IMAGE, "a cat", metadata, "h")], space=SPACE)
        (item,) = store.get([0])
        assert (item.uri, item.kind, item.caption) == ("/a b/ü.jpg", ItemKind.IMAGE, "a cat")
        assert (item.metadata, item.content_hash) == (metadata, "h")
        assert item.added_at == item.changed_at > 1.7e9
        assert np.array_equal(store.vectors([0]), unit(1))

    def test_known_content_is_skipped(self, store: VectorStore) -> None:
        """Kind, uri and content hash decide, also within a call; without a hash an item is always added."""
        items = [
            Item("/p/1.jpg", "image", content_hash="h1"),
            Item("/p/1.jpg", "text", content_hash="h1"),
            Item("/p/1.jpg", "image", content_hash="other"),
            Item("/q", "image", content_hash="h1"),
            Item("/q", "image", content_hash="h1"),
            Item("/p/1.jpg", "image"),
            Item("/p/1.jpg", "image"),
        ]
        report = store.add(unit(7), items, space=SPACE)
        assert report.skipped == [0, 4]
        assert report.added == [30, 31, 32, 33, 34]
        assert np.array_equal(store.vectors(report.added), unit(7)[[1, 2, 3, 5, 6]])

    @pytest.mark.parametrize(
        ("embeddings", "items", "space", "error"),
        [
            (unit(2), [Item("/a", "image")], SPACE, InputError),
            (unit(1), ["/a"], SPACE, InputError),
            (unit(1), Item("/a", "image"), SPACE, InputError),
            (unit(1) * 2, [Item("/a", "image")], SPACE, EmbeddingError),
            (unit(1)[:, :-1], [Item("/a", "image")], SPACE, EmbeddingError),
            (unit(1).astype(np.float64), [Item("/a", "image")], SPACE, EmbeddingError),
            (unit(1), [Item("/a", "image")], "6" * 64, SpaceMismatchError),
        ],
    )
    def test_what_cannot_be_added_is_refused(
        self, store: VectorStore, embeddings: Any, items: Any, space: str, error: type[Exception]
    ) -> None:
        """And nothing of it is added."""
        with pytest.raises(error):
            store.add(embeddings, items, space=space)
        assert len(store) == 30

    def test_an_update_changes_what_is_given(self, store: VectorStore) -> None:
        """The rest stays, and so does the id; the new vector is found."""
        before = store.get([4])[0]
        after = store.update(
            4, embedding=unit(1, 9)[0], space=SPACE, uri="/new", caption=None, metadata={"n": -1}, content_hash="x"
        )
        assert store.get([4]) == [after]
        assert (after.uri, after.caption, after.metadata, after.content_hash) == ("/new", None, {"n": -1}, "x")
        assert (after.id, after.kind, after.added_at) == (4, before.kind, before.added_at)
        assert after.changed_at > before.changed_at
        assert ids(store.search(unit(1, 9), k=1, space=SPACE)[0]) == [4]
        assert store.update(5, caption="other").metadata == {"n": 5, "even": False}
        assert np.array_equal(store.vectors([5]), unit(30)[[5]])

    @pytest.mark.parametrize(
        ("number", "changes", "error"),
        [
            (99, {"caption": "x"}, InputError),
            (1, {"uri": ""}, InputError),
            (1, {"metadata": {"x": float("nan")}}, InputError),
            (1, {"uri": "/p/4.jpg", "content_hash": "h4"}, InputError),
            (1, {"embedding": unit(1)[0]}, InputError),
            (1, {"embedding": unit(2), "space": SPACE}, InputError),
            (1, {"embedding": unit(1)[0] * 2, "space": SPACE}, EmbeddingError),
            (1, {"embedding": unit(1)[0], "space": "6" * 64}, SpaceMismatchError),
        ],
    )
    def test_an_update_that_cannot_be_is_refused(
        self, store: VectorStore, number: int, changes: dict[str, Any], error: type[Exception]
    ) -> None:
        """And the item stays as it was."""
        before = store.get([1])
        with pytest.raises(error):
            store.update(number, **changes)
        assert store.get([1]) == before

    def test_removed_items_are_gone(self, store: VectorStore) -> None:
        """From every answer; unknown ids and repeated ones count once."""
        assert store.remove([1, 2, 2, 99]) == 2
        assert len(store) == store.count() == 28
        assert store.find(uri="/p/1.jpg") == []
        assert store.known_hashes(["h1", "h4"]) == {"h4"}
        assert {1, 2}.isdisjoint(ids(store.search(unit(1), k=30, space=SPACE)[0]))
        assert store.search_text(TextQuery.all_of("no 1")) == []
        with pytest.raises(InputError):
            store.get([1])

    def test_ids_are_never_reused(self, store: VectorStore) -> None:
        """Not even the last one."""
        store.remove([29])
        assert store.add(unit(1), [Item("/p/29.jpg", "image", content_hash="h29")], space=SPACE).added == [30]

    def test_a_filter_removes_what_it_keeps(self, store: VectorStore) -> None:
        """And nothing else; no filter is no way to remove everything."""
        assert store.remove_where("n >= 10 and even = true") == 10
        assert sorted(ids(store.items())) == [n for n in range(30) if n < 10 or n % 2]
        with pytest.raises(InputError):
            store.remove_where(None)  # type: ignore[arg-type]

    # ------------------------------------------------------------------------------------------- items

    def test_items_are_given_in_the_order_that_was_asked_for(self, store: VectorStore) -> None:
        """`get` and `vectors` repeat what is repeated, and refuse unknown ids."""
        assert ids(store.get([7, 3, 7])) == [7, 3, 7]
        assert np.array_equal(store.vectors([7, 3, 7]), unit(30)[[7, 3, 7]])
        assert store.get([]) == []
        assert store.vectors([]).shape == (0, DIM)
        for call in (store.get, store.vectors):
            for bad in ([99], [-1], [1.5], ["1"], 3, "12"):
                with pytest.raises(InputError):
                    call(bad)  # type: ignore[arg-type]

    def test_items_are_found_by_uri_hash_and_folder(self, store: VectorStore) -> None:
        """By exactly one of them."""
        store.add(unit(2), [Item("/p", "image"), Item("/p/1.jpg", "image", content_hash="h2")], space=SPACE)
        assert ids(store.find(uri="/p/1.jpg")) == [1, 31]
        assert ids(store.find(content_hash="h2")) == [2, 31]
        assert ids(store.find(under="/p")) == [*range(30), 31]
        assert store.find(under="/p/1") == store.find(uri="\udcff") == []
        for given_ in ({}, {"uri": "/a", "under": "/b"}, {"uri": 3}):
            with pytest.raises(InputError):
                store.find(**given_)  # type: ignore[arg-type]

    def test_known_hashes_are_those_of_a_kind(self, store: VectorStore) -> None:
        """Of images by default."""
        assert store.known_hashes(["h0", "h1", "x"]) == {"h1"}
        assert store.known_hashes(["h0", "h1", "x"], kind="text") == {"h0"}

    def test_iteration_is_of_one_state(self, store: VectorStore) -> None:
        """In the order of ids, filtered, without what changes meanwhile."""
        assert ids(store.items(kind="text", where="n < 9")) == [0, 3, 6]
        running = store.items(batch=2)
        assert next(running).id == 0
        store.remove(range(30))
        store.add(unit(1), [Item("/new", "image")], space=SPACE)
        assert ids(running) == list(range(1, 30))
        assert ids(store.items()) == [30]
        for bad in ({"batch": 0}, {"kind": "video"}, {"where": "n ="}, {"where": 3}):
            with pytest.raises(InputError):
                store.items(**bad)  # type: ignore[arg-type]

    def test_items_are_counted(self, store: VectorStore) -> None:
        """All, of a kind, and those that a filter keeps."""
        assert store.count() == 30
        assert store.count(kind="text") == 10
        assert store.count(where=Filter.parse("n < 9")) == 9
        assert store.count(kind=ItemKind.IMAGE, where="n < 9") == 6

    # ------------------------------------------------------------------------------------------- filters

    def test_a_filter_keeps_the_same_everywhere(self, store: VectorStore) -> None:
        """In `items`, `count`, `matching`, `search` and `search_text`; combined filters too."""
        where = Filter.all_of(Filter.parse("n >= 5 or n = 1"), Filter.parse("even = false"))
        kept = [n for n in range(30) if (n >= 5 or n == 1) and n % 2]
        assert ids(store.items(where=where)) == kept
        assert store.count(where=where) == len(kept)
        assert store.matching([*range(30), 99], where) == set(kept)
        assert sorted(ids(store.search(unit(1), k=30, space=SPACE, where=where)[0])) == kept
        assert sorted(ids(store.search_text(TextQuery.any_of("no"), k=30, where=where))) == kept

    def test_filters_mean_what_an_evaluator_says(self, make: Callable[[], VectorStore]) -> None:
        """Random filters over metadata of all types keep the items of which Kleene's logic says true."""
        store = make()
        random = np.random.default_rng(5)
        items = [
            Item(f"/{random.choice(_TEXTS)}{n}", "text" if n % 3 else "image", None, random_metadata(random))
            for n in range(60)
        ]
        items += [Item(f"/c{n}", "image", str(random.choice(_TEXTS)) or None) for n in range(20)]
        store.add(unit(80), items, space=SPACE)
        stored = list(store.items())
        found = set()

        @settings(max_examples=200, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(text=_FILTERS)
        def check(text: str) -> None:
            where = Filter.parse(text)
            expected = [item.id for item in stored if keeps(where.condition, item) is True]
            assert ids(store.items(where=where)) == expected
            found.add(len(expected))

        check()
        assert len(found) > 10  # the filters were not all of one kind

    def test_times_of_items_are_filtered_by_date(self, store: VectorStore) -> None:
        """`added_at` compares with ISO 8601 and with seconds."""
        at = store.get([0])[0].added_at
        assert store.count(where="added_at >= 2020-01-01 and added_at < '2999-01-01T00:00Z'") == 30
        assert store.count(where=f"added_at < {at - 1000} or changed_at > {at + 1000}") == 0
        assert ids(store.items(where=f"id = 3 and added_at = {at!r}")) == [3]

    def test_a_filter_that_keeps_nothing_is_explained(self, store: VectorStore) -> None:
        """By missing keys and by values of another type; a filter that could keep something is not."""
        assert store.explain_filter("n > 100") == []
        missing, mismatch = store.explain_filter("color = 'red' and n = '3'")
        assert "color" in missing
        assert "number" in mismatch

    @pytest.mark.parametrize("where", ["", "n =", "n ? 3", 3, ["n = 1"]])
    def test_what_is_no_filter_is_refused(self, store: VectorStore, where: Any) -> None:
        """By every method that takes one."""
        calls: list[Callable[[], object]] = [
            lambda: store.items(where=where),
            lambda: store.count(where=where),
            lambda: store.matching([1], where),
            lambda: store.explain_filter(where),
            lambda: store.remove_where(where),
            lambda: store.search(unit(1), space=SPACE, where=where),
            lambda: store.search_text(TextQuery.any_of("no"), where=where),
        ]
        for call in calls:
            with pytest.raises(InputError):
                call()
        assert len(store) == 30

    # ------------------------------------------------------------------------------------------- search

    def test_a_search_finds_the_nearest(self, store: VectorStore) -> None:
        """By inner product, best first; with a kind and a filter the nearest of these."""
        queries = unit(5, 7)
        products = queries @ unit(30).T  # (Q, N)
        for kind, kept in ((None, range(30)), ("text", range(0, 30, 3)), ("image", [n for n in range(30) if n % 3])):
            found = store.search(queries, k=4, space=SPACE, kind=kind)
            for hits, row in zip(found, products, strict=True):
                best = sorted(kept, key=lambda n: (-row[n], n))[:4]
                assert ids(hits) == best
                np.testing.assert_allclose([hit.score for hit in hits], row[best], atol=1e-5)
                assert [(hit.uri, hit.caption) for hit in hits] == [(f"/p/{n}.jpg", f"no {n}") for n in best]

    def test_equal_scores_come_by_id(self, make: Callable[[], VectorStore]) -> None:
        """Also where k cuts among them."""
        store = make()
        store.add(np.repeat(unit(1), 20, axis=0), [Item(f"/{n}", "image") for n in range(20)], space=SPACE)
        assert ids(store.search(unit(1), k=7, space=SPACE)[0]) == list(range(7))

    def test_k_may_be_larger_than_the_store(self, store: VectorStore) -> None:
        """Then all items are hits."""
        for k in (30, 31, 10**6, 2**63):
            assert len(store.search(unit(1), k=k, space=SPACE)[0]) == 30
            assert len(store.search_text(TextQuery.any_of("no"), k=k)) == 30
        assert store.search(unit(2), k=3, space=SPACE, where="n = 99") == [[], []]

    def test_an_empty_store_finds_nothing(self, make: Callable[[], VectorStore]) -> None:
        """And says so without an error."""
        store = make()
        assert len(store) == store.count() == 0
        assert store.search(unit(2), space=SPACE) == [[], []]
        assert store.search_text(TextQuery.any_of("no")) == []
        assert store.count_text(TextQuery.any_of("no"), at_most=5) == 0
        assert list(store.items()) == store.find(uri="/a") == []
        assert store.remove([1]) == 0
        assert store.search(unit(0), space=SPACE) == []

    @pytest.mark.parametrize(
        ("queries", "more", "error"),
        [
            (unit(1), {"k": 0}, InputError),
            (unit(1), {"k": 1.5}, InputError),
            (unit(1), {"kind": "video"}, InputError),
            (unit(1), {"effort": 0}, InputError),
            (unit(1), {"space": "6" * 64}, SpaceMismatchError),
            (unit(1)[0], {}, EmbeddingError),
            (unit(1) * 2, {}, EmbeddingError),
        ],
    )
    def test_a_search_that_cannot_be_is_refused(
        self, store: VectorStore, queries: Any, more: dict[str, Any], error: type[Exception]
    ) -> None:
        """By type of argument, not by an error from below."""
        with pytest.raises(error):
            store.search(queries, **{"space": SPACE, **more})

    @pytest.mark.parametrize(("query", "expected"), QUERIES)
    def test_keywords_are_found(self, make: Callable[[], VectorStore], query: TextQuery, expected: set[int]) -> None:
        """In captions and file names; phrases and `must` are required, any term of `should` will do."""
        store = make()
        items = [Item(f"/p/photo{n}.jpg", "image", caption) for n, caption in enumerate(CAPTIONS)]
        store.add(unit(len(items)), items, space=SPACE)
        hits = store.search_text(query)
        assert set(ids(hits)) == expected
        assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
        assert store.count_text(query, at_most=100) == len(expected)
        assert store.search_text(query, kind="text") == []

    def test_rarer_and_more_words_rank_higher(self, make: Callable[[], VectorStore]) -> None:
        """Scores are BM25; equal ones come by id; `count_text` stops at its limit."""
        store = make()
        captions = ["car", "car", "car zorblatt", *["bus"] * 20]
        store.add(unit(23), [Item(f"/{n}", "image", text) for n, text in enumerate(captions)], space=SPACE)
        assert ids(store.search_text(TextQuery.any_of("car zorblatt"), k=2)) == [2, 0]
        assert ids(store.search_text(TextQuery.any_of("car"))) == [0, 1, 2]
        assert store.count_text(TextQuery.any_of("bus car"), at_most=5) == 5
        with pytest.raises(InputError):
            store.search_text("car")  # type: ignore[arg-type]
        with pytest.raises(InputError):
            store.count_text(TextQuery.any_of("car"), at_most=0)

    def test_keywords_follow_changes(self, store: VectorStore) -> None:
        """An updated caption and uri are found, the old ones are not."""
        store.update(7, caption="红色的车", uri="/q/redCar.png")
        assert ids(store.search_text(TextQuery.any_of("红色"))) == [7]
        assert ids(store.search_text(TextQuery.all_of("red car"))) == [7]
        assert store.search_text(TextQuery.all_of("no 7")) == []

    def test_threads_may_share_a_store(self, store: VectorStore) -> None:
        """Searches beside changes give whole answers."""
        errors: list[BaseException] = []

        def search() -> None:
            try:
                for _ in range(20):
                    (hits,) = store.search(unit(1), k=1000, space=SPACE)
                    assert len(hits) >= 30
                    assert set(range(30)) <= set(ids(hits))
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=search) for _ in range(3)]
        for thread in threads:
            thread.start()
        for n in range(20):
            store.add(unit(2, n), [Item(f"/new{n}-{m}", "image") for m in range(2)], space=SPACE)
            store.remove_where("uri like '/new%'")
        for thread in threads:
            thread.join()
        assert errors == []
