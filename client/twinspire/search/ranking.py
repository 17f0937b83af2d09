"""From candidates to the hits that are shown: rules, the least score, variety, what stands first."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from twinspire._arguments import is_finite, shown
from twinspire.errors import InputError
from twinspire.index import Index, ItemKind
from twinspire.search.business_rules import Boost, both
from twinspire.search.fusion import diversified
from twinspire.search.response import Mode
from twinspire.search.retrieval import MOST_PHRASE_MATCHES, Retrieval, RetrievalPlan
from twinspire.stores.filters.filter import Filter

_LEAST_DEPTH = 100
_DEPTH_FACTOR = 4


@dataclass(frozen=True, slots=True)
class Wish:
    """What is asked of a search beside the query; `Searcher.search` says what each means. Raises `InputError`."""

    k: int
    offset: int
    kind: ItemKind | None
    where: Filter | None
    mode: Mode
    boosts: tuple[Boost, ...]
    pins: tuple[Filter, ...]
    diversify: float | None
    min_score: float | None
    effort: int | None

    def __post_init__(self) -> None:
        if self.diversify is not None and not (is_finite(self.diversify) and 0 <= self.diversify <= 1):
            raise InputError(f"diversify {shown(self.diversify)}: expected 0, as they come, to 1, only unlike ones")
        if self.min_score is not None and not (is_finite(self.min_score) and -1 <= self.min_score <= 1):
            raise InputError(
                f"min_score {shown(self.min_score)}: expected -1 to 1, in every mode: the minimum similarity, which is "
                "the inner product of the query's and the item's vector"
            )

    @property
    def wanted(self) -> int:
        """How many hits there must be to give `k` from `offset` on."""
        return self.offset + self.k


@dataclass(frozen=True)
class Ranked:
    """Ids in the order in which they are shown, their scores and what these are made of.

    `before` is how many stand before these, at most the offset. `best_similarity` is that of all candidates, where a
    minimum was asked for.
    """

    mode: Mode
    ids: list[int]
    scores: dict[int, float]
    parts: dict[int, dict[str, float]]
    before: int = 0
    best_similarity: float | None = None


def rank(retrieval: Retrieval, index: Index, sides: RetrievalPlan, wish: Wish) -> Ranked:
    """Retrieve, and order by the wish."""
    depth = min(_depth(sides, wish), max(1, len(index)))
    found = retrieval.candidates(sides, depth, kind=wish.kind, where=wish.where, effort=wish.effort)
    scores, parts = dict(found.scores), {number: dict(some) for number, some in found.parts.items()}
    pinned: dict[int, None] = {}
    for pin in wish.pins:
        more = retrieval.candidates(sides, depth, kind=wish.kind, where=both(wish.where, pin), effort=wish.effort)
        for number, score in more.scores.items():
            pinned[number] = None
            # Scores of two kinds do not compare: one that was fused stands beside none that was not.
            scores.setdefault(number, score if more.mode is found.mode else 0.0)
            parts.setdefault(number, dict(more.parts[number]))["pinned"] = 1.0
    best_similarity = None
    if wish.min_score is not None:
        assert sides.query is not None
        _add_similarity(index, sides.query, parts)
        best_similarity = max((some["vector"] for some in parts.values()), default=None)
    _boost(index, wish.boosts, scores, parts)
    rest = [
        number
        for number in sorted(scores, key=lambda number: (-scores[number], number))
        if number not in pinned and (wish.min_score is None or parts[number]["vector"] >= wish.min_score)
    ]
    first = list(pinned)[: wish.wanted]
    room = wish.wanted - len(first)
    if wish.diversify and room and rest:
        rest = diversified({number: scores[number] for number in rest}, index.vectors(rest), wish.diversify, room)
    ordered = first + rest[:room]
    return Ranked(found.mode, ordered[wish.offset :], scores, parts, min(wish.offset, len(ordered)), best_similarity)


def _depth(sides: RetrievalPlan, wish: Wish) -> int:
    """Return how many candidates are retrieved from each side.

    Where the order depends on it, in a fusion and with rules, it is the same for all pages of one size as long as they
    lie within it: they are then slices of one ranking.
    """
    if sides.vector is None and wish.min_score is not None:
        return max(MOST_PHRASE_MATCHES, wish.wanted)
    if not (wish.boosts or wish.diversify) and (sides.words is None or sides.vector is None):
        return wish.wanted
    depth = max(_LEAST_DEPTH, _DEPTH_FACTOR * wish.k)
    while depth < wish.wanted:
        depth *= _DEPTH_FACTOR
    return depth


def _add_similarity(index: Index, query: NDArray[np.float32], parts: dict[int, dict[str, float]]) -> None:
    """Put the inner product with the query, (D,), to the parts of candidates that were found by words alone."""
    missing = [number for number, some in parts.items() if "vector" not in some]
    if missing:
        for number, product in zip(missing, index.vectors(missing) @ query, strict=True):
            parts[number]["vector"] = float(product)


def _boost(
    index: Index, boosts: tuple[Boost, ...], scores: dict[int, float], parts: dict[int, dict[str, float]]
) -> None:
    for boost in boosts:
        for number in index.matching(list(scores), boost.where):
            scores[number] += boost.weight
            parts[number][boost.name] = parts[number].get(boost.name, 0.0) + boost.weight
