"""The two sides of a search: what vectors find, what words find, and both as one list."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from twinspire._arguments import is_finite, shown
from twinspire.errors import InputError
from twinspire.index import Index, ItemKind
from twinspire.search.encoding import QueryEncoder
from twinspire.search.fusion import reciprocal_ranks
from twinspire.search.query import Query
from twinspire.search.response import Mode
from twinspire.search.text_query import Synonyms, expression, rare, required
from twinspire.stores.filters.filter import Filter
from twinspire.stores.text_query import TextQuery

MOST_PHRASE_MATCHES = 10_000
"""Of the items that have a quoted phrase, so many of the best by BM25 are seen by the vectors' side."""
_RARE_SHARE = 0.01
# BM25 is computed of every item that has a word, some 600,000 a second. What more items have than this tells little.
_COMMON_ITEMS = 10_000
# Among a few hundred captions most words are rare by chance: with them 64 scenes lost 23 points of R@1.
_LEAST_ITEMS_FOR_RARE = 500


@dataclass(frozen=True, slots=True)
class FusionWeights:
    """What each ranking counts in a fusion: by vectors, by all words of the query, and by its rare words alone.

    Rare words are those in at most 1% of the items, where there are 500 items or more. The defaults were measured by
    `twinspire bench search`: with all words as heavy as vectors, queries that only describe lose by it; without the
    rare ones names gain less.
    """

    vector: float = 1.0
    words: float = 0.25
    rare: float = 1.0

    def __post_init__(self) -> None:
        for weight in (self.vector, self.words, self.rare):
            if not (is_finite(weight) and weight >= 0):
                raise InputError(f"the weights of a fusion: expected finite numbers of 0 or more, got {shown(weight)}")
        if self.vector + self.words == 0:
            raise InputError(f"{self}: expected a weight above 0 for vectors or words")


@dataclass(frozen=True, slots=True)
class RetrievalPlan:
    """What either side is asked for: the vector (D,), the keyword queries; None where a side is not asked.

    `query` is the query's vector (D,), also where only the similarity to it is wanted.
    """

    vector: NDArray[np.float32] | None
    words: TextQuery | None
    required: TextQuery | None
    rare: TextQuery | None = None
    phrases: tuple[str, ...] = ()
    query: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class Candidates:
    """What was retrieved: scores by id, best first, what they were made of, and the side that was asked."""

    mode: Mode
    scores: dict[int, float]
    parts: dict[int, dict[str, float]] = field(default_factory=dict)


