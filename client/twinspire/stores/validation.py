"""Checks of the arguments of a store's methods."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from twinspire._arguments import as_list, as_member, as_whole, require_text, shown
from twinspire.errors import EmbeddingError, InputError
from twinspire.stores.filters.filter import Filter
from twinspire.stores.items import BundleReference, Item, ItemKind
from twinspire.stores.text_query import TextQuery

_LARGEST_ID = 2**63 - 1  # SQLite's
_NORM_TOLERANCE = 1e-3
_LARGEST_K = 2**40  # more items than any store has; a larger k would overflow int64 in FAISS


def checked_ids(ids: Iterable[int]) -> list[int]:
    """Return `ids` as a list. Raises `InputError` unless they are whole numbers from 0 to 2**63 - 1."""
    return [as_whole(number, "an id", minimum=0, maximum=_LARGEST_ID) for number in as_list(ids, "ids")]


def checked_k(k: int) -> int:
    """Return `k`, at most 2**40. Raises `InputError` unless it is a whole number from 1 up."""
    return min(as_whole(k, "k (the number of hits)", minimum=1), _LARGEST_K)


def checked_effort(effort: int | None) -> int | None:
    """Return `effort`, at most 2**40. Raises `InputError` unless it is None or a whole number from 1 up."""
    return None if effort is None else min(as_whole(effort, "effort", minimum=1), _LARGEST_K)


def checked_kind(kind: ItemKind | str | None) -> ItemKind | None:
    """Return the kind of item, which may be given by name. Raises `InputError` for another value."""
    return None if kind is None else as_member(kind, ItemKind, "kind")


def checked_where(where: Filter | str | None) -> Filter | None:
    """Return the filter, parsed if it is given as text. Raises `InputError` for anything else."""
    return None if where is None else required_where(where)


def check_mode(mode: object) -> None:
    """Raise `InputError` for anything but the modes in which a store is opened."""
    if mode not in ("read", "write"):
        raise InputError(f"an index is opened with mode 'read' or 'write', got {shown(mode)}")


def check_bundle(bundle: BundleReference) -> None:
    """Raise `InputError` for anything but a `BundleReference`."""
    if not isinstance(bundle, BundleReference):
        raise InputError(f"the bundle must be a BundleReference(name, path), got {bundle!r}")


def required_where(where: Filter | str) -> Filter:
    """Return the filter as `checked_where` does. Raises `InputError` for None."""
    if isinstance(where, str):
        return Filter.parse(where)
    if not isinstance(where, Filter):
        raise InputError(f"a filter must be a Filter or its text, got {shown(where)}")
    return where


def checked_text_query(query: TextQuery) -> TextQuery:
    """Return the keyword query. Raises `InputError` for anything but a `TextQuery`."""
    if not isinstance(query, TextQuery):
        raise InputError(f"a text query must be a TextQuery, such as TextQuery.any_of('red car'), got {shown(query)}")
    return query


def checked_addition(
    embeddings: NDArray[np.float32], items: Sequence[Item], dim: int
) -> tuple[NDArray[np.float32], list[Item]]:
    """Return the arguments of `add`: unit vectors, (N, D), and as many items. Raises `EmbeddingError`, `InputError`."""
    vectors = unit_vectors(embeddings, dim, "embeddings to add")
    items = as_list(items, "items")
    for position, item in enumerate(items):
        if not isinstance(item, Item):
            raise InputError(f"expected a list of Item, got {shown(item)} at position {position}")
    if len(items) != len(vectors):
        raise InputError(f"every item needs one embedding: got {len(items)} items and {len(vectors)} embeddings")
    return vectors, items


def unit_vector(embedding: object, dim: int) -> NDArray[np.float32]:
    """Return the new embedding of an item, (D,) or (1, D), as (1, D). Raises `EmbeddingError` and `InputError`."""
    row = embedding[None] if isinstance(embedding, np.ndarray) and embedding.ndim == 1 else embedding
    vectors = unit_vectors(row, dim, "the new embedding, as a row,")
    if len(vectors) != 1:
        raise InputError(f"an item has one embedding, got {len(vectors)}")
    return vectors


def checked_find(uri: str | None, content_hash: str | None, under: str | None) -> tuple[str, str]:
    """Return the name and the value of the one argument that `find` got. Raises `InputError` for none and several."""
    given = {"uri": uri, "content_hash": content_hash, "under": under}
    (name, value), *others = [pair for pair in given.items() if pair[1] is not None] or [("", None)]
    if value is None or others:
        raise InputError(f"find takes one of {', '.join(given)}, got {1 + len(others) if value else 'none'}")
    if not isinstance(value, str):
        raise InputError(f"find takes {name} as a str, got {shown(value)}")
    return name, value


def checked_hashes(hashes: Iterable[str]) -> list[str]:
    """Return content hashes as a list. Raises `InputError` for anything but a list of str."""
    return [require_text(text, "a content hash") for text in as_list(hashes, "content hashes")]


def unit_vectors(embeddings: object, dim: int, what: str) -> NDArray[np.float32]:
    """Return `embeddings` as contiguous (N, D) float32, L2-normalised within 1e-3.

    Raises `EmbeddingError`, which names the position of the first bad vector, for anything else.
    """
    expected = f"{what} must be a numpy array of shape (N, {dim}), float32, every vector of length 1"
    if not isinstance(embeddings, np.ndarray):
        raise EmbeddingError(f"{expected}; got {type(embeddings).__name__}")
    if embeddings.ndim != 2 or embeddings.shape[1] != dim or embeddings.dtype != np.float32:
        raise EmbeddingError(f"{expected}; got shape {embeddings.shape}, {embeddings.dtype}")
    with np.errstate(over="ignore", invalid="ignore"):
        norms = np.linalg.norm(embeddings, axis=1)
        bad = np.flatnonzero(~(np.abs(norms - 1) <= _NORM_TOLERANCE))  # so written that NaN is bad
    if bad.size:
        position = int(bad[0])
        finite = bool(np.isfinite(embeddings[position]).all())
        found = f"has length {norms[position]:.6g}" if finite else "holds a number that is not finite"
        raise EmbeddingError(
            f"{expected}; the vector at position {position} {found} ({bad.size} of {len(norms)} are invalid)"
        )
    return np.ascontiguousarray(embeddings)
