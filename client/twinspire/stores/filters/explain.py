"""Reasons why a filter keeps nothing: keys that no item has, and values of another type than they are compared with."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from twinspire.stores.filters.filter import Filter
from twinspire.stores.filters.tree import Comparison, Contains, Exists, In, IsNull, Literal, Test, ValueType, tests_of

_NAMES = {
    "text": "text",
    "number": "a number",
    "boolean": "true or false",
    "list": "a list",
    "object": "an object",
    "null": "null",
}
_SHOWN = 60  # characters of a literal


def explain(where: Filter, types_of: Callable[[tuple[str, ...]], Mapping[str, int]]) -> list[str]:
    """Return which keys of `where` no item has, and which tests no value has the type for.

    `types_of` gives, for a path of keys in the metadata, how many items have a value of each JSON type there: text,
    number, boolean, list, object, null.
    """
    tests = [test for test in tests_of(where.condition) if not test.field.is_attribute]
    types = {keys: types_of(keys) for keys in dict.fromkeys(test.field.keys for test in tests)}
    missing = dict.fromkeys(test.field.name for test in tests if not types[test.field.keys])
    reasons = [f"none has the key {' or '.join(missing)}"] if missing else []
    for test in tests:
        found, expected = types[test.field.keys], _expected_types(test)
        if found and expected and not expected & found.keys():
            reasons.append(_mismatch(test, expected, found))
    return list(dict.fromkeys(reasons))


def _literals(test: Test) -> tuple[Literal, ...]:
    if isinstance(test, In):
        return test.literals
    return () if isinstance(test, IsNull | Exists) else (test.literal,)


def _expected_types(test: Test) -> set[str]:
    """Return the JSON types of which a value can make a test true; empty for all of them."""
    types = {"text" if literal.type is ValueType.TIME else literal.type.value for literal in _literals(test)}
    if isinstance(test, Contains):
        return {"list", *(types & {"text"})}
    is_time = isinstance(test, Comparison | In) and any(x.type is ValueType.TIME for x in _literals(test))
    return types | ({"number"} if is_time and test.field.is_modified else set())


def _mismatch(test: Test, expected: set[str], found: Mapping[str, int]) -> str:
    literals = _literals(test)
    source = ", ".join(literal.source for literal in literals)
    source = source if len(source) <= _SHOWN else f"{source[:_SHOWN]}…"
    hint = ""
    if expected == {"text"} and "number" in found and len(literals) == 1 and _is_number(literals[0].value):
        hint = f": write {literals[0].value} without quotes"
    elif expected == {"number"} and "text" in found and len(literals) == 1:
        hint = f": write '{literals[0].source}'"
    count = sum(found.values())
    having = "the one item that has it" if count == 1 else f"all {count:,} items that have it"
    return (
        f"{test.field.name} is {' or '.join(_NAMES[name] for name in found)} in {having}, but is compared with "
        f"{' or '.join(_NAMES[name] for name in sorted(expected))}, {source}{hint}"
    )


def _is_number(value: object) -> bool:
    try:
        float(str(value))
    except ValueError:
        return False
    return True
