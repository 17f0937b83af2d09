"""The embedded store: a folder with a SQLite catalogue and a vector file, committed together.

One `add` appends the vectors, syncs them to the disk, and only then commits the items and the new length in one SQLite
transaction. A crash before that leaves a tail behind the committed length, which readers ignore and the next writer
truncates; a crash after it leaves a finished add. Needs a local file system, for SQLite's log and for flock.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import EllipsisType, TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from twinspire._arguments import as_member, as_whole, is_utf8, shown
from twinspire.errors import IndexReplacedError, IndexStoreError, InputError, TwinspireError
from twinspire.index.ann import Prediction, choose, parse_choice, predict
from twinspire.index.ann.reports import BuildReport, TuneReport
from twinspire.index.connections import CATALOGUE_NAME, repeated
from twinspire.index.error_mapping import RESTORE, store_errors
from twinspire.index.filter_sql import compiled
from twinspire.index.folder import absolute_folder, create_folder, is_free, require_index
from twinspire.index.parts import Handle
from twinspire.index.reports import CompactReport, IndexStats, VerifyReport
from twinspire.index.state import DEAD, State
from twinspire.index.vectors import HEADER_BYTES, VectorType
from twinspire.index.verify import verify_index
from twinspire.index.view import View
from twinspire.stores.filters.explain import explain
from twinspire.stores.items import AddReport, BundleReference, Hit, Item, ItemKind, StoredItem
from twinspire.stores.text_query import TextQuery
from twinspire.stores.validation import (
    check_bundle,
    check_mode,
    check_same_space,
    checked_addition,
    checked_effort,
    checked_find,
    checked_hashes,
    checked_ids,
    checked_k,
    checked_kind,
    checked_text_query,
    checked_where,
    required_where,
    unit_vector,
    unit_vectors,
)

if TYPE_CHECKING:
    from twinspire.stores.filters.filter import Filter
    from twinspire.stores.protocol import VectorStore


_LARGEST_BATCH = 100_000


class Index:
    """An open index, a context manager; made by `Index.create` and `Index.open`.

    One `Index` at a time may be open for writing, in one process; any number for reading, in any process. A reader sees
    the latest commit at its next call. After a migration to another space (`twinspire.migration`) that call raises
    `IndexReplacedError`: open the index again then. All methods may be called from several threads at once: searches
    run in parallel, changes one after the other; what one call returns comes from one committed state. An open index
    does not survive `os.fork`: in the child every call raises, so open it there.

    An id is never reused: an item keeps its own through `update` and `compact`. Every change is durable when its method
    returns. If it raises, nothing is changed; only after an `IndexUncertainError`, where undoing failed too, the change
    may be committed all the same.

    Every method raises `IndexStoreError` if the disk fails or the index is damaged or closed; methods that change the
    index also if it was opened for reading. Invalid arguments raise `InputError`. Embeddings are (N, D) float32,
    L2-normalised, of the index's space: others raise `EmbeddingError` and `SpaceMismatchError`.
    """

    def __init__(self, path: Path, *, writable: bool) -> None:
        self._path = path
        self._handle = Handle(path, writable=writable)
        catalogue = self._handle.parts().catalogue
        self._space, self._dim, self._dtype = catalogue.space, catalogue.dim, catalogue.dtype
        self._vectors_per_item = catalogue.vectors_per_item

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        *,
        space: str,
        dim: int,
        dtype: VectorType | str = VectorType.FLOAT32,
        bundle: BundleReference | None = None,
        vectors_per_item: int = 1,
    ) -> Self:
        """Make an empty index for embeddings of `space` with `dim` numbers and open it for writing.

        `dtype` is how vectors are stored; `bundle` is the bundle that makes the embeddings, recorded for
        `Client.local`. `vectors_per_item` is Q in a space of several vectors an image: every item then takes the room
        of Q vectors, also a text, whose one vector is stored Q times. The folder appears whole or not at all; it may
        exist if it is empty. Raises `InputError` for an empty space, a dim below 1 or not the one that the space says,
        an unknown dtype and an invalid bundle reference, `IndexStoreError` if `path` exists with content or cannot be
        written.
        """
        folder = absolute_folder(path)
        create_folder(folder, space=space, dim=dim, dtype=dtype, bundle=bundle, vectors_per_item=vectors_per_item)
        return cls(folder, writable=True)

    @classmethod
    @repeated
    def open(cls, path: str | os.PathLike[str], *, mode: Literal["read", "write"] = "read") -> Self:
        """Open the index at `path`, after checking all of it against its checksum.

        `write` also clears away what an interrupted change left behind; `read` changes nothing. Raises
        `IndexStoreError` if there is no index, or one that is damaged or of another schema version, and
        `IndexLockedError` for a second writer.
        """
        check_mode(mode)
        folder = absolute_folder(path)
        require_index(folder)  # before a lock file is written into another folder
        with suppress(IndexReplacedError):  # migrated between two steps of opening it
            return cls(folder, writable=mode == "write")
        return cls(folder, writable=mode == "write")

    @classmethod
    def open_or_create(
        cls,
        path: str | os.PathLike[str],
        *,
        space: str,
        dim: int,
        dtype: VectorType | str | None = None,
        bundle: BundleReference | None = None,
        vectors_per_item: int = 1,
    ) -> Self:
        """Open the index at `path` for writing, or make it as `create` does if there is none.

        An existing index keeps the bundle that it records: `set_bundle` changes it. Raises what `open` and `create`
        raise, `SpaceMismatchError` if it is of another space and `InputError` if it has another dim, dtype or number of
        vectors an item.
        """
        wanted = None if dtype is None else as_member(dtype, VectorType, "an index's dtype")
        folder = absolute_folder(path)
        with store_errors(folder, "open"):
            may_create = is_free(folder)
        if may_create:
            try:
                return cls.create(
                    folder,
                    space=space,
                    dim=dim,
                    dtype=wanted or VectorType.FLOAT32,
                    bundle=bundle,
                    vectors_per_item=vectors_per_item,
                )
            except IndexStoreError:
                if not (folder / CATALOGUE_NAME).is_file():
                    raise
                # another process made one first
        opened = cls.open(folder, mode="write")
        try:
            opened.check_space(space)
            if opened.vectors_per_item != vectors_per_item:
                raise InputError(
                    f"the index {folder} has {opened.vectors_per_item} vectors an item, not {shown(vectors_per_item)}: "
                    "name another folder, or ask for what the index has"
                )
            if opened.dim != dim or wanted not in (None, opened.dtype):
                raise InputError(
                    f"the index {folder} is of dim {opened.dim} and {opened.dtype}, not of dim {shown(dim)} and "
                    f"{wanted or 'any dtype'}: name another folder, or ask for what the index has"
                )
        except BaseException:
            opened.close()
            raise
        return opened

    @property
    def path(self) -> Path:
        """The folder, absolute."""
        return self._path

    @property
    def uri(self) -> str:
        """The folder, absolute, as `open_index` takes it."""
        return str(self._path)

    @property
    def space(self) -> str:
        """The space of its embeddings: others can neither be added nor searched with."""
        return self._space

    @property
    def dim(self) -> int:
        """D, the numbers of an embedding."""
        return self._dim

    @property
    def vectors_per_item(self) -> int:
        """Q, how many vectors an item has; where it is above 1, the best of them scores. See `VectorStore`."""
        return self._vectors_per_item

    @property
    def dtype(self) -> VectorType:
        """How vectors are stored."""
        return self._dtype

    @property
    @repeated
    def bundle(self) -> BundleReference | None:
        """The bundle that made the embeddings, None if it is not known."""
        with self._handle.reading("read") as (view, _):
            return view.bundle()

    @property
    @repeated
    def generation(self) -> int:
        """A number that every add, remove, update and compact increases, in any process."""
        with self._handle.reading("read") as (view, _):
            return view.commit.generation

    @repeated
    def __len__(self) -> int:
        """Return the number of committed items."""
        with self._handle.reading("read") as (_, state):
            return state.items

    def check_space(self, space: str) -> None:
        """Raise `SpaceMismatchError` unless `space` is the index's."""
        if space != self._space:
            check_same_space(space, self._space, uri=self.uri, bundle=self.bundle)

    def __repr__(self) -> str:
        if self._handle.is_closed:
            return f"<Index {str(self._path)!r}, closed>"
        try:
            items = f"{len(self):,} items"
        except TwinspireError as error:
            items = f"not readable: {error}"
        access = "write" if self._handle.writable else "read"
        kind = f"dim {self._dim}, {self._dtype}, space {self._space[:12]}"
        return f"<Index {str(self._path)!r}: {items}, {kind}, open to {access}>"

    def close(self) -> None:
        """Close the files and release the writer's lock. Does nothing the second time, and in a forked child."""
        self._handle.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def add(self, embeddings: NDArray[np.float32], items: Sequence[Item], *, space: str) -> AddReport:
        """Add `items` with their `embeddings`, (N, D): all of them or, if it raises, none.

        An item is skipped and reported if the index, or this call before it, has its kind, uri and content hash
        already; the same content under another uri is another item.
        """
        self.check_space(space)
        vectors, items = checked_addition(embeddings, items, self._dim, self._vectors_per_item)
        with self._handle.changing("add to") as (writer, snapshots):
            report = writer.add(vectors, items)
        snapshots.refresh(writer)
        return report

    def remove(self, ids: Iterable[int]) -> int:
        """Remove the items of these ids and return how many there were.

        An id that no item has is ignored, and one that is given twice counts once. Removes damaged items too.
        """
        ids = dict.fromkeys(checked_ids(ids))
        with self._handle.changing("remove from") as (writer, _):
            return writer.remove(ids)

    def remove_where(self, where: Filter | str) -> int:
        """Remove the items that `where` keeps and return how many there were."""
        kept = required_where(where)
        compiled(kept)  # raises before anything is locked
        with self._handle.changing("remove from") as (writer, _):
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
        """Change the given fields of an item, keep the others, and return the item.

        `embedding` is (D,) and needs its `space`. Raises `InputError` for an unknown id, for values that no item may
        have and for the kind, uri and content hash of another item.
        """
        (number,) = checked_ids([id])
        vectors = None
        if embedding is not None:
            if space is None:
                raise InputError("a new embedding needs the space it belongs to: update(id, embedding=..., space=...)")
            self.check_space(space)
            vectors = unit_vector(embedding, self._dim, self._vectors_per_item)
        given = {"uri": uri, "caption": caption, "metadata": metadata, "content_hash": content_hash}
        fields = {name: value for name, value in given.items() if value is not ...}
        with self._handle.changing("update") as (writer, _):
            return writer.update(number, vectors, fields)

    def set_bundle(self, bundle: BundleReference) -> None:
        """Record `bundle` as the origin of the embeddings, say after its folder moved. Its space is not checked."""
        check_bundle(bundle)
        with self._handle.changing("change") as (writer, _):
            writer.put_bundle(bundle)

    def compact(self) -> CompactReport:
        """Rewrite the vector file without the rows of removed and replaced vectors, if there are any.

        Needs room for a second file meanwhile. Searches go on, also in other processes.
        """
        with self._handle.changing("compact") as (writer, snapshots):
            report = writer.compact()
        snapshots.refresh(writer)
        return report

    def build(self, spec: str = "auto", *, threads: int | None = None, memory_bytes: int | None = None) -> BuildReport:
        """Build an index that searches use from then on; `ann.IndexSpec.parse` says what a spec is.

        `auto` is exact below 100,000 items, above the fastest that fits in `memory_bytes` (default: half of the free
        memory). `flat` goes back to exact search. Effort and rescore factor are then calibrated, so that searches
        without options of their own have a recall@10 of 0.95: the report says what was measured on what, and where it
        was not reached. Takes minutes for millions; searches go on meanwhile, changes wait. Raises `InputError` for an
        unknown spec and one that does not suit the vectors, `MissingDependencyError` and `ProviderError` for a GPU's
        without one.
        """
        parsed = parse_choice(spec)
        with self._handle.changing("build") as (writer, snapshots):
            return snapshots.build(writer, parsed, threads=threads, memory_bytes=memory_bytes)

    @repeated
    def predict(
        self, spec: str = "auto", *, threads: int | None = None, memory_bytes: int | None = None
    ) -> tuple[str, Prediction]:
        """Return the spec that `build` would build now, and what it is expected to take."""
        parsed = parse_choice(spec)
        with self._handle.reading("read") as (_, state):
            several = self._vectors_per_item
            if parsed is None:
                parsed = choose(several * state.items, self._dim, memory_bytes=memory_bytes)
            return str(parsed), predict(parsed, several * state.commit.rows, self._dim, threads=threads)

    def tune(self, queries: NDArray[np.float32] | None, *, space: str, recall: float = 0.95, k: int = 10) -> TuneReport:
        """Set the lowest effort with which searches find `recall` of what exact search finds for `queries`.

        `queries`, (Q, D), are some hundred queries of users; None: the held-out queries that `build` measures
        with. The setting is stored and holds for all searches that do not give their own effort; changes wait
        meanwhile. Raises `InputError` where the index is searched exactly and where the recall is out of reach.
        """
        self.check_space(space)
        vectors = None if queries is None else unit_vectors(queries, self._dim, "queries")
        k = min(checked_k(k), max(1, len(self)))
        if not 0 < recall <= 1 or (vectors is not None and len(vectors) == 0):
            queried = "" if vectors is None else f" for {len(vectors)} queries"
            raise InputError(
                f"recall {recall!r}{queried}: expected a recall above 0 and at most 1, for 1 query or more"
            )
        with self._handle.changing("tune") as (writer, snapshots):
            return snapshots.tune(writer, vectors, recall=recall, k=k)

    @repeated
    def get(self, ids: Iterable[int]) -> list[StoredItem]:
        """Return the items of these ids, in this order. Raises `InputError` for an id that no item has."""
        ids = checked_ids(ids)
        with self._handle.reading("read") as (view, state):
            items = view.items(set(ids))
            self._require_known(ids, items, state)
        return [items[number] for number in ids]

    @repeated
    def find(
        self, *, uri: str | None = None, content_hash: str | None = None, under: str | None = None
    ) -> list[StoredItem]:
        """Return the items of one uri, of one content hash, or below the folder `under`, in the order of ids.

        An item is below `under` if its uri starts with it and a slash. Exactly one of the three must be given.
        """
        name, value = checked_find(uri, content_hash, under)
        if not is_utf8(value):  # no item can have it
            return []
        with self._handle.reading("read") as (view, _):
            return view.under(value) if name == "under" else view.find(name, value)

    @repeated
    def sample_ids(self, count: int, *, seed: int = 0) -> list[int]:
        """Return the ids of `count` random items, all of them if there are fewer, in order."""
        count, seed = as_whole(count, "the number of ids", minimum=0), as_whole(seed, "the seed", minimum=0)
        with self._handle.reading("read") as (_, state):
            ids = state.ids[state.ids != DEAD]
        sample = ids if count >= len(ids) else np.random.default_rng(seed).choice(ids, count, replace=False)
        return sorted(sample.tolist())

    def items(
        self, *, kind: ItemKind | str | None = None, where: Filter | str | None = None, batch: int = 1000
    ) -> Iterator[StoredItem]:
        """Iterate over the items of `kind` that `where` keeps, in the order of ids, in one committed state.

        Later changes are not seen, not even of this process. `batch` items are read at a time. The state is held until
        the iterator is exhausted or closed, and SQLite's log grows with every change until then. Raises `InputError`
        at once, `IndexStoreError` while it iterates.
        """
        batch = min(as_whole(batch, "batch (items read at a time)", minimum=1), _LARGEST_BATCH)
        self._handle.parts()
        return self._items(checked_kind(kind), checked_where(where), batch)

    def _items(self, kind: ItemKind | None, where: Filter | None, batch: int) -> Iterator[StoredItem]:
        last = -1
        with self._handle.reading("read") as (view, _):
            while items := view.items_after(last, kind, where, batch):
                yield from items
                last = items[-1].id
                self._handle.parts()  # closed meanwhile?

    def __iter__(self) -> Iterator[StoredItem]:
        return self.items()

    @repeated
    def matching(self, ids: Iterable[int], where: Filter | str) -> set[int]:
        """Return those of `ids` whose items `where` keeps; ids without an item are left out."""
        ids = checked_ids(ids)
        kept = required_where(where)
        with self._handle.reading("read") as (view, _):
            return view.matching(ids, kept)

    @repeated
    def vectors(self, ids: Iterable[int]) -> NDArray[np.float32]:
        """Return the vectors of these ids, (N, D) or (N, Q, D) float32, as stored.

        Raises `InputError` as `get` does.
        """
        ids = checked_ids(ids)
        with self._handle.reading("read") as (view, state):
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

        `queries` is (M, D), or (M, Q, D) of images in a space of Q vectors an image: a score is the largest inner
        product of a vector of the query and one of the item. Hits are of `kind` and kept by `where`; there are fewer
        than k if the index has fewer such items. The search is exact unless `build` made an approximate index; items
        added since then are searched exactly. `effort` is nprobe of inverted lists, efSearch of a graph or the number
        of candidates of binary codes, by default as `build` or `tune` measured it. Raises `MissingDependencyError`
        without FAISS (extra `cpu`).
        """
        self.check_space(space)
        vectors = unit_vectors(queries, self._dim, "queries", self._vectors_per_item)  # (M, D) or (M, Q, D)
        k, effort, kind, where = checked_k(k), checked_effort(effort), checked_kind(kind), checked_where(where)
        with self._handle.reading("search") as (view, state):
            if state.items == 0 or len(vectors) == 0:
                return [[] for _ in vectors]
            parts = self._handle.parts()
            allowed = parts.states.allowed(view, state, kind, where)
            scores, rows = parts.snapshots.nearest(view, state, vectors, min(k, state.items), allowed, effort, kind)
            return _hits(view, state, scores, rows)

    @repeated
    def search_text(
        self, query: TextQuery, *, k: int = 10, kind: ItemKind | str | None = None, where: Filter | str | None = None
    ) -> list[Hit]:
        """Return the k best items for a keyword query over captions and file names, best first, equal scores by id.

        The score is the negated BM25 of SQLite's FTS5.
        """
        query, k, kind, where = checked_text_query(query), checked_k(k), checked_kind(kind), checked_where(where)
        with self._handle.reading("search") as (view, _):
            return view.search_text(query, k, kind, where) if query else []

    @repeated
    def count_text(self, query: TextQuery, *, at_most: int) -> int:
        """Return the number of items that `search_text` would find, counted up to `at_most`."""
        query, at_most = checked_text_query(query), checked_k(at_most)
        with self._handle.reading("search") as (view, _):
            return view.count_text(query, at_most) if query else 0

    @repeated
    def count(self, *, kind: ItemKind | str | None = None, where: Filter | str | None = None) -> int:
        """Return the number of items of `kind` that `where` keeps."""
        kind, where = checked_kind(kind), checked_where(where)
        with self._handle.reading("read") as (view, state):
            allowed = self._handle.parts().states.allowed(view, state, kind, where)
            return state.items if allowed is None else int(np.count_nonzero(allowed))

    @repeated
    def explain_filter(self, where: Filter | str) -> list[str]:
        """Return why a filter may keep nothing: keys that no item has, and comparisons with values of another type.

        Reads the metadata of all items once for each key.
        """
        kept = required_where(where)
        with self._handle.reading("read") as (view, _):
            return explain(kept, view.value_types)

    @repeated
    def known_hashes(self, hashes: Iterable[str], *, kind: ItemKind | str = ItemKind.IMAGE) -> set[str]:
        """Return those of `hashes` that are the content hash of an item of this kind."""
        wanted, kind = checked_hashes(hashes), as_member(kind, ItemKind, "a kind of item")
        with self._handle.reading("read") as (view, _):
            return view.known_hashes(wanted, kind)

    @repeated
    def stats(self) -> IndexStats:
        """Return what the index holds and its sizes."""
        with self._handle.reading("read") as (view, state):
            parts = self._handle.parts()
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
                schema_version=view.header.schema_version,
                vectors_bytes=HEADER_BYTES + state.commit.rows * parts.catalogue.row_bytes,
                catalogue_bytes=parts.catalogue.connections.size_bytes(),
                snapshot=parts.snapshots.stats(view),
                vectors_per_item=self._vectors_per_item,
            )

    def verify(self) -> VerifyReport:
        """Read everything and report what is damaged, as `verify_index` does; changes nothing."""
        self._handle.parts()
        return verify_index(self._path)

    def _require_known(self, ids: Sequence[int], known: Mapping[int, object], state: State) -> None:
        unknown = [number for number in ids if number not in known]
        if unknown:
            if np.isin(unknown, state.ids).any():
                raise IndexStoreError(f"the catalogue of the index {self._path} has lost items. {RESTORE}")
            shown = ", ".join(map(str, unknown[:5])) + (f" and {len(unknown) - 5} more" if len(unknown) > 5 else "")
            raise InputError(f"the index {self._path} has no item {shown}")


def _hits(view: View, state: State, scores: NDArray[np.float32], rows: NDArray[np.int64]) -> list[list[Hit]]:
    """Return the items at `rows` with their `scores`, (Q, n) each; a row of -1 is none."""
    is_hit = rows >= 0
    found = view.hits(state.ids[rows[is_hit]].tolist(), scores[is_hit].tolist(), rows[is_hit].tolist())
    ends = np.cumsum(is_hit.sum(axis=1)).tolist()
    return [found[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)]


if TYPE_CHECKING:
    _implements: type[VectorStore] = Index
