"""Searching an index with a model: vectors and words, filters, rules, variety, and what is kept of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twinspire._arguments import as_list, as_member, as_whole, require_text, shown
from twinspire._lru_cache import CacheStats, LruCache
from twinspire.errors import InputError
from twinspire.index import Index, ItemKind
from twinspire.search.business_rules import Boost
from twinspire.search.calibration import Calibration
from twinspire.search.encoding import Encoder, QueryEncoder
from twinspire.search.query import Query
from twinspire.search.ranking import Ranked, Wish, rank
from twinspire.search.response import Mode, SearchHit, SearchResponse
from twinspire.search.retrieval import FusionWeights, Retrieval, RetrievalPlan
from twinspire.search.templates import Templates
from twinspire.search.text_query import STOP_WORDS, Synonyms
from twinspire.stores.filters.filter import Filter
from twinspire.stores.validation import checked_effort, checked_k, checked_kind, checked_where

_ATTEMPTS = 3
_LARGEST_OFFSET = 2**40  # more than any index has; what is larger means the same
EMBEDDINGS_KEPT = 10_000
ANSWERS_KEPT = 1_000
_RULES_KEPT = 1_000


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
        self._client = client
        self._embeddings = embeddings or LruCache[NDArray[np.float32]](EMBEDDINGS_KEPT if cache else 0)
        self._rules: LruCache[str] = LruCache(_RULES_KEPT)
        self._answers: LruCache[SearchResponse] = LruCache(ANSWERS_KEPT if cache else 0)
        encoder = QueryEncoder(client, templates=templates, cache=self._embeddings)
        left_out = frozenset(require_text(word, "a stop word") for word in as_list(stop_words, "stop words"))
        self._retrieval = Retrieval(encoder, index, synonyms, left_out, weights or FusionWeights())
        self._calibration = calibration or _calibration_of(client)

    def search(
        self,
        query: Query | str,
        k: int = 10,
        *,
        offset: int = 0,
        kind: ItemKind | str | None = None,
        where: Filter | str | None = None,
        mode: Mode | str = Mode.AUTO,
        boosts: Sequence[Boost | str] = (),
        pins: Sequence[Filter | str] = (),
        diversify: float | None = None,
        min_score: float | None = None,
        effort: int | None = None,
    ) -> SearchResponse:
        """Return the k best hits after the first `offset`.

        A `query` that is a str is plain text, as `Query.text` takes it: no file that it names is opened. `auto`:
        keyword search for quoted phrases, hybrid for other text, vectors only for images and where no item has a word
        of the query. Items must have the quoted phrases in every mode but `vector`.

        `boosts` add to the score of the items that they keep, after retrieval, among the first hits (4 k, at least
        100). `pins` are filters whose items come first, wherever they ranked. `diversify` from 0 to 1 trades relevance
        for unlike hits (MMR). `min_score` drops hits of less similarity, which in every mode is the inner product of
        the query's and the item's vector, -1 to 1, without boosts; it is the part `vector` of a hit. A keyword search
        then considers the best 10,000 by BM25.

        Pages of one `k` are slices of one ranking while the index does not change. In a hybrid search, and with
        `boosts` or `diversify`, that holds for the first hits (4 k, at least 100); beyond them a hit may come again.

        Raises `InputError` for what cannot be meant, `ImageError`, `EngineError`, `ServerError`, `IndexStoreError`.
        """
        asked = Query.text(query) if isinstance(query, str) else query
        if not isinstance(asked, Query):
            raise InputError(f"a query is a Query or a str, got {shown(query)}")
        wish = Wish(
            k=checked_k(k),
            offset=min(as_whole(offset, "offset", minimum=0), _LARGEST_OFFSET),
            kind=checked_kind(kind),
            where=checked_where(where),
            mode=as_member(mode, Mode, "mode"),
            boosts=tuple(_boost(each) for each in as_list(boosts, "boosts")),
            pins=tuple(_pin(each) for each in as_list(pins, "filters to pin")),
            diversify=diversify,
            min_score=min_score,
            effort=checked_effort(effort),
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

    def __repr__(self) -> str:
        return f"<Searcher of {self._index!r} with {self._client!r}>"

    def stats(self) -> SearcherStats:
        """Return how often what was asked was known already."""
        return SearcherStats(self._embeddings.stats(), self._answers.stats())

    def _fresh(self, query: Query, wish: Wish) -> SearchResponse:
        searched = len(self._index)
        if searched == 0:
            return SearchResponse((), wish.mode, 0, notes=("the index is empty",), offset=wish.offset)
        sides = self._retrieval.sides(query, wish.mode, similarity=wish.min_score is not None)
        ranked = self._ranked(sides, wish)
        notes = self._notes_of_rules(ranked, wish)
        if not ranked.ids:
            notes += self._notes(sides, wish, ranked, searched)
        items = {item.id: item for item in self._index.get(ranked.ids)}
        hits = tuple(self._found(items[number], ranked) for number in ranked.ids)
        return SearchResponse(hits, ranked.mode, searched, notes=tuple(notes), offset=wish.offset)

    def _ranked(self, sides: RetrievalPlan, wish: Wish) -> Ranked:
        for attempt in range(_ATTEMPTS):
            generation = self._index.generation
            try:
                return rank(self._retrieval, self._index, sides, wish)
            except InputError:
                # An item that was found may be gone when its vector is asked for.
                if attempt == _ATTEMPTS - 1 or self._index.generation == generation:
                    raise
        raise AssertionError("unreachable")

    def _found(self, item: Any, ranked: Ranked) -> SearchHit:  # noqa: ANN401 - a StoredItem
        parts = ranked.parts[item.id]
        probability = None
        if self._calibration is not None and "vector" in parts:
            probability = self._calibration.probability(parts["vector"])
        return SearchHit(
            item.id, item.uri, ranked.scores[item.id], item.kind, item.caption, item.metadata, parts, probability
        )

    def _notes(self, sides: RetrievalPlan, wish: Wish, ranked: Ranked, searched: int) -> list[str]:
        """Say why there are no hits."""
        if ranked.before:
            return [f"there are {ranked.before:,} hits: none is left after an offset of {wish.offset:,}"]
        is_filtered = wish.kind is not None or wish.where is not None
        if is_filtered and self._index.count(kind=wish.kind, where=wish.where) == 0:
            if wish.where is None:
                return [f"there are no items of kind {wish.kind}"]
            return [f"the filter keeps none of the {searched:,} items{self._why(wish.where)}"]
        if ranked.best_similarity is not None:
            return [
                f"no hit has a similarity of {wish.min_score:g}: the best has {ranked.best_similarity:.3f}, of -1 to 1"
            ]
        kept = " that the filter keeps" if is_filtered else ""
        if sides.phrases:
            said = " and ".join(f'"{phrase}"' for phrase in sides.phrases)
            return [f"no caption or file name{kept} has {said}; without the quotes it need not be there word for word"]
        if sides.vector is None:
            return [f"no caption or file name{kept} has a word of the query"]
        return []

    def _notes_of_rules(self, ranked: Ranked, wish: Wish) -> list[str]:
        """Say which boosts and pins are of no item."""
        used = {name for some in ranked.parts.values() for name in some}
        rules = [("boost", boost.where) for boost in wish.boosts if boost.name not in used]
        if "pinned" not in used:
            rules += [("pin", pin) for pin in wish.pins]
        notes = [(rule, where, self._problem(where)) for rule, where in rules]
        return [f"the {rule} {where.text.strip()} {problem}" for rule, where, problem in notes if problem]

    def _problem(self, where: Filter) -> str:
        """Say why a rule keeps nothing; "" for one that keeps something, which is remembered: a rule is asked often."""
        generation = self._index.generation
        for key in (where, (where, generation)):
            if (known := self._rules.get(key)) is not None:
                return known
        if next(self._index.items(where=where, batch=1), None) is not None:
            self._rules.put(where, "")
            return ""
        problem = f"keeps none of the items{self._why(where)}"
        self._rules.put((where, generation), problem)
        return problem

    def _why(self, where: Filter) -> str:
        reasons = self._index.explain_filter(where)
        return f": {'; '.join(reasons)}" if reasons else ""


def _boost(boost: Boost | str) -> Boost:
    if isinstance(boost, str):
        return Boost.parse(boost)
    if not isinstance(boost, Boost):
        raise InputError(f"a boost is a Boost or a str such as 'in_stock = true:0.1', got {shown(boost)}")
    return boost


def _pin(pin: Filter | str) -> Filter:
    checked = checked_where(pin)
    if checked is None:
        raise InputError("a pin is a Filter or its text, got None")
    return checked


def _calibration_of(client: object) -> Calibration | None:
    bundle = getattr(client, "bundle", None)
    return Calibration.of(bundle.manifest.logit_scale, bundle.manifest.logit_bias) if bundle is not None else None
