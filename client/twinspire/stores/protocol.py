"""`VectorStore`: what a store of embeddings and their items offers, whatever holds them.

`twinspire.index.Index`, the embedded store, is one. `twinspire.search`, `twinspire.ingest` and the commands know this
interface only; another store has to pass the same tests (`tests/stores`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import EllipsisType, TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from twinspire.stores.items import AddReport, BundleReference, Hit, Item, ItemKind, StoredItem
from twinspire.stores.text_query import TextQuery

if TYPE_CHECKING:
    from twinspire.stores.filters.filter import Filter


@runtime_checkable
class VectorStore(Protocol):
    """Items with their embeddings, found by vector, by keyword and by filter; used from several threads at once.

    Embeddings are float32, L2-normalised, all of one `space`; a method that takes some raises `SpaceMismatchError` for
    another space and `EmbeddingError` for a wrong shape, dtype or norm. Every method raises `InputError` for arguments
    that cannot be meant and `IndexStoreError` where the store itself fails. An item's id is its own for ever.
    """

    @property
    def uri(self) -> str:
        """Where the store is, as `open_index` takes it: a path, or `scheme://...`."""

    @property
    def space(self) -> str:
        """The space of the embeddings."""

    @property
    def dim(self) -> int:
        """D, the numbers of an embedding."""

    @property
    def bundle(self) -> BundleReference | None:
        """The bundle that made the embeddings, where it is known."""

    @property
    def generation(self) -> int:
        """A number that grows with every committed change: equal numbers mean equal content."""

    def __len__(self) -> int:
        """Return the number of items."""

    def check_space(self, space: str) -> None:
        """Raise `SpaceMismatchError` unless `space` is the store's."""

    def add(self, embeddings: NDArray[np.float32], items: Sequence[Item], *, space: str) -> AddReport:
        """Add items with their embeddings, (N, D): all of them or, where it raises, none; durable when it returns.

        An item whose kind, uri and content hash the store has already is skipped and reported.
        """

    def update(
        self,
        id: int,  # noqa: A002 - the field's name
        *,
        embedding: NDArray[np.float32] | None = None,
        space: str | None = None,
        uri: str | EllipsisType = ...,
        caption: str | EllipsisType | None = ...,
        metadata: Mapping[str, Any] | EllipsisType = ...,
        content_hash: str | EllipsisType | None = ...,
    ) -> StoredItem:
        """Change what is given of one item, keep the rest, and return it. `embedding`, (D,), needs its `space`."""

    def remove(self, ids: Iterable[int]) -> int:
        """Remove the items of these ids and return how many there were."""

    def remove_where(self, where: Filter | str) -> int:
        """Remove the items that `where` keeps and return how many there were."""

    def set_bundle(self, bundle: BundleReference) -> None:
        """Remember `bundle` as the one that made the embeddings."""

    def get(self, ids: Iterable[int]) -> list[StoredItem]:
        """Return the items of these ids, in this order. Raises `InputError` for an id that no item has."""

    def vectors(self, ids: Iterable[int]) -> NDArray[np.float32]:
        """Return the vectors of these ids, (N, D), in this order. Raises `InputError` as `get` does."""

    def find(
        self, *, uri: str | None = None, content_hash: str | None = None, under: str | None = None
    ) -> list[StoredItem]:
        """Return the items of one uri, of one content hash, or of all uris below the folder `under`, by id."""

    def known_hashes(self, hashes: Iterable[str], *, kind: ItemKind | str = ItemKind.IMAGE) -> set[str]:
        """Return those of `hashes` that an item of this kind has."""

    def items(
        self, *, kind: ItemKind | str | None = None, where: Filter | str | None = None, batch: int = 1000
    ) -> Iterator[StoredItem]:
        """Give all items of `kind` that `where` keeps, in the order of ids, as one committed state has them."""

    def count(self, *, kind: ItemKind | str | None = None, where: Filter | str | None = None) -> int:
        """Return how many items of `kind` there are that `where` keeps."""

    def matching(self, ids: Iterable[int], where: Filter | str) -> set[int]:
        """Return those of `ids` whose items `where` keeps; an id that no item has is left out."""

    def explain_filter(self, where: Filter | str) -> list[str]:
        """Return what in a filter is true of no item: a key that none has, a value of another type."""

    def search(
        self,
        queries: NDArray[np.float32],
        *,
        k: int = 10,
        space: str,
        kind: ItemKind | str | None = None,
        where: Filter | str | None = None,
        effort: int | None = None,
    ) -> list[list[Hit]]:
        """Return the k best hits of each query, (Q, D), by inner product, best first, equal scores by id."""

    def search_text(
        self,
        query: TextQuery,
        *,
        k: int = 10,
        kind: ItemKind | str | None = None,
        where: Filter | str | None = None,
    ) -> list[Hit]:
        """Return the k best items for a keyword query over captions and file names, best first; scores are BM25."""

    def count_text(self, query: TextQuery, *, at_most: int) -> int:
        """Return how many items match a keyword query, counted up to `at_most`."""

    def close(self) -> None:
        """Let the store go; every later call raises `IndexStoreError`."""

    def __enter__(self) -> Self:
        """Return the store."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
