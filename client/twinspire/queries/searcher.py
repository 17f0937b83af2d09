"""Searching an index with a model: vectors and words, filters, rules, variety, and what is kept of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twinspire.errors import InputError
from twinspire.index import Index, ItemKind
from twinspire.index.where import Where
from twinspire.queries.answer import Answer, Found, Mode
from twinspire.queries.cache import CacheStats, LruCache
from twinspire.queries.calibration import Calibration
from twinspire.queries.encoding import Encoder, QueryEncoder
from twinspire.queries.phrases import STOP_WORDS, Synonyms
from twinspire.queries.query import Query
from twinspire.queries.ranking import Ranked, Wish, rank
from twinspire.queries.retrieval import FusionWeights, Retrieval, Sides
from twinspire.queries.rules import Boost
from twinspire.queries.templates import Templates

_ATTEMPTS = 3
EMBEDDINGS_KEPT = 10_000
ANSWERS_KEPT = 1_000


@dataclass(frozen=True, slots=True)
class SearcherStats:
    """How often the embeddings of queries' parts, and whole answers, were known."""

    embeddings: CacheStats
    answers: CacheStats


class Searcher:
    """Answers queries over one index with one client; neither is closed here. May be used from several threads.

    `templates` say a text in several ways for the model, `synonyms` add words for captions and file names,
    `stop_words` are not looked for there. `weights` are what the sides count in a fusion. `calibration` gives
    probabilities; without one the bundle's is used where it has a bias. `cache=False` keeps nothing;
    `embeddings` is a cache to share with other searchers. Raises `SpaceMismatchError` where client and index are of
    different spaces.
    """

    def __init__(
        self,
        client: Encoder,
        index: Index,
        *,
        templates: Templates | None = None,
        synonyms: Synonyms | None = None,
        stop_words: frozenset[str] = STOP_WORDS,
        weights: FusionWeights | None = None,
        calibration: Calibration | None = None,
        cache: bool = True,
        embeddings: LruCache[NDArray[np.float32]] | None = None,
    ) -> None:
        index.check_space(client.space)
        self._index = index
        self._embeddings = embeddings or LruCache[NDArray[np.float32]](EMBEDDINGS_KEPT if cache else 0)
        self._answers: LruCache[Answer] = LruCache(ANSWERS_KEPT if cache else 0)
        encoder = QueryEncoder(client, templates=templates, cache=self._embeddings)
        self._retrieval = Retrieval(encoder, index, synonyms, stop_words, weights or FusionWeights())
        self._calibration = calibration or _calibration_of(client)

    def search(
        self,
        query: Query | str,
        k: int = 10,
        *,
        kind: ItemKind | None = None,
        where: Where | str | None = None,
        mode: Mode | str = Mode.AUTO,
        boosts: Sequence[Boost | str] = (),
        pins: Sequence[Where | str] = (),
        diversify: float | None = None,
        min_score: float | None = None,
        effort: int | None = None,
    ) -> Answer:
        """Return the k best hits.

        A `query` that is a str is read as `Query.parse` does. Mode `auto` asks the words' side for quoted phrases, both
        sides for other text, and the vectors' side alone for pictures and where no word of the query is anywhere.
        Quoted phrases must be there, also for the vectors' side. `boosts` add to the score of what they keep, after
        retrieval, among the first hits (4 k, at least 100); `pins` are filters whose items stand first, wherever they
        ranked. `diversify` from 0 to 1 trades relevance for unlikeness. `min_score` drops hits below it: an inner
        product in mode vector, BM25 in mode words, up to 1 in a fusion, rules included.

        Raises `InputError` for what cannot be meant, `ImageError`, `EngineError`, `IndexStoreError`.
        """
        asked = Query.parse(query) if isinstance(query, str) else query
        if not isinstance(asked, Query):
            raise InputError(f"a query is a Query or a str, got {query!r}")
        wish = Wish(
            k=k,
            kind=kind,
            where=_filter(where),
            mode=_mode(mode),
            boosts=tuple(Boost.parse(each) if isinstance(each, str) else each for each in boosts),
            pins=tuple(each if isinstance(each, Where) else Where.parse(each) for each in pins),
            diversify=diversify,
            min_score=min_score,
            effort=effort,
        )
        generation = self._index.generation
        key = (asked.key, generation, wish) if asked.key is not None else None
        known = self._answers.get(key) if key is not None else None
        if known is not None:
            return replace(known, cached=True)
        answer = self._fresh(asked, wish)
        if key is not None and self._index.generation == generation:
            self._answers.put(key, answer)
        return answer

    def stats(self) -> SearcherStats:
        """Return how often what was asked was known already."""
        return SearcherStats(self._embeddings.stats(), self._answers.stats())

    def _fresh(self, query: Query, wish: Wish) -> Answer:
        searched = len(self._index)
        if searched == 0:
            return Answer((), wish.mode, 0, notes=("the index is empty",))
        sides = self._retrieval.sides(query, wish.mode)
        ranked = self._ranked(sides, wish)
        notes = () if ranked.ids else tuple(self._notes(sides, wish, searched))
        items = {item.id: item for item in self._index.get(ranked.ids)}
        hits = tuple(self._found(items[number], ranked) for number in ranked.ids)
        return Answer(hits, ranked.mode, searched, notes=notes)

    def _ranked(self, sides: Sides, wish: Wish) -> Ranked:
        for attempt in range(_ATTEMPTS):
            generation = self._index.generation
            try:
                return rank(self._retrieval, self._index, sides, wish)
            except InputError:
                # An item that was found may be gone when its vector is asked for.
                if attempt == _ATTEMPTS - 1 or self._index.generation == generation:
                    raise
        raise AssertionError("unreachable")

    def _found(self, item: Any, ranked: Ranked) -> Found:  # noqa: ANN401 - a StoredItem
        parts = ranked.parts[item.id]
        probability = None
        if self._calibration is not None and "vector" in parts:
            probability = self._calibration.probability(parts["vector"])
        return Found(
            item.id, item.uri, ranked.scores[item.id], item.kind, item.caption, item.metadata, parts, probability
        )

    def _notes(self, sides: Sides, wish: Wish, searched: int) -> list[str]:
        """Say why there are no hits."""
        allowed = self._index.allowed(wish.kind, wish.where)
        if allowed is not None and not allowed.any():
            if wish.where is None:
                return [f"there are no items of kind {wish.kind}"]
            unknown = [key for key in wish.where.keys if not self._is_known(key)]
            said = f": none has the key {' or '.join(unknown).replace('`', '')}" if unknown else ""
            return [f"the filter keeps none of the {searched:,} items{said}"]
        kept = " that the filter keeps" if allowed is not None else ""
        if sides.phrases:
            said = " and ".join(f'"{phrase}"' for phrase in sides.phrases)
            return [f"no caption or file name{kept} has {said}; without the quotes it need not be there word for word"]
        if sides.vector is None:
            return [f"no caption or file name{kept} has a word of the query"]
        return [f"no hit has a score of {wish.min_score:g}"] if wish.min_score is not None else []

    def _is_known(self, key: str) -> bool:
        having = self._index.allowed(None, Where(f"metadata.{key} exists"))
        return having is None or bool(having.any())


def _filter(where: Where | str | None) -> Where | None:
    if where is None or isinstance(where, Where):
        return where
    return Where.parse(where)


def _mode(mode: Mode | str) -> Mode:
    try:
        return Mode(mode)
    except ValueError:
        raise InputError(f"the mode {mode!r} is unknown: expected {', '.join(Mode)}") from None


def _calibration_of(client: object) -> Calibration | None:
    bundle = getattr(client, "bundle", None)
    return Calibration.of(bundle.manifest.logit_scale, bundle.manifest.logit_bias) if bundle is not None else None
