"""What a search gives back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Any

from twinspire._arguments import shown
from twinspire.index import ItemKind


class Mode(StrEnum):
    """Which side looks: vectors, the words of captions and file names, or both; `auto` chooses by the query."""

    AUTO = "auto"
    VECTOR = "vector"
    WORDS = "words"
    HYBRID = "hybrid"


@dataclass(frozen=True, slots=True, repr=False)
class SearchHit:
    """One hit. `score` is what it is ranked by, `parts` are what that was made of.

    vector: the similarity, which is the inner product with the query's vector, -1 to 1; words: BM25, above 0; vector
    rank, words rank, rare words rank: the places in each ranking, from 1; fused: reciprocal ranks, up to 1;
    `boost ...`: what a rule added; pinned: 1 where one put it first. `probability` is that of the inner product, where
    the model or the caller says how.
    """

    id: int
    uri: str
    score: float
    kind: ItemKind
    caption: str | None
    metadata: Mapping[str, Any]
    parts: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    probability: float | None = None

    def __repr__(self) -> str:
        return f"<Found {self.id}: {self.score:.4f} {shown(self.uri)}>"


@dataclass(frozen=True, slots=True, repr=False)
class SearchResponse:
    """The hits of one query, best first; a notebook shows them with thumbnails.

    `mode` is the side that was asked in the end, `searched` how many items the index had, `cached` whether the answer
    was known, `notes` what a person should know: a phrase that is nowhere, a filter that keeps nothing. `offset` is how
    many hits before these were left out.
    """

    hits: tuple[SearchHit, ...]
    mode: Mode
    searched: int
    cached: bool = False
    notes: tuple[str, ...] = ()
    offset: int = 0

    def __repr__(self) -> str:
        best = f", the first {self.hits[0]!r}" if self.hits else ""
        return f"<Answer: {len(self.hits)} hits of {self.searched:,} items, mode {self.mode}{best}>"

    def _repr_html_(self) -> str:
        from twinspire.search.notebook import response_html

        return response_html(self)
