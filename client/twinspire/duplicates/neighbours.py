"""Pairs of images that may be near-equal, by their vectors: the nearest neighbours of each image."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from twinspire.similarity import vectors_per_item
from twinspire.stores import Hit, ItemKind, VectorStore

NEIGHBOURS = 16
"""Nearest neighbours that are looked at of each image; of the best image of a group, as many as it has."""
_QUERIES = 1024  # vectors in one search
# A store takes vectors whose length differs by 1e-3 from 1, and may keep them as float16.
_TOLERANCE = 2.5e-3

Pairs = NDArray[np.int64]
"""(P, 2) int64, the smaller id first."""


def candidate_pairs(
    store: VectorStore,
    ids: Sequence[int],
    threshold: float,
    neighbours: int,
    *,
    only_images: bool,
    on_progress: Callable[[int, int], None],
) -> Pairs:
    """Return pairs of images with a similarity of about `threshold` or more, each once.

    For each of `ids` the `neighbours` nearest images are searched, as the store searches: approximately, where that is
    how it was built. Takes memory for the pairs, not for all similarities. With `only_images` the store has no other
    items, and filtering is left out.
    """
    pairs: list[Pairs] = [np.empty((0, 2), np.int64)]
    for start in range(0, len(ids), _QUERIES):
        some = ids[start : start + _QUERIES]
        queries = store.vectors(some)
        kind = None if only_images else ItemKind.IMAGE
        found = store.search(queries, k=neighbours + 1, space=store.space, kind=kind)  # and itself
        near: list[tuple[int, int]] = []
        for number, hits in zip(some, found, strict=True):
            others = _near(hits, threshold)
            near += [(number, other) if number < other else (other, number) for other in others if other != number]
        if near:
            pairs.append(np.unique(np.array(near, np.int64), axis=0))
        on_progress(min(start + _QUERIES, len(ids)), len(ids))
    return np.unique(np.concatenate(pairs), axis=0)


def pairs_of(store: VectorStore, number: int, threshold: float, neighbours: int) -> Pairs:
    """Return the pairs of one image with its `neighbours` nearest, as `candidate_pairs` does."""
    (hits,) = store.search(store.vectors([number]), k=neighbours + 1, space=store.space, kind=ItemKind.IMAGE)
    pairs = [sorted((number, other)) for other in _near(hits, threshold) if other != number]
    return np.array(pairs, np.int64).reshape(-1, 2)


def _near(hits: Sequence[Hit], threshold: float) -> list[int]:
    return [hit.id for hit in hits if hit.score >= threshold - _TOLERANCE]


def pair_similarities(left: NDArray[np.float32], right: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the similarity of each of `left` with the one of `right` at its place, (N,) float32.

    Both are (N, D) or (N, Q, D) of length 1; of several vectors an item the largest inner product counts.
    """
    if vectors_per_item(left) == vectors_per_item(right) == 1:
        return np.asarray(np.einsum("nd,nd->n", left.reshape(len(left), -1), right.reshape(len(right), -1)), np.float32)
    return np.asarray(np.matmul(left, right.transpose(0, 2, 1)).max(axis=(1, 2)), np.float32)
