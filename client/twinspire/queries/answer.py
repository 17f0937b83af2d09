"""What a search gives back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Any

from twinspire.index import ItemKind


class Mode(StrEnum):
    """Which side looks: vectors, the words of captions and file names, or both; `auto` chooses by the query."""

    AUTO = "auto"
    VECTOR = "vector"
    WORDS = "words"
    HYBRID = "hybrid"


@dataclass(frozen=True, slots=True)
class Found:
    """One hit. `score` is what it is ranked by, `parts` are what that was made of.

    vector: the inner product with the query's vector, -1 to 1; words: BM25, above 0; vector rank, words rank, rare
    words rank: the places in each ranking, from 1; fused: reciprocal ranks, up to 1; `boost ...`: what a rule added;
    pinned: 1 where one put it first. `probability` is that of the inner product, where the model or the caller says
    how.
    """

    id: int
    uri: str
    score: float
    kind: ItemKind
    caption: str | None
    metadata: Mapping[str, Any]
    parts: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    probability: float | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """The hits of one query, best first.

    `mode` is the side that was asked in the end, `searched` how many items the index had, `cached` whether the answer
    was known, `notes` what a person should know: a phrase that is nowhere, a filter that keeps nothing.
    """

    hits: tuple[Found, ...]
    mode: Mode
    searched: int
    cached: bool = False
    notes: tuple[str, ...] = ()
