"""From candidates to the hits that are shown: rules, the least score, variety, what stands first."""

from __future__ import annotations

import math
from dataclasses import dataclass

from twinspire.errors import InputError
from twinspire.index import Index, ItemKind
from twinspire.index.where import Where
from twinspire.queries.answer import Mode
from twinspire.queries.fusion import diversified
from twinspire.queries.retrieval import Retrieval, Sides
from twinspire.queries.rules import Boost, both

_LEAST_DEPTH = 100
_DEPTH_FACTOR = 4


@dataclass(frozen=True, slots=True)
class Wish:
    """What is asked of a search beside the query; `Searcher.search` says what each means. Raises `InputError`."""

    k: int
    kind: ItemKind | None
    where: Where | None
    mode: Mode
    boosts: tuple[Boost, ...]
    pins: tuple[Where, ...]
    diversify: float | None
    min_score: float | None
    effort: int | None

    def __post_init__(self) -> None:
        if not isinstance(self.k, int) or isinstance(self.k, bool) or self.k < 1:
            raise InputError(f"k is the number of hits, 1 or more, got {self.k!r}")
        if self.kind is not None and not isinstance(self.kind, ItemKind):
            raise InputError(f"a search's kind is an ItemKind or None, got {self.kind!r}")
        if self.diversify is not None and not 0 <= self.diversify <= 1:
            raise InputError(f"diversify {self.diversify!r}: expected 0, as they come, to 1, only unlike ones")
        if self.min_score is not None and not math.isfinite(self.min_score):
            raise InputError(f"min_score {self.min_score!r}: expected a finite number")


@dataclass(frozen=True)
class Ranked:
    """Ids in the order in which they are shown, their scores and what these are made of."""

    mode: Mode
    ids: list[int]
    scores: dict[int, float]
    parts: dict[int, dict[str, float]]


def rank(retrieval: Retrieval, index: Index, sides: Sides, wish: Wish) -> Ranked:
    """Retrieve, and order by the wish."""
    is_plain = not (wish.boosts or wish.diversify) and (sides.words is None or sides.vector is None)
    depth = min(wish.k if is_plain else max(_LEAST_DEPTH, _DEPTH_FACTOR * wish.k), max(1, len(index)))
    found = retrieval.candidates(sides, depth, kind=wish.kind, where=wish.where, effort=wish.effort)
    scores, parts = dict(found.scores), {number: dict(some) for number, some in found.parts.items()}
    pinned: dict[int, None] = {}
    for pin in wish.pins:
        more = retrieval.candidates(
            sides, min(wish.k, depth), kind=wish.kind, where=both(wish.where, pin), effort=wish.effort
        )
        for number, score in more.scores.items():
            pinned[number] = None
            # Scores of two kinds do not compare: one that was fused stands beside none that was not.
            scores.setdefault(number, score if more.mode is found.mode else 0.0)
            parts.setdefault(number, dict(more.parts[number]))["pinned"] = 1.0
    _boost(index, wish.boosts, scores, parts)
    rest = [
        number
        for number in sorted(scores, key=lambda number: (-scores[number], number))
        if number not in pinned and (wish.min_score is None or scores[number] >= wish.min_score)
    ]
    first = list(pinned)[: wish.k]
    room = wish.k - len(first)
    if wish.diversify and room and rest:
        rest = diversified({number: scores[number] for number in rest}, index.vectors(rest), wish.diversify, room)
    return Ranked(found.mode, first + rest[:room], scores, parts)


def _boost(
    index: Index, boosts: tuple[Boost, ...], scores: dict[int, float], parts: dict[int, dict[str, float]]
) -> None:
    for boost in boosts:
        for number in index.matching(list(scores), boost.where):
            scores[number] += boost.weight
            parts[number][boost.name] = parts[number].get(boost.name, 0.0) + boost.weight
