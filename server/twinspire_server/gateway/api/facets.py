"""Facets: the metadata keys of an index's items, their types and most frequent values, for filters."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from twinspire.ingest.metadata import BOOKKEEPING_KEYS
from twinspire.stores import StoredItem

MAX_VALUES = 12
_HIDDEN = BOOKKEEPING_KEYS | {"name", "folder"}  # of one file, or paths of this machine
_MAX_KEYS = 200
_MAX_DISTINCT = 5_000  # values of a key that are counted
_MAX_CHARACTERS = 80
_TIME = re.compile(r"\d{4}-\d\d-\d\d([T ]\d\d:\d\d.*)?")


class _Key:
    """Values of one metadata key."""

    def __init__(self) -> None:
        self.types: Counter[str] = Counter()
        self.values: dict[str, Counter[Any]] = {}
        self.minimum: dict[str, Any] = {}
        self.maximum: dict[str, Any] = {}

    def add(self, value: object) -> None:
        for type_, one in _typed(value):
            self.types[type_] += 1
            if type_ in ("number", "time"):
                self.minimum[type_] = min(self.minimum.get(type_, one), one)
                self.maximum[type_] = max(self.maximum.get(type_, one), one)
            counts = self.values.setdefault(type_, Counter())
            if one in counts or len(counts) < _MAX_DISTINCT:
                counts[one] += 1

    def described(self, name: str) -> dict[str, Any] | None:
        """Return the key with the values of its most frequent type; None where it has none to filter by."""
        if not self.types:
            return None
        ((type_, _),) = self.types.most_common(1)
        counts = self.values[type_]
        few = len(counts) <= MAX_VALUES
        document: dict[str, Any] = {"key": name, "type": type_}
        if type_ in self.minimum:
            document |= {"minimum": self.minimum[type_], "maximum": self.maximum[type_]}
        if few or type_ not in self.minimum:
            document["values"] = [
                {"value": value, "count": count}
                for value, count in sorted(counts.most_common(MAX_VALUES), key=lambda pair: (-pair[1], str(pair[0])))
                if few or count > 1
            ]
        return document


def facets(items: Iterable[StoredItem]) -> list[dict[str, Any]]:
    """Return `key`, `type` (text, list, boolean, number, time) and values of each metadata key, sorted by key.

    `values` are up to 12, the most frequent first, each with its `count`; of numbers and times `minimum` and `maximum`
    too, and values only where there are up to 12. Of a list each element counts. Nested objects are left out.
    """
    keys: dict[str, _Key] = {}
    for item in items:
        for name, value in item.metadata.items():
            if name not in keys and (name in _HIDDEN or len(keys) >= _MAX_KEYS):
                continue
            keys.setdefault(name, _Key()).add(value)
    described = (keys[name].described(name) for name in sorted(keys))
    return [document for document in described if document is not None]


def _typed(value: object) -> Iterator[tuple[str, Any]]:
    match value:
        case bool():
            yield "boolean", value
        case int() | float():
            yield "number", value
        case str() if _TIME.fullmatch(value):
            yield "time", value
        case str() if value and len(value) <= _MAX_CHARACTERS:
            yield "text", value
        case list():
            for element in value:
                if isinstance(element, str) and element and len(element) <= _MAX_CHARACTERS:
                    yield "list", element
