"""Why a filter keeps nothing: keys that no item has, and values of other types than they are compared with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from twinspire.index.filter_sql import KeyTest
    from twinspire.stores.filters.filter import Filter

_NAMES = {
    "text": "text",
    "integer": "a number",
    "real": "a number",
    "true": "true or false",
    "false": "true or false",
    "array": "a list",
    "object": "an object",
    "null": "null",
}
_SHOWN = 60  # characters of a literal


def explained(where: Filter, types_of: Callable[[str], Mapping[str, int]]) -> list[str]:
    """Return what in `where` is true of no item.

    `types_of` gives, for a path into the metadata, how many items have a value of each type there.
    """
    types = {path: types_of(path) for path in {test.path: None for test in where.tests}}
    missing = {test.key: None for test in where.tests if not types[test.path]}
    reasons = [f"none has the key {' or '.join(missing)}"] if missing else []
    for test in where.tests:
        found = types[test.path]
        if found and test.types and not test.types & found.keys():
            reasons.append(_mismatch(test, found))
    return list(dict.fromkeys(reasons))


def _mismatch(test: KeyTest, found: Mapping[str, int]) -> str:
    literal = test.literal if len(test.literal) <= _SHOWN else f"{test.literal[:_SHOWN]}…"
    names = " or ".join(dict.fromkeys(_NAMES[kind] for kind in found))
    expected = " or ".join(dict.fromkeys(_NAMES[kind] for kind in sorted(test.types)))
    hint = ""
    if test.types == {"text"} and found.keys() & {"integer", "real"} and _is_number(test.literal[1:-1]):
        hint = f": write {test.literal[1:-1]} without quotes"
    elif test.types == {"integer", "real"} and "text" in found and _is_number(test.literal):
        hint = f": write '{test.literal}'"
    count = sum(found.values())
    having = "the one item that has it" if count == 1 else f"all {count:,} items that have it"
    return f"{test.key} is {names} in {having}, but is compared with {expected}, {literal}{hint}"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
