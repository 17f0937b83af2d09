"""The syntax tree of a filter, free of any store's query language: each store compiles or evaluates it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias


class ValueType(StrEnum):
    """Type of a literal: only a value of the same type compares with it; a time compares with ISO 8601 text."""

    TEXT = "text"
    NUMBER = "number"
    BOOLEAN = "boolean"
    TIME = "time"


ATTRIBUTES = {
    "kind": ValueType.TEXT,
    "uri": ValueType.TEXT,
    "caption": ValueType.TEXT,
    "id": ValueType.NUMBER,
    "added_at": ValueType.NUMBER,
    "changed_at": ValueType.NUMBER,
}
"""What an item has besides its metadata, and the type that it compares with; times are seconds since 1970."""


@dataclass(frozen=True, slots=True)
class Field:
    """What a condition is about: an attribute of the item, or the value at a path of keys in its metadata."""

    keys: tuple[str, ...]
    is_attribute: bool = False

    @property
    def name(self) -> str:
        """The name as filters write it, without quotes."""
        return ".".join(self.keys)

    @property
    def is_modified(self) -> bool:
        """Whether it is the metadata key `modified`, which holds a time as ISO 8601 text or as seconds since 1970."""
        return not self.is_attribute and self.keys == ("modified",)


@dataclass(frozen=True, slots=True)
class Literal:
    """A value in a filter; `source` is the text that it was read from. The value of a time is seconds since 1970."""

    type: ValueType
    value: str | int | float | bool
    source: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """`field operator literal`; the operator is =, !=, <, <=, > or >=."""

    field: Field
    operator: str
    literal: Literal


@dataclass(frozen=True, slots=True)
class In:
    """`field in (literal, ...)`."""

    field: Field
    literals: tuple[Literal, ...]


@dataclass(frozen=True, slots=True)
class Like:
    """`field like pattern`: % matches any text and _ one character, without regard to the case of ASCII letters."""

    field: Field
    literal: Literal


@dataclass(frozen=True, slots=True)
class Contains:
    """`field contains literal`: a text has this text in it, case of ASCII letters aside, or a list has this element."""

    field: Field
    literal: Literal


@dataclass(frozen=True, slots=True)
class IsNull:
    """`field is null`: the value is null or missing."""

    field: Field


@dataclass(frozen=True, slots=True)
class Exists:
    """`field exists`: the metadata has the key, also with null; an attribute is not null."""

    field: Field


@dataclass(frozen=True, slots=True)
class Not:
    """`not condition`."""

    condition: Condition


@dataclass(frozen=True, slots=True)
class And:
    """Two conditions or more, all of which must be true."""

    conditions: tuple[Condition, ...]


@dataclass(frozen=True, slots=True)
class Or:
    """Two conditions or more, at least one of which must be true."""

    conditions: tuple[Condition, ...]


Test: TypeAlias = Comparison | In | Like | Contains | IsNull | Exists
"""A condition on one field."""
Condition: TypeAlias = Test | Not | And | Or


def tests_of(condition: Condition) -> Iterator[Test]:
    """Yield the tests of single fields in a condition, from left to right."""
    if isinstance(condition, And | Or):
        for part in condition.conditions:
            yield from tests_of(part)
    elif isinstance(condition, Not):
        yield from tests_of(condition.condition)
    else:
        yield condition
