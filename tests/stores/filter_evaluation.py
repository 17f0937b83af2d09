"""Filters evaluated in Python, item by item: a second implementation of what `twinspire.stores.filters.filter` says."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from twinspire.stores import StoredItem
from twinspire.stores.filters.tree import (
    And,
    Comparison,
    Condition,
    Contains,
    Exists,
    Field,
    In,
    IsNull,
    Like,
    Literal,
    Not,
    Or,
    ValueType,
)

_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_MISSING = object()
_ISO = re.compile(r"\d{4}-\d\d-\d\d(?:[T ]\d\d:\d\d(?::\d\d(?:\.\d+)?)?(?:Z|[+-]\d\d:\d\d)?)?")


def keeps(condition: Condition, item: StoredItem) -> bool | None:
    """Return whether a condition is true of an item; None: unknown (Kleene's logic)."""
    match condition:
        case And(conditions):
            found = {keeps(part, item) for part in conditions}
            return False if False in found else None if None in found else True
        case Or(conditions):
            found = {keeps(part, item) for part in conditions}
            return True if True in found else None if None in found else False
        case Not(part):
            inner = keeps(part, item)
            return None if inner is None else not inner
        case IsNull(field):
            return _value(field, item) in (None, _MISSING)
        case Exists(field):
            value = _value(field, item)
            return value is not _MISSING and not (field.is_attribute and value is None)
        case Comparison(field, name, literal):
            return _compared(_value(field, item), field, literal, _OPERATORS[name])
        case In(field, literals):
            found = {_compared(_value(field, item), field, literal, operator.eq) for literal in literals}
            return True if True in found else False if False in found else None
        case Like(field, literal):
            value = _value(field, item)
            return _like(str(literal.value), value) if isinstance(value, str) else None
        case Contains(field, literal):
            return _contains(_value(field, item), literal)


def _value(field: Field, item: StoredItem) -> Any:
    if field.is_attribute:
        return getattr(item, field.name)
    value: Any = item.metadata
    for key in field.keys:
        if not isinstance(value, dict) or key not in value:
            return _MISSING
        value = value[key]
    return value


def _type(value: object) -> ValueType | None:
    if isinstance(value, bool):
        return ValueType.BOOLEAN
    if isinstance(value, int | float):
        return ValueType.NUMBER
    return ValueType.TEXT if isinstance(value, str) else None


def _number(value: Any) -> Any:
    """Return a whole number beyond 64 bits as the nearest float."""
    return float(value) if isinstance(value, int) and not -(2**63) <= value < 2**63 else value


def _compared(value: Any, field: Field, literal: Literal, relation: Callable[[Any, Any], bool]) -> bool | None:
    if literal.type is ValueType.TIME:
        if field.is_modified and _type(value) is ValueType.NUMBER:
            return relation(_number(value), literal.value)
        moment = _milliseconds(value)
        return None if moment is None else relation(moment, round(float(literal.value) * 1000))
    if _type(value) is not literal.type:
        return None
    return relation(_number(value), _number(literal.value))


def _milliseconds(value: object) -> int | None:
    if not isinstance(value, str) or _ISO.fullmatch(value) is None:
        return None
    moment = datetime.fromisoformat(value)
    return round((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)


def _folded(text: str) -> str:
    return "".join(character.lower() if character.isascii() else character for character in text)


def _like(pattern: str, value: str) -> bool:
    parts = [".*" if c == "%" else "." if c == "_" else re.escape(c) for c in _folded(pattern)]
    return re.fullmatch("".join(parts), _folded(value), re.DOTALL) is not None


def _contains(value: Any, literal: Literal) -> bool | None:
    if isinstance(value, list):
        return any(_type(x) is literal.type and _number(x) == _number(literal.value) for x in value)
    if not isinstance(value, str) or literal.type is not ValueType.TEXT:
        return None
    return _folded(str(literal.value)) in _folded(value)
