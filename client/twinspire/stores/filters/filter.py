"""Filters: `year >= 2020 and camera = 'X'` over an item's metadata, compiled to SQL in which everything is bound.

    year >= 2020 and camera.model = 'X100'      a dotted path goes into objects
    kind = 'image' and added_at >= 2026-11-01   built-in columns: kind, uri, caption, id, added_at, changed_at
    modified >= '2026-11-01T09:30+01:00'        a time: ISO 8601, with quotes or without
    camera in ('X', "Y") or not exif exists     exists: the key is there, also with null
    caption contains '红色' and uri like '%.jpg' both blind to the case of ASCII letters; % and _ as in SQL
    tags contains 'sea'                         of a list: it has this element
    `shot date` is not null                     a key that is no plain word stands in backticks
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

import sqlite3
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from twinspire.errors import InputError
from twinspire.stores.filters.literals import Parameter

if TYPE_CHECKING:
    from twinspire.index.filter_sql import KeyTest

__all__ = ["Filter"]


@dataclass(frozen=True, slots=True)
class Filter:
    """A filter over the items of an index; the module says what its text may be.

    `sql` is an expression over the table `items`, in which every literal and every path into the metadata is one of
    `parameters`, in order; `tests` are its conditions on keys of the metadata. All come of `text` alone. Raises
    `InputError`, which shows the place, for a text that is no filter.
    """

    text: str
    sql: str = field(init=False, compare=False, repr=False)
    parameters: tuple[Parameter, ...] = field(init=False, compare=False, repr=False)
    tests: tuple[KeyTest, ...] = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        from twinspire.index.filter_sql import compiled

        sql, parameters, tests = compiled(self.text)
        _require_runnable(sql, parameters)
        object.__setattr__(self, "sql", sql)
        object.__setattr__(self, "parameters", parameters)
        object.__setattr__(self, "tests", tests)

    @classmethod
    def parse(cls, text: str) -> Filter:
        """Compile a filter: `Filter(text)` by another name."""
        return cls(text)

    def __str__(self) -> str:
        return self.text


def _require_runnable(sql: str, parameters: tuple[Parameter, ...]) -> None:
    """Let SQLite read the expression, with room for what it will stand in: its parser has a stack of 100."""
    from twinspire.index.filter_sql import COLUMNS

    columns = ", ".join([*COLUMNS, "metadata"])
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.execute(f"CREATE TABLE items ({columns})")
        try:
            connection.execute(f"EXPLAIN SELECT 1 FROM items WHERE {'(' * 20}{sql}{')' * 20}", parameters)  # noqa: S608
        except sqlite3.OperationalError as error:
            raise InputError(f"the filter is nested too deeply: {error}. Write it with fewer parentheses") from error
