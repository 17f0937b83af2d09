"""Checks of the arguments of a store's methods."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from twinspire._arguments import as_list, as_member, as_whole, require_text, shown
from twinspire._dims import split_space
from twinspire.errors import EmbeddingError, InputError, SpaceMismatchError
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


def check_same_space(given: str, own: str, *, uri: str, bundle: BundleReference | None) -> None:
    """Raise `SpaceMismatchError`, which says what to do, unless `given` is the `own` space of the store at `uri`."""
    if given == own:
        return
    (given_model, given_dim), (model, dim) = split_space(given), split_space(own)
    if given_model == model:
        found = "whole ones" if given_dim is None else f"cut to {given_dim} numbers"
        kept = "whole" if dim is None else f"cut to {dim} numbers"
        remedy = "Leave dim (--dim) out" if dim is None else f"Pass dim={dim} (--dim {dim})"
        raise SpaceMismatchError(
            f"the index {uri} has embeddings that are {kept}, and these are {found}, of the same model: embeddings of "
            f"two lengths cannot be compared. {remedy}, or create another index",
            expected=own,
            found=given,
        )
    raise SpaceMismatchError(
        f"the index {uri} was made with {bundle or 'a bundle that it does not record'}: embeddings of another space "
        "cannot be compared with its own. Use the bundle that made it or a bundle quantized from it, or create "
        "another index",
        expected=own,
        found=given,
    )


def checked_addition(
    embeddings: NDArray[np.float32], items: Sequence[Item], dim: int, vectors_per_item: int = 1
) -> tuple[NDArray[np.float32], list[Item]]:
    """Return the arguments of `add`: unit vectors and as many items. Raises `EmbeddingError`, `InputError`.

    The vectors are (N, D), or (N, Q, D) in a store of Q vectors an item; those of texts, (N, D), are repeated then.
    """
    vectors = unit_vectors(embeddings, dim, "embeddings to add", vectors_per_item)
    items = as_list(items, "items")
    for position, item in enumerate(items):
        if not isinstance(item, Item):
            raise InputError(f"expected a list of Item, got {shown(item)} at position {position}")
    if len(items) != len(vectors):
        raise InputError(f"every item needs one embedding: got {len(items)} items and {len(vectors)} embeddings")
    if vectors_per_item > 1 and vectors.ndim == 2:
        image = next((position for position, item in enumerate(items) if item.kind is not ItemKind.TEXT), None)
        if image is not None:
            raise EmbeddingError(
                f"the image at position {image} has one vector: expected {vectors_per_item}, (N, {vectors_per_item}, "
                f"{dim}), as the store's space has them; only texts have one"
            )
        vectors = _repeated(vectors, vectors_per_item)
    return vectors, items


def unit_vector(embedding: object, dim: int, vectors_per_item: int = 1) -> NDArray[np.float32]:
    """Return the new embedding of an item, (D,) or (1, D), as (1, D). Raises `EmbeddingError` and `InputError`.

    In a store of Q vectors an item it may be (Q, D) or (1, Q, D), and is returned as (1, Q, D); one vector is repeated.
    """
    row = embedding
    if isinstance(embedding, np.ndarray):
        is_item = vectors_per_item > 1 and embedding.ndim == 2 and len(embedding) == vectors_per_item
        row = embedding[None] if embedding.ndim == 1 or is_item else embedding
    vectors = unit_vectors(row, dim, "the new embedding, as a row,", vectors_per_item)
    if len(vectors) != 1:
        raise InputError(f"an item has one embedding, got {len(vectors)}")
    return vectors if vectors_per_item == 1 or vectors.ndim == 3 else _repeated(vectors, vectors_per_item)


def _repeated(vectors: NDArray[np.float32], times: int) -> NDArray[np.float32]:
    """Return (N, D) vectors as (N, Q, D): a maximum over equal numbers is the number."""
    return np.repeat(vectors[:, None], times, axis=1)


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


def unit_vectors(embeddings: object, dim: int, what: str, vectors_per_item: int = 1) -> NDArray[np.float32]:
    """Return `embeddings` as contiguous (N, D) float32, L2-normalised within 1e-3.

    In a store of Q vectors an item they may be (N, Q, D) too. Raises `EmbeddingError`, which names the position of the
    first bad vector, for anything else.
    """
    several = f" or (N, {vectors_per_item}, {dim})" if vectors_per_item > 1 else ""
    expected = f"{what} must be a numpy array of shape (N, {dim}){several}, float32, every vector of length 1"
    if not isinstance(embeddings, np.ndarray):
        raise EmbeddingError(f"{expected}; got {type(embeddings).__name__}")
    shapes = [(dim,)] if vectors_per_item == 1 else [(dim,), (vectors_per_item, dim)]
    if embeddings.shape[1:] not in shapes or embeddings.dtype != np.float32:
        raise EmbeddingError(f"{expected}; got shape {embeddings.shape}, {embeddings.dtype}")
    with np.errstate(over="ignore", invalid="ignore"):
        norms = np.linalg.norm(embeddings, axis=-1)  # (N,) or (N, Q)
        bad = np.argwhere(~(np.abs(norms - 1) <= _NORM_TOLERANCE))  # so written that NaN is bad
    if bad.size:
        place = tuple(bad[0])
        finite = bool(np.isfinite(embeddings[place]).all())
        found = f"has length {norms[place]:.6g}" if finite else "holds a number that is not finite"
        raise EmbeddingError(
            f"{expected}; the vector at position {place[0]} {found} ({len(bad)} of {norms.size} are invalid)"
        )
    return np.ascontiguousarray(embeddings)
