"""`Searcher`: runs searches of a store with a client, and caches their responses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from twinspire._arguments import as_list, require_text
from twinspire._lru_cache import CacheStats, LruCache
from twinspire._telemetry import span
from twinspire.errors import InputError
from twinspire.search.calibration import Calibration
from twinspire.search.encoding import Encoder, QueryEncoder, Templates
from twinspire.search.query import Query
from twinspire.search.ranking import Ranked, rank
from twinspire.search.request import Boost, SearchRequest
from twinspire.search.reranking import check_reranks, rerank, widened
from twinspire.search.response import Mode, SearchHit, SearchResponse
from twinspire.search.retrieval import FusionWeights, Retrieval, RetrievalPlan
from twinspire.search.text_query import STOP_WORDS, Synonyms
from twinspire.stores import Filter, ItemKind, StoredItem, VectorStore

CACHED_EMBEDDINGS = 10_000
CACHED_HITS = 20_000
"""Hits of all responses that are kept, near-equal ones included, with one more for each response."""
_CACHED_RULES = 1_000
_ATTEMPTS = 3


@dataclass(frozen=True, slots=True)
class SearcherStats:
    """Counts of the cache of embeddings of query parts, and of the cache of responses."""

    embeddings: CacheStats
    responses: CacheStats


class Searcher:
    """Searches one store with one client, neither of which it closes. May be used from several threads.

    `templates` are prompt templates for texts; `synonyms` and `stop_words` are for keyword search; `weights` are those
    of the rankings in a hybrid search. `calibration` turns similarities into probabilities; by default it is the
    bundle's, if that has a bias. `cache=False` caches nothing; `embeddings` is a cache to share with other searchers.
    Raises `SpaceMismatchError` where client and store are of different spaces.
    """

    def __init__(
        self,
        client: Encoder,
        index: VectorStore,
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
        self._embeddings = embeddings or LruCache[NDArray[np.float32]](CACHED_EMBEDDINGS if cache else 0)
        self._rules: LruCache[str] = LruCache(_CACHED_RULES)
        self._responses: LruCache[SearchResponse] = LruCache(CACHED_HITS if cache else 0, weigh=_weight)
        encoder = QueryEncoder(client, templates=templates, cache=self._embeddings)
        ignored = frozenset(require_text(word, "a stop word") for word in as_list(stop_words, "stop words"))
        self._retrieval = Retrieval(encoder, index, synonyms, ignored, weights or FusionWeights())
        self._calibration = calibration or _calibration_of(client)

    @property
    def index(self) -> VectorStore:
        """The store that is searched."""
        return self._index

    @property
    def client(self) -> Encoder:
        """The client that encodes queries."""
        return self._client

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
        group: float | None = None,
        rerank: int | None = None,
    ) -> SearchResponse:
        """Return the k best hits after the first `offset`.

        A `query` that is a str is plain text, as `Query.text` takes it: no file that it names is opened. `kind` and
        `where` restrict the items. `mode` `auto` is keyword search for quoted phrases, hybrid for other text, vectors
        only for images and where no item has a word of the query. Hits have the quoted phrases in every mode but
        `vector`.

        `boosts` add to the score of the items that they match, after retrieval, among the first hits (4 k, at least
        100). `pins` are filters whose items come first, wherever they ranked. `diversify` from 0 to 1 trades relevance
        for unlike hits (MMR). `min_score` drops hits of less similarity, which in every mode is the inner product of
        the query's and the item's vector, -1 to 1, without boosts; it is the part `vector` of a hit. A keyword search
        then considers the best 10,000 by BM25. `effort` is how thoroughly an approximate index is searched.

        `group` shows one of each group of near-equal hits of one kind: the best, with the ids of the others in
        `SearchHit.similar`. It is the minimum cosine of their vectors, 0 to 1; True: the default, 0.98. Files are not
        compared, unlike in `twinspire.duplicates`. There are `k` hits still: where groups are few, more hits are
        ranked, up to 10,000, and `similar` has those among the hits that were ranked. Grouping comes after `boosts`,
        `pins` and `min_score` and before `diversify`, and `offset` counts groups.

        `rerank` orders that many of the first hits by the probability that the bundle's reranker gives them, the part
        `rerank` of a hit; their `score` stays. It reads the images' files, and one text is the query. Pinned items stay
        first; items without a local image, or whose file cannot be read, come after the others. It comes last, and
        excludes `diversify`.

        Pages of one `k` are slices of one ranking while the index does not change. In a hybrid search, and with
        `boosts`, `group` or `diversify`, that holds for the first hits (4 k, at least 100); beyond them a hit may come
        again.

        Raises `InputError` as `SearchRequest` does, `BundleError` for `rerank` where the bundle has no reranker,
        `ImageError`, `EngineError`, `ServerError`, `IndexStoreError`.
        """
        request: Callable[..., SearchRequest] = SearchRequest  # which converts names of members and texts of filters
        return self.run(
            request(
                query,
                k=k,
                offset=offset,
                kind=kind,
                where=where,
                mode=mode,
                boosts=boosts,
                pins=pins,
                diversify=diversify,
                min_score=min_score,
                effort=effort,
                group=group,
                rerank=rerank,
            )
        )

    def run(self, request: SearchRequest) -> SearchResponse:
        """Return the response to a request; see `search`, which makes one of its arguments."""
        with span("search", k=request.k) as observed:
            response = self._run(request)
            observed.set(mode=response.mode, cached=response.cached, hits=len(response.hits))
            return response

    def _run(self, request: SearchRequest) -> SearchResponse:
        generation = self._index.generation
        content = request.query.key  # files may change while their names stay
        key = (content, generation, request) if content is not None else None
        known = self._responses.get(key) if key is not None else None
        if known is not None:
            return replace(known, cached=True)
        response = self._uncached(request)
        if key is not None and self._index.generation == generation:
            self._responses.put(key, response)
        return response

    def __repr__(self) -> str:
        return f"<Searcher of {self._index!r} with {self._client!r}>"

    def stats(self) -> SearcherStats:
        """Return the counts of both caches."""
        return SearcherStats(self._embeddings.stats(), self._responses.stats())

    def _uncached(self, request: SearchRequest) -> SearchResponse:
        searched = len(self._index)
        scorer = check_reranks(self._client) if request.rerank is not None else None
        if searched == 0:
            return SearchResponse((), request.mode, 0, notes=("the index is empty",), offset=request.offset)
        with span("search.encode"):
            plan = self._retrieval.plan(request.query, request.mode, similarity=request.min_score is not None)
        notes: list[str] = []
        if scorer is None:
            ranked, items = self._found(plan, request)
        else:
            ranked, items = self._found(plan, widened(request))
            with span("search.rerank"):
                ranked, notes = rerank(scorer, request, ranked, items, searched=searched)
        notes += self._notes_on_rules(ranked, request)
        if ranked.groups_of is not None:
            notes.append(
                f"fewer groups than were asked for: the best {ranked.groups_of:,} hits were looked at, and more of "
                "them are near-equal. A higher threshold makes more groups"
            )
        if not ranked.ids:
            notes += self._notes_on_no_hits(plan, request, ranked, searched)
        hits = tuple(
            self._hit(position, items[id_], ranked) for position, id_ in enumerate(ranked.ids, start=request.offset + 1)
        )
        return SearchResponse(hits, ranked.mode, searched, notes=tuple(notes), offset=request.offset)

    def _found(self, plan: RetrievalPlan, request: SearchRequest) -> tuple[Ranked, dict[int, StoredItem]]:
        """Return the ranking and its items by id."""
        for attempt in range(_ATTEMPTS):
            generation = self._index.generation
            try:
                with span("search.retrieve"):
                    ranked = rank(self._retrieval, self._index, plan, request)
                with span("search.fetch"):
                    return ranked, {item.id: item for item in self._index.get(ranked.ids)}
            except InputError:
                # A candidate may have been removed before its vector or the item itself was read.
                if attempt == _ATTEMPTS - 1 or self._index.generation == generation:
                    raise
        raise AssertionError("unreachable")

    def _hit(self, position: int, item: StoredItem, ranked: Ranked) -> SearchHit:
        parts = ranked.parts[item.id]
        probability = None
        if self._calibration is not None and "vector" in parts:
            probability = self._calibration.probability(parts["vector"])
        return SearchHit(
            rank=position,
            id=item.id,
            uri=item.uri,
            score=ranked.scores[item.id],
            kind=item.kind,
            caption=item.caption,
            metadata=item.metadata,
            parts=parts,
            probability=probability,
            similar=tuple(ranked.similar.get(item.id, ())),
        )

    def _notes_on_no_hits(
        self, plan: RetrievalPlan, request: SearchRequest, ranked: Ranked, searched: int
    ) -> list[str]:
        if ranked.before:
            return [f"there are {ranked.before:,} hits, none after an offset of {request.offset:,}"]
        kind, where = request.kind, request.where
        is_filtered = kind is not None or where is not None
        if is_filtered and self._index.count(kind=kind, where=where) == 0:
            if where is None:
                return [f"there are no items of kind {kind}"]
            return [f"the filter matches none of the {searched:,} items{self._reasons(where)}"]
        if ranked.best_similarity is not None:
            return [
                f"no hit has a similarity of {request.min_score:g}: the best has {ranked.best_similarity:.3f}, of -1 "
                "to 1"
            ]
        among = " of the items that the filter matches" if is_filtered else ""
        if plan.phrases:
            phrases = " and ".join(f'"{phrase}"' for phrase in plan.phrases)
            return [f"no caption or file name{among} has {phrases}; without quotes the words need not be adjacent"]
        if plan.vector is None:
            return [f"no caption or file name{among} has a word of the query"]
        return []

    def _notes_on_rules(self, ranked: Ranked, request: SearchRequest) -> list[str]:
        """Return which boosts and pins match no item, and why."""
        used = {name for own in ranked.parts.values() for name in own}
        rules = [("boost", boost.where) for boost in request.boosts if boost.name not in used]
        if "pinned" not in used:
            rules += [("pin", pin) for pin in request.pins]
        problems = [(rule, where, self._problem(where)) for rule, where in rules]
        return [f"the {rule} {str(where).strip()} {problem}" for rule, where, problem in problems if problem]

    def _problem(self, where: Filter) -> str:
        """Return why a rule matches no item, "" where it matches some.

        Cached, since the same rules come with every request: a match for good, no match until the index changes.
        """
        generation = self._index.generation
        for key in (where, (where, generation)):
            if (known := self._rules.get(key)) is not None:
                return known
        if next(self._index.items(where=where, batch=1), None) is not None:
            self._rules.put(where, "")
            return ""
        problem = f"matches none of the items{self._reasons(where)}"
        self._rules.put((where, generation), problem)
        return problem

    def _reasons(self, where: Filter) -> str:
        reasons = self._index.explain_filter(where)
        return f": {'; '.join(reasons)}" if reasons else ""


def _weight(response: SearchResponse) -> int:
    return 1 + sum(1 + len(hit.similar) for hit in response.hits)


def _calibration_of(client: object) -> Calibration | None:
    bundle = getattr(client, "bundle", None)
    return Calibration.of(bundle.manifest.logit_scale, bundle.manifest.logit_bias) if bundle is not None else None