class Retrieval:
    """Asks one index."""

    def __init__(
        self,
        encoder: QueryEncoder,
        index: Index,
        synonyms: Synonyms | None,
        stop_words: frozenset[str],
        weights: FusionWeights,
    ) -> None:
        self._encoder = encoder
        self._index = index
        self._synonyms = synonyms
        self._stop_words = stop_words
        self._weights = weights

    def sides(self, query: Query, mode: Mode, *, similarity: bool = False) -> RetrievalPlan:
        """Route a query: decide which sides are asked, and encode it where that, or `similarity`, takes a vector."""
        wording = query.wording
        may_be_common = mode is not Mode.WORDS and len(self._index) > _COMMON_ITEMS
        words = expression(
            wording,
            synonyms=self._synonyms,
            stop_words=self._stop_words,
            is_common=self._is_common if may_be_common else None,
        )
        if mode is Mode.WORDS and words is None:
            raise InputError("the mode words looks for words in captions and file names: the query has none")
        says_more = any(part.text is None or part.wording.rest for part in query.parts)
        by_words = words is not None and mode is not Mode.VECTOR
        by_vector = mode in (Mode.VECTOR, Mode.HYBRID) or (mode is Mode.AUTO and (says_more or not by_words))
        both = by_words and by_vector and self._weights.rare > 0 and len(self._index) >= _LEAST_ITEMS_FOR_RARE
        encoded = self._encoder.vector(query) if by_vector or similarity else None
        return RetrievalPlan(
            encoded if by_vector else None,
            words if by_words else None,
            required(wording) if by_words else None,
            rare(wording, self._is_rare, synonyms=self._synonyms, stop_words=self._stop_words) if both else None,
            wording.phrases if by_words else (),
            encoded,
        )

    def candidates(
        self, sides: RetrievalPlan, depth: int, *, kind: ItemKind | None, where: Filter | None, effort: int | None
    ) -> Candidates:
        """Return the first `depth` of what the sides find, fused where both find something."""
        words: dict[int, float] = {}
        if sides.words is not None:
            hits = self._index.search_text(sides.words, k=depth, kind=kind, where=where)
            words = {hit.id: hit.score for hit in hits}
            if sides.vector is None:
                return Candidates(Mode.WORDS, words, {number: {"words": score} for number, score in words.items()})
        assert sides.vector is not None
        vector = self._by_vector(sides.vector, sides.required, depth, kind, where, effort)
        if not words:
            return Candidates(Mode.VECTOR, vector, {number: {"vector": score} for number, score in vector.items()})
        rare_words: dict[int, float] = {}
        if sides.rare is not None:
            hits = self._index.search_text(sides.rare, k=depth, kind=kind, where=where)
            rare_words = {hit.id: hit.score for hit in hits}
        return self._fused(sides.vector, vector, words, rare_words)

    def _is_common(self, query: TextQuery) -> bool:
        most = max(_COMMON_ITEMS, int(_RARE_SHARE * len(self._index)))
        return self._index.count_text(query, at_most=most + 1) > most

    def _is_rare(self, query: TextQuery) -> bool:
        most = int(_RARE_SHARE * len(self._index))
        return 0 < self._index.count_text(query, at_most=most + 1) <= most

    def _by_vector(
        self,
        query: NDArray[np.float32],
        must: TextQuery | None,
        depth: int,
        kind: ItemKind | None,
        where: Filter | None,
        effort: int | None,
    ) -> dict[int, float]:
        if must is None:
            (hits,) = self._index.search(
                query[None], k=depth, space=self._encoder.space, kind=kind, where=where, effort=effort
            )
            return {hit.id: hit.score for hit in hits}
        found = self._index.search_text(must, k=MOST_PHRASE_MATCHES, kind=kind, where=where)
        scores = self._inner_products(query, [hit.id for hit in found])
        best = sorted(scores.items(), key=lambda pair: (-pair[1], pair[0]))
        return dict(best[:depth])

    def _fused(
        self, query: NDArray[np.float32], vector: dict[int, float], words: dict[int, float], rare: dict[int, float]
    ) -> Candidates:
        weights = self._weights
        rankings = {"vector rank": (vector, weights.vector), "words rank": (words, weights.words)}
        if rare:
            rankings["rare words rank"] = (rare, weights.rare)
        fused = reciprocal_ranks(
            [list(ids) for ids, _ in rankings.values()], [weight for _, weight in rankings.values()]
        )
        ordered = dict(sorted(fused.items(), key=lambda pair: (-pair[1], pair[0])))
        inner = vector | self._inner_products(query, [number for number in ordered if number not in vector])
        parts: dict[int, dict[str, float]] = {
            number: {"fused": score, "vector": inner[number]} for number, score in ordered.items()
        }
        for number, score in words.items():
            parts[number]["words"] = score
        for name, (ids, _) in rankings.items():
            for rank, number in enumerate(ids, start=1):
                parts[number][name] = rank
        return Candidates(Mode.HYBRID, ordered, parts)

    def _inner_products(self, query: NDArray[np.float32], ids: Sequence[int]) -> dict[int, float]:
        if not ids:
            return {}
        products = self._index.vectors(ids) @ query  # (N,)
        return dict(zip(ids, map(float, products), strict=True))
