"""Filters: `year >= 2020 and camera = 'X'` over an item's metadata; each store compiles or evaluates their trees.

    year >= 2020 and camera.model = 'X100'      a dot leads into a nested object
    kind = 'image' and added_at >= 2026-11-01   columns of items: kind, uri, caption, id, added_at, changed_at
    modified >= '2026-11-01T09:30+01:00'        a time: ISO 8601, with quotes or without
    camera in ('X', "Y") or not exif exists     exists: the item has the key, with null too
    caption contains '红色' and uri like '%.jpg' ignore the case of ASCII letters; % and _ are SQL's wildcards
    tags contains 'sea'                         the list has this element
    `shot date` is not null                     backticks quote a key that is no plain word
    metadata.kind = 'x'                         the key `kind` of the metadata, not the column

Filters have three-valued logic, as in SQL. A comparison (`=` to `contains`) is *unknown* if the key is missing, the
value is null, or it has another type than the literal (text, number, true or false): `year != 2020` and
`not year = 2020` do not keep items without a year. `in` is unknown for a value of a type that none of its literals has.
`is null`, `is not null`, `exists` and `= null`, a synonym of `is null`, are never unknown. `not unknown` is unknown;
`and` and `or` follow Kleene's logic. A filter keeps the items for which it is true.

Numbers compare by value, 2020 = 2020.0; integers beyond 64 bits count as the nearest float. Text is never a number:
`year = '2020'` does not keep 2020. Texts compare by code points, with their case. A quote inside a text is doubled:
'it''s'.

added_at, changed_at and `modified` compare as points in time, with ISO 8601, in quotes or without, in UTC if it names
no zone, or with seconds since 1970. A time without quotes may be compared with any other key too: that is unknown for
numbers, and for texts that are no date in ISO 8601. Texts are read to the millisecond.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from twinspire.errors import InputError
from twinspire.stores.filters.parser import parse
from twinspire.stores.filters.tree import And, Condition

__all__ = ["Filter"]


@dataclass(frozen=True, slots=True)
class Filter:
    """A filter over the items of a store: its text and its tree of conditions.

    Filters are equal if their texts are. A store raises `InputError` for a filter that is too long or nested too deeply
    for it.
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
