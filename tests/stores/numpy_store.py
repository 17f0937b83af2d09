"""A vector store in memory, of NumPy arrays and dicts: what another store has to implement, at its shortest."""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import EllipsisType, TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from stores.filter_evaluation import keeps
from twinspire._arguments import as_member, as_whole
from twinspire.errors import IndexStoreError, InputError, SpaceMismatchError
from twinspire.similarity import similarities
from twinspire.stores import (
    AddReport,
    BundleReference,
    Filter,
    Hit,
    Item,
    ItemKind,
    OpenMode,
    StoredItem,
    TextQuery,
    VectorStore,
)
from twinspire.stores.filters.explain import explain
from twinspire.stores.text_query import TextPhrase, indexed_text, is_prefix
from twinspire.stores.validation import (
    check_bundle,
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

SCHEME = "memory"
_stores: dict[str, _Content] = {}


@dataclass
class _Content:
    """What a named store holds, shared by all that have it open."""

    space: str
    dim: int
    vectors_per_item: int = 1
    bundle: BundleReference | None = None
    generation: int = 0
    next_id: int = 0
    items: dict[int, StoredItem] = field(default_factory=dict)
    vectors: dict[int, NDArray[np.float32]] = field(default_factory=dict)
    lock: threading.RLock = field(default_factory=threading.RLock)


def create_store(name: str, *, space: str, dim: int, vectors_per_item: int = 1) -> NumpyStore:
    """Make an empty store of this name, or an empty one instead of it, and open it for writing."""
    _stores[name] = _Content(space, dim, vectors_per_item)
    return NumpyStore(name, writable=True)


def open_store(uri: str, *, mode: OpenMode) -> NumpyStore:
    """Open `memory://name`."""
    name = uri.removeprefix(f"{SCHEME}://")
    if name not in _stores:
        raise IndexStoreError(f"no store named {name!r} was created")
    return NumpyStore(name, writable=mode == "write")


class NumpyStore:
    """A store over the content of one name."""

    def __init__(self, name: str, *, writable: bool) -> None:
        self.uri = f"{SCHEME}://{name}"
        self._content = _stores[name]
        self._writable = writable
        self._is_closed = False

    @property
    def space(self) -> str:
        return self._content.space

    @property
    def dim(self) -> int:
        return self._content.dim

    @property
    def vectors_per_item(self) -> int:
        return self._content.vectors_per_item

    @property
    def bundle(self) -> BundleReference | None:
        return self._open().bundle

    @property
    def generation(self) -> int:
        return self._open().generation

    def __len__(self) -> int:
        return len(self._open().items)

    def check_space(self, space: str) -> None:
        if space != self._content.space:
            raise SpaceMismatchError(f"the store {self.uri} has embeddings of another space")

    def add(self, embeddings: NDArray[np.float32], items: Sequence[Item], *, space: str) -> AddReport:
        self.check_space(space)
        vectors, items = checked_addition(embeddings, items, self.dim, self.vectors_per_item)
        content, now = self._changing(), time.time()
        added, skipped = list[int](), list[int]()
        with content.lock:
            known = {(item.kind, item.uri, item.content_hash) for item in content.items.values()}
            for position, (item, vector) in enumerate(zip(items, vectors, strict=True)):
                identity = (item.kind, item.uri, item.content_hash)
                if item.content_hash is not None and identity in known:
                    skipped.append(position)
                    continue
                known.add(identity)
                number, content.next_id = content.next_id, content.next_id + 1
                metadata = dict(item.metadata)
                content.items[number] = StoredItem(
                    number, item.uri, item.kind, item.caption, metadata, item.content_hash, now, now
                )
                content.vectors[number] = vector.copy()
                added.append(number)
            content.generation += bool(added)
        return AddReport(added, skipped)

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
        (number,) = checked_ids([id])
        vectors = None
        if embedding is not None:
            if space is None:
                raise InputError("a new embedding needs the space it belongs to")
            self.check_space(space)
            vectors = unit_vector(embedding, self.dim, self.vectors_per_item)
        given: dict[str, Any] = {"uri": uri, "caption": caption, "metadata": metadata, "content_hash": content_hash}
        content = self._changing()
        with content.lock:
            (before,) = self.get([number])
            changes = {name: value for name, value in given.items() if value is not ...}
            after = replace(before, **changes, changed_at=time.time())
            Item(after.uri, after.kind, after.caption, after.metadata, after.content_hash)
            if after.content_hash is not None:
                for other in content.items.values():
                    same = (other.kind, other.uri, other.content_hash) == (after.kind, after.uri, after.content_hash)
                    if same and other.id != number:
                        raise InputError(f"item {other.id} has this kind, uri and content hash")
            content.items[number] = after
            if vectors is not None:
                content.vectors[number] = vectors[0].copy()
            content.generation += 1
        return after

    def remove(self, ids: Iterable[int]) -> int:
        wanted = set(checked_ids(ids))
        content = self._changing()
        with content.lock:
            found = wanted & content.items.keys()
            for number in found:
                del content.items[number], content.vectors[number]
            content.generation += bool(found)
        return len(found)

    def remove_where(self, where: Filter | str) -> int:
        kept = required_where(where)
        content = self._changing()
        with content.lock:
            return self.remove([item.id for item in self._kept(None, kept)])

    def set_bundle(self, bundle: BundleReference) -> None:
        check_bundle(bundle)
        self._changing().bundle = bundle

    def get(self, ids: Iterable[int]) -> list[StoredItem]:
        wanted, items = checked_ids(ids), self._open().items
        if unknown := [number for number in wanted if number not in items]:
            raise InputError(f"the store {self.uri} has no item {unknown[0]}")
        return [items[number] for number in wanted]

    def vectors(self, ids: Iterable[int]) -> NDArray[np.float32]:
        wanted = [item.id for item in self.get(ids)]
        shape = (self.dim,) if self.vectors_per_item == 1 else (self.vectors_per_item, self.dim)
        return np.array([self._content.vectors[number] for number in wanted], np.float32).reshape(-1, *shape)

    def find(
        self, *, uri: str | None = None, content_hash: str | None = None, under: str | None = None
    ) -> list[StoredItem]:
        name, value = checked_find(uri, content_hash, under)
        items = self._kept(None, None)
        if name == "under":
            return [item for item in items if item.uri.startswith(value.rstrip("/") + "/")]
        return [item for item in items if getattr(item, name) == value]

    def known_hashes(self, hashes: Iterable[str], *, kind: ItemKind | str = ItemKind.IMAGE) -> set[str]:
        wanted, kind = set(checked_hashes(hashes)), as_member(kind, ItemKind, "a kind of item")
        return {item.content_hash for item in self._kept(kind, None) if item.content_hash in wanted}

    def items(
        self, *, kind: ItemKind | str | None = None, where: Filter | str | None = None, batch: int = 1000
    ) -> Iterator[StoredItem]:
        as_whole(batch, "batch", minimum=1)
        return iter(self._kept(checked_kind(kind), checked_where(where)))

    def count(self, *, kind: ItemKind | str | None = None, where: Filter | str | None = None) -> int:
        return len(self._kept(checked_kind(kind), checked_where(where)))

    def matching(self, ids: Iterable[int], where: Filter | str) -> set[int]:
        return set(checked_ids(ids)) & {item.id for item in self._kept(None, required_where(where))}

    def explain_filter(self, where: Filter | str) -> list[str]:
        items = self._kept(None, None)
        return explain(required_where(where), lambda keys: Counter(_types_at(keys, items)))

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
        self.check_space(space)
        vectors, k = unit_vectors(queries, self.dim, "queries", self.vectors_per_item), checked_k(k)
        checked_effort(effort)
        with self._open().lock:
            items = self._kept(checked_kind(kind), checked_where(where))
            stored = self.vectors([item.id for item in items])
        scores = similarities(vectors, stored)  # (Q, N)
        return [_best(zip(items, row.tolist(), strict=True), k) for row in scores]

    def search_text(
        self, query: TextQuery, *, k: int = 10, kind: ItemKind | str | None = None, where: Filter | str | None = None
    ) -> list[Hit]:
        query, k = checked_text_query(query), checked_k(k)
        items, scores = self._kept(checked_kind(kind), checked_where(where)), self._scores(query)
        return _best([(item, scores[item.id]) for item in items if item.id in scores], k)

    def count_text(self, query: TextQuery, *, at_most: int) -> int:
        return min(checked_k(at_most), len(self._scores(checked_text_query(query))))

    def close(self) -> None:
        self._is_closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open(self) -> _Content:
        if self._is_closed:
            raise IndexStoreError(f"the store {self.uri} is closed")
        return self._content

    def _changing(self) -> _Content:
        content = self._open()
        if not self._writable:
            raise IndexStoreError(f"the store {self.uri} was opened for reading")
        return content

    def _kept(self, kind: ItemKind | None, where: Filter | None) -> list[StoredItem]:
        content = self._open()
        with content.lock:
            items = sorted(content.items.values(), key=lambda item: item.id)
        items = [item for item in items if kind is None or item.kind is kind]
        return [item for item in items if where is None or keeps(where.condition, item) is True]

    def _scores(self, query: TextQuery) -> dict[int, float]:
        """Return the scores of the items that match, by id: BM25 with k1 = 1.2 and b = 0.75."""
        texts = {item.id: indexed_text(item.caption, item.uri).split() for item in self._kept(None, None)}
        mean = sum(map(len, texts.values())) / max(1, len(texts))
        phrases = [*query.phrases, *(phrase for term in (*query.must, *query.should) for phrase in term)]
        counts = {number: {phrase: _count(phrase, words) for phrase in phrases} for number, words in texts.items()}
        having = {phrase: sum(found[phrase] > 0 for found in counts.values()) for phrase in phrases}
        scores: dict[int, float] = {}
        for number, found in counts.items():
            required = [any(found[phrase] for phrase in term) for term in query.must]
            required += [found[phrase] > 0 for phrase in query.phrases]
            optional = any(found[phrase] for term in query.should for phrase in term)
            if all(required) and (required or optional):
                length = 1.2 * (0.25 + 0.75 * len(texts[number]) / mean)
                scores[number] = sum(
                    max(1e-6, math.log((len(texts) - having[phrase] + 0.5) / (having[phrase] + 0.5)))
                    * (found[phrase] * 2.2 / (found[phrase] + length))
                    for phrase in phrases
                )
        return scores


def _count(phrase: TextPhrase, words: Sequence[str]) -> int:
    """Return how often a phrase occurs."""
    *first, last = phrase
    size = len(phrase)
    runs = [words[start : start + size] for start in range(len(words) - size + 1)]
    return sum(
        list(run[:-1]) == first and (run[-1].startswith(last) if is_prefix(last) else run[-1] == last) for run in runs
    )


def _best(scores: Iterable[tuple[StoredItem, float]], k: int) -> list[Hit]:
    best = sorted(scores, key=lambda pair: (-pair[1], pair[0].id))[:k]
    return [Hit(item.id, item.uri, score, item.kind, item.caption, item.metadata) for item, score in best]


def _types_at(keys: tuple[str, ...], items: Iterable[StoredItem]) -> Iterator[str]:
    names = {bool: "boolean", int: "number", float: "number", str: "text", list: "list", dict: "object"}
    for item in items:
        value: Any = item.metadata
        for key in keys:
            if not isinstance(value, dict) or key not in value:
                break
            value = value[key]
        else:
            yield names.get(type(value), "null")


_implements: type[VectorStore] = NumpyStore
