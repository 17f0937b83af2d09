"""The index: what it offers, over a folder in which catalogue and vector file are kept in step.

One `add` appends the vectors, waits until the disk has them, and only then commits the items together with
the new length in one SQLite transaction. A crash before that leaves a tail behind the committed length, which
readers ignore and the next writer cuts off; a crash after it leaves a finished add. Needs a local file system
(SQLite's log and flock do).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import EllipsisType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from twinspire._arguments import as_list, as_member, as_whole, is_utf8, require_text, shown
from twinspire.errors import IndexStoreError, InputError
from twinspire.index.ann import Family, IndexSpec, Prediction, choose, predict
from twinspire.index.ann.reports import BuildReport, TuneReport
from twinspire.index.connections import repeated
from twinspire.index.error_mapping import RESTORE
from twinspire.index.filter_sql import compiled
from twinspire.index.merged import OpenedIndex
from twinspire.index.reports import CompactReport, IndexStats, VerifyReport
from twinspire.index.schema import SCHEMA_VERSION
from twinspire.index.state import DEAD, State
from twinspire.index.vectors import HEADER_BYTES
from twinspire.index.verify import verify_index
from twinspire.index.view import View
from twinspire.index.writer import Writer
from twinspire.stores.filters.explain import explain
from twinspire.stores.items import AddReport, Hit, Item, ItemKind, StoredItem
from twinspire.stores.reference import BundleReference
from twinspire.stores.text_query import TextQuery
from twinspire.stores.validation import (
    check_bundle,
    checked_effort,
    checked_ids,
    checked_k,
    checked_kind,
    checked_text_query,
    checked_where,
    required_where,
    unit_vectors,
)

if TYPE_CHECKING:
    from twinspire.stores.filters.filter import Filter


_LARGEST_BATCH = 100_000


class Index(OpenedIndex):
    """An open index; made by `Index.create` and `Index.open`, a context manager.

    One `Index` at a time may be open for writing, in one process; any number for reading, in any process. A
    reader sees what was changed since at its next call. All methods may be called from several threads at once:
    searches run side by side, changes one after the other; what one call returns comes from one committed state.
    Not to be carried across `os.fork`: in the child every call raises, so open it there; searching and building then
    work whatever the parent did.

    An item's id is its own for ever, also through `update` and `compact`, and is never given to another. Every
    change is durable when its method returns; where it raises, nothing is changed, unless it raises
    `IndexUncertainError`: then the disk failed such that it may be there all the same. Every method raises
    `IndexStoreError` where the disk fails or the index is damaged or closed, and those that change something also
    where it was opened for reading.
    """

    def add(self, embeddings: NDArray[np.float32], items: Sequence[Item], *, space: str) -> AddReport:
        """Add `items` with their `embeddings`, (N, D) float32, L2-normalised: durable when it returns.

        An item whose kind, uri and content hash the index has already, or an earlier item of the same call has, is
        skipped and reported; the same content under another uri is another item. All of them are added or, where it
        raises, none. Raises `SpaceMismatchError`, `EmbeddingError`, and `InputError` for what is no item and where
        items and embeddings differ in number.
        """
        self.check_space(space)
        vectors = unit_vectors(embeddings, self._dim, "embeddings to add")  # (N, D)
        items = as_list(items, "items")
        for position, item in enumerate(items):
            if not isinstance(item, Item):
                raise InputError(f"what is added must be a list of Item; at position {position} is {shown(item)}")
        if len(items) != len(vectors):
            raise InputError(f"every item needs one embedding: got {len(items)} items and {len(vectors)} embeddings")
        with self._changing("add to") as writer:
            report = writer.add(vectors, items)
        self._keep_up(writer)
        return report

    def remove(self, ids: Iterable[int]) -> int:
        """Remove the items of these ids and return how many there were.

        An id that no item has is passed over, one that comes twice counts once. A damaged item can be removed too.
        """
        ids = dict.fromkeys(checked_ids(ids))
        with self._changing("remove from") as writer:
            return writer.remove(ids)

    def remove_where(self, where: Filter | str) -> int:
        """Remove the items that `where` keeps and return how many there were."""
        kept = required_where(where)
        compiled(kept)  # raises before anything is locked
        with self._changing("remove from") as writer:
            return writer.remove_where(kept)

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
        """Change what is given of one item, keep the rest, and return it as it is then.

        `embedding` is (D,) float32, L2-normalised, and needs its `space`. Raises `InputError` for an unknown id, for
        what no item may have and for the kind, uri and content hash of another item, `SpaceMismatchError`,
        `EmbeddingError`.
        """
        (number,) = checked_ids([id])
        vectors = None
        if embedding is not None:
            if space is None:
                raise InputError("a new embedding needs the space it is of: update(id, embedding=..., space=...)")
            self.check_space(space)
            row = embedding[None] if isinstance(embedding, np.ndarray) and embedding.ndim == 1 else embedding
            vectors = unit_vectors(row, self._dim, "the new embedding, as a row,")
            if len(vectors) != 1:
                raise InputError(f"an item has one embedding, got {len(vectors)}")
        given = {"uri": uri, "caption": caption, "metadata": metadata, "content_hash": content_hash}
        fields = {name: value for name, value in given.items() if value is not ...}
        with self._changing("update") as writer:
            return writer.update(number, vectors, fields)

    def set_bundle(self, bundle: BundleReference) -> None:
        """Remember `bundle` as the one that made the embeddings, say because its folder moved.

        Does not check that it is of the index's space. Raises `InputError` for what is no bundle reference.
        """
        check_bundle(bundle)
        with self._changing("change") as writer:
            writer.put_bundle(bundle)

    def compact(self) -> CompactReport:
        """Write the vector file anew without the rows of removed and replaced vectors.

        Needs room for a second file meanwhile. Searches go on, also in other processes. Does nothing where there
        is nothing to drop.
        """
        with self._changing("compact") as writer:
            report = writer.compact()
        self._keep_up(writer)
        return report

    def build(self, kind: str = "auto", *, threads: int | None = None, memory_bytes: int | None = None) -> BuildReport:
        """Build an index of `kind` that searches use from then on: `ann.IndexSpec.parse` says which there are.

        `auto` is exact below 100,000 items, above the fastest that fits in `memory_bytes` (half of what is free).
        `flat` goes back to exact search. Then effort and candidates are calibrated, so that searches that say nothing
        have a recall@10 of 0.95: the report says what was measured on what, and where the kind cannot reach it.
        Takes minutes for millions; searches go on meanwhile, changes wait. Raises
        `InputError` for an unknown kind and one that does not suit the vectors, `MissingDependencyError` and
        `ProviderError` for a GPU's without one.
        """
        parsed = IndexSpec.parse(kind)
        with self._changing("build") as writer:
            assert self._snapshots is not None
            return self._snapshots.build(writer, parsed, threads=threads, memory_bytes=memory_bytes)

    @repeated
    def predict(
        self, kind: str = "auto", *, threads: int | None = None, memory_bytes: int | None = None
    ) -> tuple[str, Prediction]:
        """Return which kind `build` would build now, and what it is expected to take."""
        parsed = IndexSpec.parse(kind)
        with self._reading("read") as (_, state):
            if parsed.family is Family.AUTO:
                parsed = choose(state.items, self._dim, memory_bytes=memory_bytes, threads=threads)
            return str(parsed), predict(parsed, state.commit.rows, self._dim, threads=threads)

    def tune(self, queries: NDArray[np.float32] | None, *, space: str, recall: float = 0.95, k: int = 10) -> TuneReport:
        """Set the least effort with which searches find `recall` of what exact search finds for `queries`.

        `queries` is (Q, D) float32, L2-normalised: some hundred of those that people ask; None: the held-out
        queries that `build` measures with. The setting is stored and holds for all searches that do not give their own
        effort; changes wait meanwhile. Raises `InputError` where the
        index is searched exactly and where the recall is out of reach or not between 0 and 1, `SpaceMismatchError`,
        `EmbeddingError`.
        """
        self.check_space(space)
        vectors = None if queries is None else unit_vectors(queries, self._dim, "queries")
        k = min(checked_k(k), max(1, len(self)))
        if not 0 < recall <= 1 or (vectors is not None and len(vectors) == 0):
            count = "held-out" if vectors is None else len(vectors)
            raise InputError(f"tuning needs queries and a recall above 0, at most 1; got {count} and {recall!r}")
        with self._changing("tune") as writer:
            assert self._snapshots is not None
            return self._snapshots.tune(writer, vectors, recall=recall, k=k)

    @repeated
    def get(self, ids: Iterable[int]) -> list[StoredItem]:
        """Return the items of these ids, in this order. Raises `InputError` for an id that no item has."""
        ids = checked_ids(ids)
        with self._reading("read") as (view, state):
            items = view.items(set(ids))
            self._require_known(ids, items, state)
        return [items[number] for number in ids]

    @repeated
    def find(
        self, *, uri: str | None = None, content_hash: str | None = None, under: str | None = None
    ) -> list[StoredItem]:
        """Return the items of this uri, of this content hash, or under this folder, in the order of ids.

        `under` takes the items whose uri starts with it and a slash. Raises `InputError` unless one of them is given.
        """
        given = {"uri": uri, "content_hash": content_hash, "under": under}
        (name, value), *others = [pair for pair in given.items() if pair[1] is not None] or [("", None)]
        if value is None or others:
            raise InputError(f"find takes one of {', '.join(given)}, got {1 + len(others) if value else 'none'}")
        if not isinstance(value, str):
            raise InputError(f"find takes {name} as a str, got {shown(value)}")
        if not is_utf8(value):  # no item can have it
            return []
        with self._reading("read") as (view, _):
            return view.under(value) if name == "under" else view.find(name, value)

    @repeated
    def sample_ids(self, count: int, *, seed: int = 0) -> list[int]:
        """Return the ids of `count` items drawn by `seed`, all of them where there are fewer, in order."""
        count, seed = as_whole(count, "the number of ids", minimum=0), as_whole(seed, "the seed", minimum=0)
        with self._reading("read") as (_, state):
            ids = state.ids[state.ids != DEAD]
        if count >= len(ids):
            return sorted(ids.tolist())
        return sorted(np.random.default_rng(seed).choice(ids, count, replace=False).tolist())

    def items(
        self, *, kind: ItemKind | str | None = None, where: Filter | str | None = None, batch: int = 1000
    ) -> Iterator[StoredItem]:
        """Give all items of `kind` that `where` keeps, in the order of ids, as one committed state has them.

        What is added, changed and removed meanwhile, by this process too, is not seen. `batch` items are read at a
        time, however many there are. The state is held until the iterator is exhausted or closed, and SQLite's log
        grows with every change until then. Raises `InputError` at once, `IndexStoreError` while it goes on.
        """
        batch = min(as_whole(batch, "batch (items read at a time)", minimum=1), _LARGEST_BATCH)
        self._parts()
        return self._items(checked_kind(kind), checked_where(where), batch)

    def _items(self, kind: ItemKind | None, where: Filter | None, batch: int) -> Iterator[StoredItem]:
        last = -1
        with self._reading("read") as (view, _):
            while items := view.items_after(last, kind, where, batch):
                yield from items
                last = items[-1].id
                self._parts()  # closed meanwhile?

    def __iter__(self) -> Iterator[StoredItem]:
        return self.items()

    @repeated
    def matching(self, ids: Iterable[int], where: Filter | str) -> set[int]:
        """Return those of `ids` whose items `where` keeps; an id that no item has is left out."""
        ids = checked_ids(ids)
        kept = required_where(where)
        with self._reading("read") as (view, _):
            return view.matching(ids, kept)

    @repeated
    def vectors(self, ids: Iterable[int]) -> NDArray[np.float32]:
        """Return the vectors of these ids, (N, D) float32, as stored. Raises `InputError` as `get` does."""
        ids = checked_ids(ids)
        with self._reading("read") as (view, state):
            rows = view.rows(ids)
            self._require_known(ids, rows, state)
            places = np.array([rows[number] for number in ids], np.int64)
            state.check_rows(places, np.array(ids, np.int64))
            return np.array(state.vectors[places], dtype=np.float32)

    @repeated
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
        """Return the k best hits of each query, best first, equal scores in the order of ids.

        `queries` is (Q, D) float32, L2-normalised. Only items of `kind` and items that `where` keeps are found. The
        search is exact unless another kind was built; what was added since is searched exactly. `effort` is how many
        lists are looked at, or how broad a graph is searched; by default what `build` measured, or `tune`. A query gets
        fewer than k hits where fewer are there. Raises `SpaceMismatchError`, `EmbeddingError`, `InputError` for a k
        below 1, and `MissingDependencyError` without FAISS (extra `cpu`).
        """
        self.check_space(space)
        vectors = unit_vectors(queries, self._dim, "queries")  # (Q, D)
        k, effort, kind, where = checked_k(k), checked_effort(effort), checked_kind(kind), checked_where(where)
        with self._reading("search") as (view, state):
            if state.items == 0 or len(vectors) == 0:
                return [[] for _ in vectors]
            allowed = self._allowed(view, state, kind, where)
            assert self._snapshots is not None
            scores, rows = self._snapshots.nearest(view, state, vectors, min(k, state.items), allowed, effort, kind)
            return _hits(view, state, scores, rows)

    @repeated
    def search_text(
        self, query: TextQuery, *, k: int = 10, kind: ItemKind | str | None = None, where: Filter | str | None = None
    ) -> list[Hit]:
        """Return the k best items for a keyword query over captions and file names, best first, equal scores by id.

        The score is the negated BM25 of SQLite's FTS5. Raises `InputError` for a k below 1.
        """
        query, k, kind, where = checked_text_query(query), checked_k(k), checked_kind(kind), checked_where(where)
        with self._reading("search") as (view, _):
            return view.search_text(query, k, kind, where) if query else []

    @repeated
    def count_text(self, query: TextQuery, *, at_most: int) -> int:
        """Return how many items `search_text` would find, counted up to `at_most`: cheap also for common words."""
        query, at_most = checked_text_query(query), checked_k(at_most)
        with self._reading("search") as (view, _):
            return view.count_text(query, at_most) if query else 0

    @repeated
    def count(self, *, kind: ItemKind | str | None = None, where: Filter | str | None = None) -> int:
        """Return how many items of `kind` there are that `where` keeps."""
        kind, where = checked_kind(kind), checked_where(where)
        with self._reading("read") as (view, state):
            if kind is None and where is None:
                return state.items
            allowed = self._allowed(view, state, kind, where)
            return len(state.ids) if allowed is None else int(np.count_nonzero(allowed))

    @repeated
    def explain_filter(self, where: Filter | str) -> list[str]:
        """Return what in a filter is true of no item, whatever the rest of it says.

        That is a key that no item has, and a comparison with text where all values are numbers, or the like. Reads all
        metadata once for each key: for a filter that keeps nothing.
        """
        kept = required_where(where)
        with self._reading("read") as (view, _):
            return explain(kept, view.value_types)

    @repeated
    def known_hashes(self, hashes: Iterable[str], *, kind: ItemKind | str = ItemKind.IMAGE) -> set[str]:
        """Return those of `hashes` that belong to an item of this kind, whatever its uri."""
        wanted = [require_text(each, "a content hash") for each in as_list(hashes, "content hashes")]
        kind = as_member(kind, ItemKind, "a kind of item")
        with self._reading("read") as (view, _):
            return view.known_hashes(wanted, kind)

    @repeated
    def stats(self) -> IndexStats:
        """Return what the index holds now and how large it is."""
        with self._reading("read") as (view, state):
            assert self._catalogue is not None
            assert self._snapshots is not None
            return IndexStats(
                path=self._path,
                space=self._space,
                dim=self._dim,
                dtype=self._dtype,
                items=state.items,
                items_by_kind=view.count_by_kind(),
                rows=state.commit.rows,
                dead_rows=state.commit.rows - state.items,
                generation=state.commit.generation,
                schema_version=SCHEMA_VERSION,
                vectors_bytes=HEADER_BYTES + state.commit.rows * self._dim * self._dtype.numpy.itemsize,
                catalogue_bytes=self._catalogue.size_bytes(),
                snapshot=self._snapshots.stats(view),
            )

    def verify(self) -> VerifyReport:
        """Read everything and tell what is wrong with it; changes nothing. See `verify_index`."""
        self._parts()
        return verify_index(self._path)

    def _keep_up(self, writer: Writer) -> None:
        """Let the snapshot follow what has changed."""
        assert self._snapshots is not None
        self._snapshots.refresh(writer)

    def _allowed(
        self, view: View, state: State, kind: ItemKind | None, where: Filter | None
    ) -> NDArray[np.bool_] | None:
        assert self._states is not None
        return self._states.allowed(view, state, kind, where)

    def _require_known(self, ids: Sequence[int], known: Mapping[int, object], state: State) -> None:
        unknown = [number for number in ids if number not in known]
        if unknown:
            if np.isin(unknown, state.ids).any():
                raise IndexStoreError(f"the catalogue of the index {self._path} has lost items. {RESTORE}")
            shown = ", ".join(map(str, unknown[:5])) + (f" and {len(unknown) - 5} more" if len(unknown) > 5 else "")
            raise InputError(f"the index {self._path} has no item {shown}")


def _hits(view: View, state: State, scores: NDArray[np.float32], rows: NDArray[np.int64]) -> list[list[Hit]]:
    """Return the items at `rows` with their `scores`, (Q, n) each; a row of -1 is none."""
    there = rows >= 0
    found = view.hits(state.ids[rows[there]].tolist(), scores[there].tolist(), rows[there].tolist())
    ends = np.cumsum(there.sum(axis=1)).tolist()
    return [found[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)]
