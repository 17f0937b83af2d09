"""Queries over an index: texts and pictures added up, words beside vectors, filters, rules, and sorting into labels.

searcher = Searcher(client, index)
answer = searcher.search(Query.text("a beach") - Query.text("people"), where="year >= 2020")
for hit in answer.hits: print(hit.score, hit.uri, hit.parts)
"""

from __future__ import annotations

from twinspire.index.where import Where
from twinspire.queries.answer import Answer, Found, Mode
from twinspire.queries.cache import CacheStats, LruCache
from twinspire.queries.calibration import Calibration
from twinspire.queries.classify import Classification, Classifier, Judged, Label, read_labels
from twinspire.queries.phrases import STOP_WORDS, Synonyms
from twinspire.queries.query import FileResolver, Query
from twinspire.queries.retrieval import FusionWeights
from twinspire.queries.rules import Boost
from twinspire.queries.searcher import Searcher, SearcherStats
from twinspire.queries.templates import Templates

__all__ = [
    "STOP_WORDS",
    "Answer",
    "Boost",
    "CacheStats",
    "Calibration",
    "Classification",
    "Classifier",
    "FileResolver",
    "Found",
    "FusionWeights",
    "Judged",
    "Label",
    "LruCache",
    "Mode",
    "Query",
    "Searcher",
    "SearcherStats",
    "Synonyms",
    "Templates",
    "Where",
    "read_labels",
]
