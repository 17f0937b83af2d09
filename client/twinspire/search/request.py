"""`SearchRequest`: all that one search asks, in Python and as JSON; and `Boost`, a business rule."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from twinspire._arguments import (
    as_finite,
    as_list,
    as_member,
    as_weight,
    as_whole,
    checked_array,
    checked_object,
    naming,
    require_text,
    shown,
)
from twinspire.errors import InputError
from twinspire.search.grouping import DEFAULT_GROUP
from twinspire.search.query import ImageResolver, Query
from twinspire.search.response import Mode
from twinspire.stores import Filter, ItemKind
from twinspire.stores.validation import checked_effort, checked_k, checked_kind, checked_where, required_where

_MIN_SCORE = "min_score (the inner product of the query's and the item's vector, in every mode)"

_GROUP = "group (the minimum cosine of two near-equal hits, or true for the default)"

MAX_RERANKED = 1_000
"""The most candidates to rerank: each is a run of an engine."""
_RERANK = "rerank (the number of candidates to rerank)"

_LARGEST_OFFSET = 2**40  # more than any index has: a larger one means the same


@dataclass(frozen=True, slots=True)
class Boost:
    """Business rule: add `weight` to the score of the items that match `where`. A weight below 0 demotes them.

    Raises `InputError` for a weight that is 0 or not finite.
    """

    where: Filter
    weight: float

    def __post_init__(self) -> None:
        with naming("where"):
            object.__setattr__(self, "where", required_where(self.where))
        with naming("weight"):
            object.__setattr__(self, "weight", as_weight(self.weight, "the weight of a boost"))

    @classmethod
    def parse(cls, text: str) -> Boost:
        """Parse a filter, a colon and a weight: `in_stock = true:0.1`. Raises `InputError`."""
        condition, colon, weight = require_text(text, "a boost").rpartition(":")
        try:
            number = float(weight) if colon else None
        except ValueError:
            number = None
        if number is None or not condition.strip():
            raise InputError(
                f"the boost {text!r}: expected a filter, a colon and a weight, such as "
                '"in_stock = true:0.1"; a weight below 0 demotes'
            )
        return cls(Filter.parse(condition), number)

    @property
    def name(self) -> str:
        """The key of the boost among a hit's score parts."""
        return f"boost {str(self.where).strip()}"

    def to_dict(self) -> dict[str, Any]:
        """Return the boost as JSON."""
        return {"where": str(self.where), "weight": self.weight}

    @classmethod
    def from_dict(cls, document: object) -> Boost:
        """Read what `to_dict` writes. Raises `InputError`; its `option` names the key."""
        return cls(**checked_object(document, "a boost", {"where": Filter.parse, "weight": _unchecked}))


@dataclass(frozen=True, slots=True)
class SearchRequest:
    """All that one search asks; `Searcher.search` says what each argument means.

    A str stands for a query of plain text, for the filter or boost that it parses to, and for a member of `Mode` or
    `ItemKind`; a `group` of True for the default threshold, of False for None. Raises `InputError` for anything out of
    range or of another type; its `option` names the argument.
    """

    query: Query
    k: int = 10
    offset: int = 0
    kind: ItemKind | None = None
    where: Filter | None = None
    mode: Mode = Mode.AUTO
    boosts: tuple[Boost, ...] = ()
    pins: tuple[Filter, ...] = ()
    diversify: float | None = None
    min_score: float | None = None
    effort: int | None = None
    group: float | None = None
    rerank: int | None = None

    def __post_init__(self) -> None:
        checks: dict[str, Callable[[Any], Any]] = {
            "query": _query,
            "k": checked_k,
            "offset": lambda offset: min(as_whole(offset, "offset", minimum=0), _LARGEST_OFFSET),
            "kind": checked_kind,
            "where": checked_where,
            "mode": lambda mode: as_member(mode, Mode, "mode"),
            "boosts": lambda boosts: checked_array(as_list(boosts, "boosts"), "boosts", _boost),
            "pins": lambda pins: checked_array(as_list(pins, "filters to pin"), "pins", required_where),
            "diversify": lambda share: None if share is None else as_finite(share, "diversify", minimum=0, maximum=1),
            "min_score": lambda score: None if score is None else as_finite(score, _MIN_SCORE, minimum=-1, maximum=1),
            "effort": checked_effort,
            "group": _group,
            "rerank": _rerank,
        }
        for name, check in checks.items():
            with naming(name):
                object.__setattr__(self, name, check(getattr(self, name)))
        if self.rerank is not None:
            with naming("rerank"):
                self.query.as_one_text()  # raises where it is more
            if self.diversify:
                raise InputError("rerank and diversify exclude each other: both order the hits", option="rerank")

    @property
    def depth(self) -> int:
        """How many hits have to be ranked to return `k` after the first `offset`."""
        return self.offset + self.k

    def to_dict(self) -> dict[str, Any]:
        """Return the request as JSON. Raises `InputError` for an image that is not given by its path."""
        return {
            "query": self.query.to_list(),
            "k": self.k,
            "offset": self.offset,
            "kind": self.kind.value if self.kind is not None else None,
            "where": str(self.where) if self.where is not None else None,
            "mode": self.mode.value,
            "boosts": [boost.to_dict() for boost in self.boosts],
            "pins": [str(pin) for pin in self.pins],
            "diversify": self.diversify,
            "min_score": self.min_score,
            "effort": self.effort,
            "group": self.group,
            "rerank": self.rerank,
        }

    @classmethod
    def from_dict(cls, document: object, *, images: ImageResolver | None = None) -> SearchRequest:
        """Read what `to_dict` writes; every key but `query` may be left out, and `query` may be a str, plain text.

        `images` turns the names of images in the query into images; without it a query with images is refused and no
        file is looked up or opened. Raises `InputError` for unknown keys, wrong types and values out of range; its
        `option` names the key, such as `boosts[0].weight`.
        """
        checks: dict[str, Callable[[Any], Any]] = {
            **dict.fromkeys(cls.__slots__, _unchecked),
            "query": lambda query: Query.from_list(query, images=images),
            "boosts": lambda boosts: checked_array(boosts, "boosts", Boost.from_dict),
            "pins": lambda pins: checked_array(pins, "pins", Filter.parse),
        }
        return cls(**checked_object(document, "a search request", checks, optional=set(checks) - {"query"}))


def _unchecked(value: Any) -> Any:  # noqa: ANN401 - the class checks it
    return value


def _group(threshold: float | None) -> float | None:
    if threshold is None or threshold is False:
        return None
    return DEFAULT_GROUP if threshold is True else as_finite(threshold, _GROUP, minimum=0, maximum=1)


def _rerank(count: int | None) -> int | None:
    return None if count is None else as_whole(count, _RERANK, minimum=1, maximum=MAX_RERANKED)


def _query(query: Query | str) -> Query:
    if isinstance(query, str):
        return Query.text(query)
    if not isinstance(query, Query):
        raise InputError(f"a query: expected a Query or a str, got {shown(query)}")
    return query


def _boost(boost: Boost | str) -> Boost:
    if isinstance(boost, str):
        return Boost.parse(boost)
    if not isinstance(boost, Boost):
        raise InputError(f"a boost: expected a Boost or its text, such as 'in_stock = true:0.1', got {shown(boost)}")
    return boost
