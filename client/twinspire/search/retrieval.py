"""Candidates of a search: by vector, by keyword, or both, fused by their ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from twinspire._arguments import as_finite
from twinspire.errors import InputError
from twinspire.search.encoding import QueryEncoder
from twinspire.search.query import Query
from twinspire.search.response import Mode
from twinspire.search.text_query import Synonyms, keyword_query, phrase_query, rare_query
from twinspire.similarity import similarities
from twinspire.stores import Filter, Hit, ItemKind, TextQuery, VectorStore

MAX_PHRASE_MATCHES = 10_000
"""Number of items with a quoted phrase, the best by BM25, that vector search ranks."""
RANK_CONSTANT = 60
"""Constant of reciprocal rank fusion, as its authors chose it."""
_RARE_SHARE = 0.01
# BM25 is computed for every item that has a word, some 600,000 a second. Words in more items than this tell little.
_COMMON_ITEMS = 10_000
# Among a few hundred captions most words are rare by chance: with them 64 scenes lost 23 points of R@1.
_MIN_ITEMS_FOR_RARE = 500


@dataclass(frozen=True, slots=True)
class FusionWeights:
    """Weights of the rankings in a hybrid search: by vector, by all words of the query, by its rare words alone.

    Rare words are those in at most 1% of the items, where there are 500 items or more. The defaults were measured by
    `twinspire bench search`: with `keyword` as high as `vector`, queries that only describe lose; without `rare`,
    queries with names gain less.
    """

    vector: float = 1.0
    keyword: float = 0.25
    rare: float = 1.0

    def __post_init__(self) -> None:
        for weight in (self.vector, self.keyword, self.rare):
            as_finite(weight, "a weight of a fusion", minimum=0)
        if self.vector + self.keyword == 0:
            raise InputError(f"{self}: expected a weight above 0 for vector or keyword")


@dataclass(frozen=True, slots=True)
class RetrievalPlan:
    """What is searched for: `vector` by vector search, `keyword` by keyword search; None leaves that out.

    Vectors are (D,), or (Q, D) of a query with an image in a space of Q vectors an image. `required` are the quoted
    phrases, which a hit of vector search must have too, `phrases` the same as text; `rare` are the rare words of the
    query. `query` is the query's vector, also where it only serves for similarities.
    """

    vector: NDArray[np.float32] | None
    keyword: TextQuery | None
    required: TextQuery | None
    rare: TextQuery | None = None
    phrases: tuple[str, ...] = ()
    query: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class Candidates:
    """What was retrieved: scores by id, best first, the parts that they are made of, and the mode that was used."""

    mode: Mode
    scores: dict[int, float]
    parts: dict[int, dict[str, float]] = field(default_factory=dict)


class Retrieval:
    """Plans searches of one store and retrieves candidates."""

    def __init__(
        self,
        encoder: QueryEncoder,
        index: VectorStore,
        synonyms: Synonyms | None,
        stop_words: frozenset[str],
        weights: FusionWeights,
    ) -> None:
        self._encoder = encoder
        self._index = index
        self._synonyms = synonyms
        self._stop_words = stop_words
        self._weights = weights

    def plan(self, query: Query, mode: Mode, *, similarity: bool = False) -> RetrievalPlan:
        """Choose vector search, keyword search or both; encode the query where that, or `similarity`, needs it."""
        text = query.parsed
        may_be_common = mode is not Mode.KEYWORD and len(self._index) > _COMMON_ITEMS
        keyword = keyword_query(
            text,
            synonyms=self._synonyms,
            stop_words=self._stop_words,
            is_common=self._is_common if may_be_common else None,
        )
        if mode is Mode.KEYWORD and keyword is None:
            raise InputError(
                "keyword search looks for words in captions and file names: the query has none", option="mode"
            )
        has_more = any(part.text is None or part.parsed.rest for part in query.parts)
        by_keyword = keyword is not None and mode is not Mode.VECTOR
        by_vector = mode in (Mode.VECTOR, Mode.HYBRID) or (mode is Mode.AUTO and (has_more or not by_keyword))
        fuses_rare = by_keyword and by_vector and self._weights.rare > 0 and len(self._index) >= _MIN_ITEMS_FOR_RARE
        vector = self._encoder.vector(query) if by_vector or similarity else None
        return RetrievalPlan(
            vector=vector if by_vector else None,
            keyword=keyword if by_keyword else None,
            required=phrase_query(text) if by_keyword else None,
            rare=(
                rare_query(text, self._is_rare, synonyms=self._synonyms, stop_words=self._stop_words)
                if fuses_rare
                else None
            ),
            phrases=text.phrases if by_keyword else (),
            query=vector,
        )

    def candidates(
        self, plan: RetrievalPlan, depth: int, *, kind: ItemKind | None, where: Filter | None, effort: int | None
    ) -> Candidates:
        """Return the best `depth` of each ranking, fused where vector search and keyword search both find items."""
        keyword: dict[int, float] = {}
        if plan.keyword is not None:
            keyword = _scores(self._index.search_text(plan.keyword, k=depth, kind=kind, where=where))
            if plan.vector is None:
                return Candidates(Mode.KEYWORD, keyword, {id_: {"keyword": score} for id_, score in keyword.items()})
        assert plan.vector is not None
        vector = self._by_vector(plan.vector, plan.required, depth, kind, where, effort)
        if not keyword:
            return Candidates(Mode.VECTOR, vector, {id_: {"vector": score} for id_, score in vector.items()})
        rare: dict[int, float] = {}
        if plan.rare is not None:
            rare = _scores(self._index.search_text(plan.rare, k=depth, kind=kind, where=where))
        return self._fused(plan.vector, vector, keyword, rare)

    def _is_common(self, query: TextQuery) -> bool:
        limit = max(_COMMON_ITEMS, int(_RARE_SHARE * len(self._index)))
        return self._index.count_text(query, at_most=limit + 1) > limit

    def _is_rare(self, query: TextQuery) -> bool:
        limit = int(_RARE_SHARE * len(self._index))
        return 0 < self._index.count_text(query, at_most=limit + 1) <= limit

    def _by_vector(
        self,
        query: NDArray[np.float32],
        required: TextQuery | None,
        depth: int,
        kind: ItemKind | None,
        where: Filter | None,
        effort: int | None,
    ) -> dict[int, float]:
        if required is None:
            (hits,) = self._index.search(
                query[None], k=depth, space=self._encoder.space, kind=kind, where=where, effort=effort
            )
            return _scores(hits)
        matches = self._index.search_text(required, k=MAX_PHRASE_MATCHES, kind=kind, where=where)
        scores = similarities_by_id(self._index, query, [hit.id for hit in matches])
        return dict(sorted(scores.items(), key=lambda pair: (-pair[1], pair[0]))[:depth])

    def _fused(
        self, query: NDArray[np.float32], vector: dict[int, float], keyword: dict[int, float], rare: dict[int, float]
    ) -> Candidates:
        weights = self._weights
        rankings = {"vector_rank": (vector, weights.vector), "keyword_rank": (keyword, weights.keyword)}
        if rare:
            rankings["rare_rank"] = (rare, weights.rare)
        fused = reciprocal_ranks(
            [list(ids) for ids, _ in rankings.values()], [weight for _, weight in rankings.values()]
        )
        ordered = dict(sorted(fused.items(), key=lambda pair: (-pair[1], pair[0])))
        missing = [id_ for id_ in ordered if id_ not in vector]
        found = vector | similarities_by_id(self._index, query, missing)
        parts: dict[int, dict[str, float]] = {
            id_: {"fused": score, "vector": found[id_]} for id_, score in ordered.items()
        }
        for id_, score in keyword.items():
            parts[id_]["keyword"] = score
        for name, (ids, _) in rankings.items():
            for rank, id_ in enumerate(ids, start=1):
                parts[id_][name] = rank
        return Candidates(Mode.HYBRID, ordered, parts)


def similarities_by_id(index: VectorStore, query: NDArray[np.float32], ids: Sequence[int]) -> dict[int, float]:
    """Return the similarity of a query, (D,) or (Q, D), with each of these items. Raises as `VectorStore.vectors`."""
    step = max(1, MAX_PHRASE_MATCHES // index.vectors_per_item)  # bounds the memory of their vectors
    found: dict[int, float] = {}
    for start in range(0, len(ids), step):
        some = ids[start : start + step]
        scores = similarities(index.vectors(some), query[None])[:, 0]
        found.update(zip(some, scores.tolist(), strict=True))
    return found


def reciprocal_ranks(rankings: Sequence[Sequence[int]], weights: Sequence[float]) -> dict[int, float]:
    """Fuse rankings of ids, best first: the weighted sum of 1 / (60 + rank), scaled so that 1 is first in all of them.

    Cormack, Clarke and Büttcher, Reciprocal Rank Fusion Outperforms Condorcet and Individual Rank Learning Methods,
    2009.
    """
    best = sum(weights) / (RANK_CONSTANT + 1)
    fused: dict[int, float] = {}
    for ranking, weight in zip(rankings, weights, strict=True):
        for rank, id_ in enumerate(ranking, start=1):
            fused[id_] = fused.get(id_, 0.0) + weight / (RANK_CONSTANT + rank) / best
    return fused


def _scores(hits: Sequence[Hit]) -> dict[int, float]:
    return {hit.id: hit.score for hit in hits}
