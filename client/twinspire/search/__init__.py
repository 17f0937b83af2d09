"""Search of a store by text and image: vector, keyword and hybrid search, filters, business rules, classification.

searcher = Searcher(client, index)
response = searcher.search(Query.text("a beach") - Query.text("people"), where="year >= 2020")
for hit in response.hits: print(hit.score, hit.uri, hit.parts)
"""

from __future__ import annotations

from twinspire._lru_cache import CacheStats, LruCache
from twinspire.search.calibration import Calibration
from twinspire.search.classify import Classification, Classifier, Label, LabelScore, read_labels
from twinspire.search.encoding import Encoder, Templates
from twinspire.search.live import LiveSearcher
from twinspire.search.query import ImageResolver, Query, QueryPart
from twinspire.search.request import Boost, SearchRequest
from twinspire.search.response import Mode, SearchHit, SearchResponse
from twinspire.search.retrieval import FusionWeights
from twinspire.search.searcher import Searcher, SearcherStats
from twinspire.search.text_query import STOP_WORDS, Synonyms
from twinspire.stores import Filter

__all__ = [
    "STOP_WORDS",
    "Boost",
    "CacheStats",
    "Calibration",
    "Classification",
    "Classifier",
    "Encoder",
    "Filter",
    "FusionWeights",
    "ImageResolver",
    "Label",
    "LabelScore",
    "LiveSearcher",
    "LruCache",
    "Mode",
    "Query",
    "QueryPart",
    "SearchHit",
    "SearchRequest",
    "SearchResponse",
    "Searcher",
    "SearcherStats",
    "Synonyms",
    "Templates",
    "read_labels",
]
