"""Both stores pass the same suite: the embedded index, and one of NumPy arrays in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest

from stores.conformance import DIM, SPACE, StoreConformance
from stores.numpy_store import SCHEME, create_store, open_store
from twinspire.index import Index
from twinspire.stores import VectorStore, register_store


class TestEmbeddedIndex(StoreConformance):
    """The index on disk."""

    @pytest.fixture
    def make(self, tmp_path: Path) -> Iterator[Callable[..., VectorStore]]:
        """Make indexes in a temporary folder."""
        made: list[Index] = []

        def index(vectors_per_item: int = 1) -> Index:
            path = tmp_path / f"index{len(made)}"
            made.append(Index.create(path, space=SPACE, dim=DIM, vectors_per_item=vectors_per_item))
            return made[-1]

        yield index
        for store in made:
            store.close()


class TestNumpyStore(StoreConformance):
    """The store in memory, registered for its scheme."""

    @pytest.fixture
    def make(self) -> Callable[..., VectorStore]:
        """Make stores with names of their own."""
        register_store(SCHEME, open_store)
        numbers = count()
        return lambda vectors_per_item=1: create_store(
            f"conformance{next(numbers)}", space=SPACE, dim=DIM, vectors_per_item=vectors_per_item
        )
