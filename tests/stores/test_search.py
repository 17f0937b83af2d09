"""Searching a store other than the embedded one: the hits of the embedded index, and the command by the store's URI."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from stores.numpy_store import SCHEME, create_store, open_store
from twinspire.cli import main
from twinspire.errors import SpaceMismatchError
from twinspire.index import Index
from twinspire.search import Query, Searcher
from twinspire.stores import Item, VectorStore, register_store

SPACE = "5" * 64
DIM = 8
WORDS = ("red", "green", "blue", "car", "dog", "boat")
COUNT = 600  # with rare words


class WordClient:
    """Encodes a text as the sum of one random direction for each of its words."""

    space = SPACE

    def encode_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return (N, D) float32, L2-normalised."""
        rows = [
            sum(np.random.default_rng([ord(c) for c in word]).normal(size=DIM) for word in text.split())
            for text in texts
        ]
        return _unit(np.array(rows).reshape(len(rows), DIM))

    def encode_images(self, items: Iterable[Any]) -> NDArray[np.float32]:
        """Encode each as the word red."""
        return self.encode_texts(["red" for _ in items])

    def __enter__(self) -> WordClient:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def _unit(vectors: NDArray[Any]) -> NDArray[np.float32]:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=-1, keepdims=True), np.float32)


def _fill(store: VectorStore) -> None:
    generator = np.random.default_rng(7)
    captions = [" ".join(generator.choice(WORDS, 2)) for _ in range(COUNT)]
    captions[5] += " at Sunny Bay"
    captions[9] += " with Zorblatt，红色的车"
    items = [
        Item(f"/{number}.jpg", "image" if number % 3 else "text", caption, {"year": 2000 + number % 40})
        for number, caption in enumerate(captions)
    ]
    vectors = WordClient().encode_texts([caption.split(" at ")[0].split(" with ")[0] for caption in captions])
    store.add(_unit(vectors + 0.3 * generator.normal(size=vectors.shape)), items, space=SPACE)


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[VectorStore, VectorStore]]:
    """Fill the embedded index and the store in memory with the same items."""
    register_store(SCHEME, open_store)
    with (
        Index.create(tmp_path_factory.mktemp("stores") / "index", space=SPACE, dim=DIM) as index,
        create_store("search", space=SPACE, dim=DIM) as memory,
    ):
        for store in (index, memory):
            _fill(store)
        yield index, memory


def _without_bm25(parts: Mapping[str, float]) -> dict[str, float]:
    return {name: part for name, part in parts.items() if name != "keyword"}


@pytest.mark.parametrize("query", ["red car", "Zorblatt", '"sunny bay" dog', "红色", "a dog 红色的车 Zorblatt"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"mode": "vector"},
        {"mode": "keyword"},
        {"mode": "hybrid", "where": "year < 2020", "kind": "image"},
        {"boosts": ["year >= 2030:0.2"], "offset": 4},
        {"pins": ["id in (3, 9)"], "where": "year != 2001"},
        {"diversify": 0.4},
        {"min_score": 0.2},
        {"mode": "keyword", "min_score": 0.2},
        {"where": "year > 3000"},
    ],
    ids=str,
)
def test_any_store_gives_the_same_hits(
    stores: tuple[VectorStore, VectorStore], query: str, options: dict[str, Any]
) -> None:
    """Ids, order, notes and scores are those of the embedded index; only the values of BM25 are a store's own."""
    expected, found = (Searcher(WordClient(), store).search(query, 12, **options) for store in stores)
    assert {"min_score", "offset"} & options.keys() or bool(found.hits) is (options.get("where") != "year > 3000")
    assert [hit.id for hit in found.hits] == [hit.id for hit in expected.hits]
    assert (found.mode, found.searched, found.notes) == (expected.mode, expected.searched, expected.notes)
    for mine, theirs in zip(found.hits, expected.hits, strict=True):
        assert mine.parts.keys() == theirs.parts.keys()
        assert _without_bm25(mine.parts) == pytest.approx(_without_bm25(theirs.parts), rel=1e-5, abs=1e-6)
        assert found.mode == "keyword" or mine.score == pytest.approx(theirs.score, rel=1e-5, abs=1e-6)
        assert (mine.uri, mine.kind, mine.caption, mine.metadata) == (
            theirs.uri, theirs.kind, theirs.caption, theirs.metadata,
        )  # fmt: skip


def test_responses_are_cached_by_the_stores_generation(stores: tuple[VectorStore, VectorStore]) -> None:
    """A known response comes again until the store changes."""
    memory = create_store("cached", space=SPACE, dim=DIM)
    _fill(memory)
    searcher = Searcher(WordClient(), memory)
    query = Query.text("red car")
    best = searcher.search(query, 3).hits[0].id
    assert searcher.search(query, 3).cached
    memory.remove([best])
    again = searcher.search(query, 3)
    assert not again.cached
    assert best not in [hit.id for hit in again.hits]


def test_another_space_is_refused(stores: tuple[VectorStore, VectorStore]) -> None:
    """Client and store must be of one space."""
    client = WordClient()
    client.space = "6" * 64
    with pytest.raises(SpaceMismatchError):
        Searcher(client, stores[1])


def test_the_command_searches_a_store_by_its_uri(
    stores: tuple[VectorStore, VectorStore], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """`twinspire search memory://search` prints the hits of that store, and names it in --json."""
    monkeypatch.setattr("twinspire.cli.search.open_client", lambda *_: WordClient())
    with pytest.raises(SystemExit) as ended:
        main(["search", f"{SCHEME}://search", "red car", "--json", "-k", "3"])
    sys.stdout.flush()
    document = json.loads(capfd.readouterr().out)
    assert ended.value.code == 0
    assert document["index"] == f"{SCHEME}://search"
    expected = Searcher(WordClient(), stores[1]).search("red car", 3)
    assert [Path(hit["uri"]).stem for hit in document["hits"]] == [Path(hit.uri).stem for hit in expected.hits]
