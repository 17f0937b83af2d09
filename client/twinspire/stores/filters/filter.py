"""Filters: `year >= 2020 and camera = 'X'` over an item's metadata; each store compiles or evaluates their trees.

    year >= 2020 and camera.model = 'X100'      a dotted path goes into objects
    kind = 'image' and added_at >= 2026-11-01   built-in columns: kind, uri, caption, id, added_at, changed_at
    modified >= '2026-11-01T09:30+01:00'        a time: ISO 8601, with quotes or without
    camera in ('X', "Y") or not exif exists     exists: the key is there, also with null
    caption contains '红色' and uri like '%.jpg' case of ASCII letters aside; % and _ as in SQL
    tags contains 'sea'                         a list has this element
    `shot date` is not null                     backticks quote a key that is no plain word
    metadata.kind = 'x'                         a key named as a column is

Truth has three values, as in SQL. A comparison (`=` to `contains`) is *unknown* where the key is missing, where the
value is null, and where it is of another type than the literal (text, number, true or false): `year != 2020` and
`not year = 2020` do not find items without a year. Of `in`, a value of a type that none of the literals has is unknown.
`is null`, `is not null`, `exists` and `= null`, which is `is null`, are never unknown. `not unknown` is unknown;
`and`, `or` follow Kleene. An item is kept where the whole is true.

Numbers compare as numbers, 2020 = 2020.0, whole ones beyond 64 bits as the nearest float; a text is never a number:
`year = '2020'` does not find 2020. Texts compare by code points, case included. A quote inside a text is doubled:
'it''s'.

added_at, changed_at and `modified` compare as moments. What they are compared with is ISO 8601, in quotes or without,
UTC where it names no zone, or seconds since 1970. A time without quotes may be compared with any other key as well: it
is unknown there for a text that is no date in ISO 8601, and for a number. Texts are read to the millisecond.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from twinspire.errors import InputError
from twinspire.stores.filters.parser import parse
from twinspire.stores.filters.tree import And, Condition

__all__ = ["Filter"]


@dataclass(frozen=True, slots=True)
class Filter:
    """A filter over the items of a store: its text and the tree of conditions that the text says.

    Filters are equal if their texts are. A store raises `InputError` for one that is too long or nested too deeply for
    it.
    """

    text: str
    condition: Condition = field(compare=False, repr=False)

    @classmethod
    def parse(cls, text: str) -> Filter:
        """Parse a filter; the module says what its text may be. Raises `InputError`, which shows the place."""
        return cls(text, parse(text))

    @classmethod
    def all_of(cls, first: Filter, *others: Filter) -> Filter:
        """Return the filter that keeps the items that all of these keep."""
        filters = (first, *others)
        if not all(isinstance(each, Filter) for each in filters):
            raise InputError(f"Filter.all_of takes filters, got {filters!r}")
        if not others:
            return first
        text = " and ".join(f"({each.text})" for each in filters)
        parts = [
            each.condition.conditions if isinstance(each.condition, And) else (each.condition,) for each in filters
        ]
        return cls(text, And(tuple(part for some in parts for part in some)))

    def __str__(self) -> str:
        return self.text
