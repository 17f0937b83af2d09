"""A `Searcher` over a store that is no index: the same hits as over the embedded index, for every kind of request."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from stores.numpy_store import create_store

from twinspire.index import Index
from twinspire.search import Searcher
from twinspire.stores import Item, VectorStore

SPACE = "5" * 64
DIM = 16
COLORS, THINGS = ("red", "green", "blue", "black"), ("car", "dog", "boat", "tent", "汽车")


class FakeClient:
    """Encodes a text as the sum of one random direction for each of its words."""

    space = SPACE

    def encode_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return (N, D) float32."""
        rows = np.array([sum(self._direction(word) for word in text.split()) for text in texts])
        return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)

    def encode_images(self, items: Iterable[Any]) -> NDArray[np.float32]:
        """Encode the text that a file holds."""
        return self.encode_texts([Path(item).read_text() for item in items])

    @staticmethod
    def _direction(word: str) -> NDArray[np.float64]:
        return np.random.default_rng([ord(character) for character in word]).normal(size=DIM)


@pytest.fixture
def stores(tmp_path: Path) -> Iterator[list[VectorStore]]:
    """Fill an embedded index and a NumPy store with the same 600 items."""
    random = np.random.default_rng(1)
    captions = [f"{random.choice(COLORS)} {random.choice(THINGS)} number{n}" for n in range(600)]
    items = [
        Item(f"/p/{n}.jpg", "text" if n % 5 == 0 else "image", caption, {"n": n, "stock": n % 3 == 0})
        for n, caption in enumerate(captions)
    ]
    with (
        Index.create(tmp_path / "index", space=SPACE, dim=DIM) as index,
        create_store("search", space=SPACE, dim=DIM) as memory,
    ):
        opened: list[VectorStore] = [index, memory]
        for store in opened:
            store.add(FakeClient().encode_texts(captions), items, space=SPACE)
        yield opened


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("red car", {"mode": "vector"}),
        ("red car", {"mode": "hybrid"}),
        ("red car number77", {}),
        ("汽车", {"offset": 5}),
        ('"red car"', {}),
        ('green "boat"', {"where": "n < 400"}),
        ("blue dog", {"kind": "text", "where": "stock = true"}),
        ("blue dog", {"boosts": ["stock = true:0.1"], "pins": ["n = 599"]}),
        ("blue dog", {"diversify": 0.5, "mode": "vector"}),
        ("blue dog", {"min_score": 0.5}),
        ("blue dog", {"where": "color = 'red'"}),
        ('"no such phrase"', {}),
    ],
)
def test_both_stores_give_the_same_hits(stores: list[VectorStore], text: str, options: dict[str, Any]) -> None:
    """Ids, order, captions, mode and notes are equal; scores up to rounding."""
    expected, found = (Searcher(FakeClient(), store).search(text, 10, **options) for store in stores)
    assert [(hit.id, hit.uri, hit.caption) for hit in found.hits] == [
        (hit.id, hit.uri, hit.caption) for hit in expected.hits
    ]
    np.testing.assert_allclose([hit.score for hit in found.hits], [hit.score for hit in expected.hits], rtol=1e-4)
    assert (found.mode, found.notes, found.searched) == (expected.mode, expected.notes, 600)
    assert bool(found.hits) == (text != '"no such phrase"' and options.get("where") != "color = 'red'")
