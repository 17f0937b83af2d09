"""Grouping of near-equal hits by their vectors: of each group only the best hit stays."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from twinspire.similarity import NEAR_EQUAL, ROUNDING, similarities, unit_rows
from twinspire.stores import ItemKind, VectorStore

DEFAULT_GROUP = NEAR_EQUAL
"""Minimum cosine of two near-equal hits."""
_AT_ONCE = 256


def grouped(
    index: VectorStore, ids: Sequence[int], threshold: float, count: int, *, kind: ItemKind | None
) -> dict[int, list[int]]:
    """Return the first `count` groups of `ids`, best first: the best id of each, and the others in their order.

    An id joins the nearest of the ids that stand for a group where the cosine of their vectors is at least `threshold`,
    and starts a group otherwise; only items of one kind are in a group. `kind` is that of all ids where it is known. No
    file is read: see `twinspire.duplicates` for a comparison of pixels. Raises as `VectorStore.vectors` does.
    """
    groups: dict[int, list[int]] = {}
    heads = np.empty((0, index.dim), np.float32)  # (H, D) or (H, Q, D): the vectors of the ids that stand for a group
    head_kinds = np.empty(0, np.int64)
    for start in range(0, len(ids), _AT_ONCE):
        some = ids[start : start + _AT_ONCE]
        kinds = _kinds(index, some, kind)
        vectors = unit_rows(index.vectors(some))  # (n, D) or (n, Q, D)
        names, before = list(groups), len(groups)
        known = np.concatenate([heads.reshape(-1, *vectors.shape[1:]), vectors])
        known_kinds = np.concatenate([head_kinds, kinds])
        cosines = similarities(vectors, known)  # (n, H + n)
        cosines[kinds[:, None] != known_kinds] = -np.inf
        nearest = cosines[:, :before].argmax(axis=1) if before else np.zeros(len(some), np.int64)
        fresh: list[int] = []  # places in `known` of the heads that this block adds
        for row, number in enumerate(some):
            best, head = (cosines[row, nearest[row]], names[nearest[row]]) if before else (-np.inf, number)
            if fresh and (closest := cosines[row, fresh].max()) > best:
                best, head = closest, some[fresh[int(cosines[row, fresh].argmax())] - before]
            if best >= threshold - ROUNDING:
                groups[head].append(number)
            elif len(groups) < count:
                groups[number] = []
                fresh.append(before + row)
        places = [*range(before), *fresh]
        heads, head_kinds = known[places], known_kinds[places]
    return groups


def _kinds(index: VectorStore, ids: Sequence[int], kind: ItemKind | None) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Return a number for the kind of each id, (N,) int64."""
    if kind is not None:
        return np.zeros(len(ids), np.int64)
    numbers = {member: number for number, member in enumerate(ItemKind)}
    return np.array([numbers[item.kind] for item in index.get(ids)], np.int64)
