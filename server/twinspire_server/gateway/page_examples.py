"""What the page shows before a search: items of the index, and captions of it as example queries."""

from __future__ import annotations

from itertools import islice
from typing import Any, TypeVar

from twinspire._codec import encode
from twinspire.stores import ItemKind, StoredItem, VectorStore

_READ = 2_000
_ITEMS = 24
_EXAMPLES = 12  # in all languages together; the page shows those of its own
_SHORTEST, _LONGEST = 5, 60  # characters of a caption that makes a query
_Value = TypeVar("_Value")


def page_examples(index: VectorStore) -> dict[str, Any]:
    """Return `items`, up to 24 images spread over the first 2,000, as JSON, and `examples`, up to 12 captions."""
    images = list(islice(index.items(kind=ItemKind.IMAGE), _READ))
    chosen = _spread(images, _ITEMS)
    captions = [line.strip() for item in _spread(images, 10 * _EXAMPLES) for line in _lines(item)]
    fitting = [line for line in dict.fromkeys(captions) if _SHORTEST <= len(line) <= _LONGEST]
    by_language = ([line for line in fitting if line.isascii()], [line for line in fitting if not line.isascii()])
    shorter = [sorted(lines, key=len)[: len(lines) // 2 + 1] for lines in by_language]
    examples = [line for lines in shorter for line in _spread(lines, _EXAMPLES // 2)]
    return {"items": [encode(item) for item in chosen], "examples": examples}


def _lines(item: StoredItem) -> list[str]:
    return (item.caption or "").splitlines()


def _spread(values: list[_Value], count: int) -> list[_Value]:
    """Return up to `count` of the values, evenly spaced."""
    if len(values) <= count:
        return values
    return [values[position * len(values) // count] for position in range(count)]
