"""Queries over an index: texts and images added up, words beside vectors, filters, rules, and sorting into labels.

searcher = Searcher(client, index)
answer = searcher.search(Query.text("a beach") - Query.text("people"), where="year >= 2020")
for hit in answer.hits: print(hit.score, hit.uri, hit.parts)
"""

from __future__ import annotations

from twinspire._lru_cache import CacheStats, LruCache
from twinspire.search.business_rules import Boost
from twinspire.search.calibration import Calibration
from twinspire.search.classify import Classification, Classifier, Label, LabelScore, read_labels
from twinspire.search.query import FileResolver, Query
from twinspire.search.response import Mode, SearchHit, SearchResponse
from twinspire.search.retrieval import FusionWeights
from twinspire.search.searcher import Searcher, SearcherStats
from twinspire.search.templates import Templates
from twinspire.search.text_query import STOP_WORDS, Synonyms
from twinspire.stores.filters.filter import Filter

__all__ = [
    "STOP_WORDS",
    "Boost",
    "CacheStats",
    "Calibration",
    "Classification",
    "Classifier",
    "FileResolver",
    "Filter",
    "FusionWeights",
    "Label",
    "LabelScore",
    "LruCache",
    "Mode",
    "Query",
    "SearchHit",
    "SearchResponse",
    "Searcher",
    "SearcherStats",
    "Synonyms",
    "Templates",
    "read_labels",
]
