"""Ranking of candidates: boosts, pins, the minimum similarity, groups of near-equal hits and diversification."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from twinspire.search.grouping import grouped
from twinspire.search.request import Boost, SearchRequest
from twinspire.search.response import Mode
from twinspire.search.retrieval import MAX_PHRASE_MATCHES, Retrieval, RetrievalPlan, similarities_by_id
from twinspire.similarity import similarities
from twinspire.stores import Filter, VectorStore

MAX_GROUPED = 10_000
"""Number of hits that a grouped search ranks at most to fill a page."""
_MIN_DEPTH = 100
_DEPTH_FACTOR = 4


@dataclass(frozen=True)
class Ranked:
    """The ids of a page of hits in order, and the scores and score parts of all candidates.

    `before` is the number of hits before the page, at most the offset. `best_similarity` is the best of all
    candidates, where a minimum was asked for. `similar` are the near-equal candidates of a hit, in a grouped search;
    `groups_of` is the number of candidates that it ended at, where there may be more groups in the rest.
    """

    mode: Mode
    ids: list[int]
    scores: dict[int, float]
    parts: dict[int, dict[str, float]]
    before: int = 0
    best_similarity: float | None = None
    similar: Mapping[int, list[int]] = field(default_factory=dict)
    groups_of: int | None = None


@dataclass(frozen=True)
class _Ordered:
    """All candidates in order: those that are pinned, then the others, best first; and whether there may be more."""

    mode: Mode
    pinned: list[int]
    others: list[int]
    scores: dict[int, float]
    parts: dict[int, dict[str, float]]
    best_similarity: float | None
    has_more: bool


def rank(retrieval: Retrieval, index: VectorStore, plan: RetrievalPlan, request: SearchRequest) -> Ranked:
    """Retrieve candidates and order them as the request asks."""
    size = max(1, len(index))
    depth = min(_depth(plan, request), size)
    found = _ordered(retrieval, index, plan, request, depth)
    if request.group is None:
        return _page(index, request, found, {})
    wanted = max(depth, request.depth) if request.diversify else request.depth
    most = min(size, max(MAX_GROUPED, depth))
    while True:
        groups = grouped(index, found.pinned + found.others, request.group, wanted, kind=request.kind)
        if len(groups) >= request.depth or not found.has_more or depth >= most:
            break
        depth = min(depth * _DEPTH_FACTOR, most)
        found = _ordered(retrieval, index, plan, request, depth)
    is_cut = len(groups) < request.depth and found.has_more and depth < size
    return _page(index, request, found, groups, groups_of=depth if is_cut else None)


def _ordered(
    retrieval: Retrieval, index: VectorStore, plan: RetrievalPlan, request: SearchRequest, depth: int
) -> _Ordered:
    """Return the best `depth` candidates of each ranking in the order of boosts and pins."""
    kind, effort = request.kind, request.effort
    candidates = retrieval.candidates(plan, depth, kind=kind, where=request.where, effort=effort)
    scores = dict(candidates.scores)
    parts = {id_: dict(own) for id_, own in candidates.parts.items()}
    pinned: dict[int, None] = {}
    for pin in request.pins:
        where_and_pin = pin if request.where is None else Filter.all_of(request.where, pin)
        more = retrieval.candidates(plan, depth, kind=kind, where=where_and_pin, effort=effort)
        for id_, score in more.scores.items():
            pinned[id_] = None
            # Scores of different modes do not compare, such as a fused one and a similarity.
            scores.setdefault(id_, score if more.mode is candidates.mode else 0.0)
            parts.setdefault(id_, dict(more.parts[id_]))["pinned"] = 1.0
    best_similarity = None
    has_more = len(candidates.scores) >= depth
    if request.min_score is not None:
        assert plan.query is not None
        _add_similarity(index, plan.query, parts)
        best_similarity = max((own["vector"] for own in parts.values()), default=None)
        if candidates.mode is Mode.VECTOR and has_more:  # the rest is less similar than the last one
            has_more = min(candidates.scores.values()) >= request.min_score
    _boost(index, request.boosts, scores, parts)
    others = [
        id_
        for id_ in sorted(scores, key=lambda id_: (-scores[id_], id_))
        if id_ not in pinned and (request.min_score is None or parts[id_]["vector"] >= request.min_score)
    ]
    return _Ordered(candidates.mode, list(pinned), others, scores, parts, best_similarity, has_more)


def _page(
    index: VectorStore,
    request: SearchRequest,
    found: _Ordered,
    groups: Mapping[int, list[int]],
    *,
    groups_of: int | None = None,
) -> Ranked:
    """Return the page of hits; of a grouped search the best hit of each of `groups`."""
    pinned, others, scores = found.pinned, found.others, found.scores
    if request.group is not None:
        pinned, others = [id_ for id_ in pinned if id_ in groups], [id_ for id_ in others if id_ in groups]
    first = pinned[: request.depth]
    room = request.depth - len(first)
    if request.diversify and room and others:
        others = diversified({id_: scores[id_] for id_ in others}, index.vectors(others), request.diversify, room)
    ordered = first + others[:room]
    return Ranked(
        found.mode,
        ordered[request.offset :],
        scores,
        found.parts,
        before=min(request.offset, len(ordered)),
        best_similarity=found.best_similarity,
        similar=groups,
        groups_of=groups_of,
    )


def diversified(scores: Mapping[int, float], vectors: NDArray[np.float32], diversity: float, count: int) -> list[int]:
    """Choose `count` ids one after the other by maximal marginal relevance (MMR).

    Each next one has the largest (1 - diversity) * relevance - diversity * (largest inner product with those chosen);
    relevance is the score, scaled to 0 to 1. `vectors` is (N, D) or (N, Q, D) float32, L2-normalised, in the order of
    `scores`.
    Carbonell and Goldstein, The Use of MMR, 1998.
    """
    ids = list(scores)
    relevance = np.array([scores[id_] for id_ in ids])
    spread = relevance.max() - relevance.min()
    relevance = (relevance - relevance.min()) / spread if spread > 0 else np.ones(len(ids))
    nearest = np.full(len(ids), -1.0)  # the largest inner product with a chosen one
    chosen: list[int] = []
    is_left = np.ones(len(ids), dtype=bool)
    for _ in range(min(count, len(ids))):
        value = relevance if not chosen else (1 - diversity) * relevance - diversity * nearest
        best = int(np.argmax(np.where(is_left, value, -np.inf)))
        chosen.append(ids[best])
        is_left[best] = False
        nearest = np.maximum(nearest, similarities(vectors, vectors[best : best + 1])[:, 0])
    return chosen


def _depth(plan: RetrievalPlan, request: SearchRequest) -> int:
    """Return how many candidates to retrieve from each ranking.

    Where the order of hits depends on it, in a fusion and with boosts, groups or diversification, all pages of one size
    that lie within it get the same depth: they are then slices of one ranking.
    """
    if plan.vector is None and request.min_score is not None:
        return max(MAX_PHRASE_MATCHES, request.depth)
    if not (request.boosts or request.diversify or request.group is not None) and (
        plan.keyword is None or plan.vector is None
    ):
        return request.depth
    depth = max(_MIN_DEPTH, _DEPTH_FACTOR * request.k)
    while depth < request.depth:
        depth *= _DEPTH_FACTOR
    return depth


def _add_similarity(index: VectorStore, query: NDArray[np.float32], parts: dict[int, dict[str, float]]) -> None:
    """Add the similarity with the query to the parts of candidates that keyword search alone found."""
    missing = [id_ for id_, own in parts.items() if "vector" not in own]
    for id_, similarity in similarities_by_id(index, query, missing).items():
        parts[id_]["vector"] = similarity


def _boost(
    index: VectorStore, boosts: tuple[Boost, ...], scores: dict[int, float], parts: dict[int, dict[str, float]]
) -> None:
    for boost in boosts:
        for id_ in index.matching(list(scores), boost.where):
            scores[id_] += boost.weight
            parts[id_][boost.name] = parts[id_].get(boost.name, 0.0) + boost.weight
