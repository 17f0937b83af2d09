"""`VectorStore`: the interface of a store of embeddings and their items.

`twinspire.index.Index`, the embedded store, implements it. `twinspire.search`, `twinspire.ingest` and the commands use
this interface only; another store has to pass the same tests (`tests/stores/conformance.py`) and is opened by
`open_index` once it is registered.
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
    """Items with their embeddings, found by vector, by keyword and by filter; safe to use from several threads.

    Embeddings are float32, L2-normalised, all of one `space`; a method that takes some raises `SpaceMismatchError` for
    another space and `EmbeddingError` for a wrong shape, dtype or norm. Every method raises `InputError` for invalid
    arguments, and `IndexStoreError` if the store fails or is closed; a method that changes the store raises it too if
    the store was opened for reading. `twinspire.stores.validation` has the checks of arguments. Ids count from 0 and
    are never reused. `where` is a filter or its text, `kind` a kind of item or its name.
    """

    @property
    def uri(self) -> str:
        """The URI with which `open_index` opens the store: a path, or `scheme://...`."""

    @property
    def space(self) -> str:
        """The space of the embeddings."""

    @property
    def dim(self) -> int:
        """D, the numbers of an embedding."""

    @property
    def vectors_per_item(self) -> int:
        """Q, how many vectors an item has; 1 but for models that give several vectors for an image.

        Where Q is above 1, embeddings of items are (N, Q, D) wherever (N, D) is said, or (N, D) of texts, which have
        one vector each. The score of an item is then the maximum over its vectors, and over those of the query where
        that is an image, (M, P, D) for M queries.
        """

    @property
    def bundle(self) -> BundleReference | None:
        """The bundle that made the embeddings, None if it is unknown."""

    @property
    def generation(self) -> int:
        """A number that grows with every committed change of items: equal numbers mean equal items."""

    def __len__(self) -> int:
        """Return the number of items."""

    def check_space(self, space: str) -> None:
        """Raise `SpaceMismatchError` unless `space` is the store's."""

    def add(self, embeddings: NDArray[np.float32], items: Sequence[Item], *, space: str) -> AddReport:
        """Add items with their embeddings, (N, D): all of them or, if it raises, none; durable when it returns.

        An item is skipped and reported if the store, or this call before it, has its kind, uri and content hash
        already; an item without a content hash is always added.
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
        """Change the given fields of an item, keep the others, and return the item.

        `embedding` is (D,) and needs its `space`. Raises `InputError` for an unknown id, for values that no item may
        have, and for the kind, uri and content hash of another item.
        """

    def remove(self, ids: Iterable[int]) -> int:
        """Remove the items of these ids and return how many there were; ids without an item are ignored."""

    def remove_where(self, where: Filter | str) -> int:
        """Remove the items that `where` keeps and return how many there were."""

    def set_bundle(self, bundle: BundleReference) -> None:
        """Record `bundle` as the origin of the embeddings. Keeps the generation."""

    def get(self, ids: Iterable[int]) -> list[StoredItem]:
        """Return the items of these ids, in this order. Raises `InputError` for an id that no item has."""

    def vectors(self, ids: Iterable[int]) -> NDArray[np.float32]:
        """Return the vectors of these ids, (N, D), in this order. Raises `InputError` as `get` does."""

    def find(
        self, *, uri: str | None = None, content_hash: str | None = None, under: str | None = None
    ) -> list[StoredItem]:
        """Return the items of one uri, of one content hash, or with uris below the folder `under`, by id.

        Raises `InputError` unless exactly one of the three is given.
        """

    def known_hashes(self, hashes: Iterable[str], *, kind: ItemKind | str = ItemKind.IMAGE) -> set[str]:
        """Return those of `hashes` that are the content hash of an item of this kind."""

    def items(
        self, *, kind: ItemKind | str | None = None, where: Filter | str | None = None, batch: int = 1000
    ) -> Iterator[StoredItem]:
        """Iterate over the items of `kind` that `where` keeps, in the order of ids, in one committed state.

        `batch` items are read at a time. Raises `InputError` at once.
        """

    def count(self, *, kind: ItemKind | str | None = None, where: Filter | str | None = None) -> int:
        """Return the number of items of `kind` that `where` keeps."""

    def matching(self, ids: Iterable[int], where: Filter | str) -> set[int]:
        """Return those of `ids` whose items `where` keeps; ids without an item are left out."""

    def explain_filter(self, where: Filter | str) -> list[str]:
        """Return why a filter may keep nothing: keys that no item has, comparisons with values of another type."""

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
        """Return the k best hits of each query, (Q, D), by inner product, best first, equal scores by id.

        `effort` is the store's own setting of an approximate search, at least 1; None: its default.
        """

    def search_text(
        self, query: TextQuery, *, k: int = 10, kind: ItemKind | str | None = None, where: Filter | str | None = None
    ) -> list[Hit]:
        """Return the k best items for a keyword query over captions and file names, best first, equal scores by id.

        Scores are BM25. `text_query.indexed_text` gives the words of an item. An empty query finds nothing.
        """

    def count_text(self, query: TextQuery, *, at_most: int) -> int:
        """Return the number of items that match a keyword query, counted up to `at_most`."""

    def close(self) -> None:
        """Close the store: every later call but `close` raises `IndexStoreError`."""

    def __enter__(self) -> Self:
        """Return the store."""

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
