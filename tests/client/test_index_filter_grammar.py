"""Filters against an evaluator written here, over random metadata; their errors; and what cannot be injected."""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twinspire.errors import InputError
from twinspire.index.filter_sql import compiled
from twinspire.stores.filters.filter import Filter

_COLUMNS = ("id", "kind", "uri", "caption", "metadata", "added_at", "changed_at")


def _kept(where: Filter, rows: list[dict[str, Any]]) -> list[int]:
    """Return the ids that SQLite keeps."""
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.execute(f"CREATE TABLE items ({', '.join(_COLUMNS)})")
        connection.executemany(
            "INSERT INTO items VALUES (?, ?, ?, ?, ?, ?, ?)",
            [
                [
                    json.dumps(row["metadata"], ensure_ascii=False) if name == "metadata" else row[name]
                    for name in _COLUMNS
                ]
                for row in rows
            ],
        )
        sql, parameters = compiled(where)
        found = connection.execute(f"SELECT id FROM items WHERE {sql} ORDER BY id", parameters)
        return [number for (number,) in found]


def _row(number: int = 0, **other: Any) -> dict[str, Any]:
    row = {"id": number, "kind": "image", "uri": "/a/b.jpg", "caption": None, "added_at": 100.0, "changed_at": 200.5}
    return {**row, "metadata": {}, **other}


def _keeps(text: str, **row: Any) -> bool:
    return _kept(Filter.parse(text), [_row(**row)]) == [0]


# ---------------------------------------------------------------------------------------------- the evaluator

_MISSING = object()
_TYPES: list[Callable[[Any], bool]] = [
    lambda value: isinstance(value, str),
    lambda value: isinstance(value, bool),
    lambda value: isinstance(value, int | float) and not isinstance(value, bool),
]


def _same_type(a: Any, b: Any) -> bool:
    return any(is_type(a) and is_type(b) for is_type in _TYPES)


@dataclass(frozen=True)
class _Filter:
    """A filter as text, and what it says of a row: True, False, or None for unknown."""

    text: str
    says: Callable[[dict[str, Any]], bool | None]


def _value(row: dict[str, Any], keys: tuple[str, ...]) -> Any:
    if keys == ("caption",):  # the one column that these filters ask for
        return _MISSING if row["caption"] is None else row["caption"]
    at: Any = row["metadata"]
    for key in keys:
        if not isinstance(at, dict) or key not in at:
            return _MISSING
        at = at[key]
    return at


def _literal_text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        quote = "'" if '"' in value else '"'
        return quote + value.replace(quote, quote * 2) + quote
    return repr(value)


_RELATIONS: dict[str, Callable[[Any, Any], bool]] = {
    "=": lambda a, b: bool(a == b),
    "!=": lambda a, b: bool(a != b),
    "<": lambda a, b: bool(a < b),
    "<=": lambda a, b: bool(a <= b),
    ">": lambda a, b: bool(a > b),
    ">=": lambda a, b: bool(a >= b),
}


def _like(value: str, pattern: str) -> bool:
    """SQL's LIKE: % any text, _ one character, capital and small ASCII letters alike."""

    def folded(text: str) -> str:
        return "".join(character.lower() if character.isascii() else character for character in text)

    parts = [".*" if c == "%" else "." if c == "_" else re.escape(c) for c in folded(pattern)]
    return re.fullmatch("".join(parts), folded(value), re.DOTALL) is not None


def _contains(value: Any, literal: str) -> bool | None:
    if isinstance(value, list):
        return any(_same_type(element, literal) and element == literal for element in value)
    if not isinstance(value, str):
        return None
    cleaned = "".join(c.lower() if c.isascii() else c for c in literal)
    return cleaned in "".join(c.lower() if c.isascii() else c for c in value)


_KEYS = st.sampled_from(["year", "camera", "tags", "年份", "a-b", "shot date", "kind", "x.y", "and"])
_TEXT = st.text(st.sampled_from("abAB %_\\'\"红色é1-;"), max_size=4)
_NUMBERS = st.one_of(
    st.integers(-3, 3),
    st.integers(-(2**62), 2**62),
    st.sampled_from([0.5, -0.5, 1.0, 2.0, 1e-7, 1e300]),
    st.floats(allow_nan=False, allow_infinity=False),
)
_SCALARS = st.one_of(_TEXT, _NUMBERS, st.booleans())
_JSON = st.recursive(
    st.one_of(_SCALARS, st.none()),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(_KEYS, inner, max_size=3)),
    max_leaves=4,
)
_ROWS = st.builds(
    lambda metadata, caption: {"metadata": metadata, "caption": caption},
    st.dictionaries(_KEYS, _JSON, max_size=5),
    st.one_of(st.none(), _TEXT),
)


@st.composite
def _conditions(draw: st.DrawFn) -> _Filter:
    keys = tuple(draw(st.lists(_KEYS, min_size=1, max_size=2)))
    plain = [key if key in ("year", "camera", "tags", "年份", "a-b") else f"`{key}`" for key in keys]
    subject = ".".join(plain)
    if draw(st.integers(0, 9)) == 0:
        keys, subject = ("caption",), "caption"
    text_only = subject == "caption"
    negative = draw(st.booleans())
    inner = "not " if negative else ""

    def of(value: Any, holds: bool | None) -> bool | None:
        return None if holds is None else holds != negative

    match draw(st.sampled_from(["compare", "in", "like", "contains", "null", "exists"])):
        case "compare":
            literal = draw(_TEXT if text_only else _SCALARS)
            relation = draw(st.sampled_from(["=", "!="] if isinstance(literal, bool) else list(_RELATIONS)))

            def compare(row: dict[str, Any]) -> bool | None:
                value = _value(row, keys)
                return _RELATIONS[relation](value, literal) if _same_type(value, literal) else None

            return _Filter(f"{subject} {relation} {_literal_text(literal)}", compare)
        case "in":
            listed = draw(st.lists(_TEXT if text_only else _SCALARS, min_size=1, max_size=3))

            def member(row: dict[str, Any]) -> bool | None:
                value = _value(row, keys)
                same = [each for each in listed if _same_type(each, value)]
                return of(value, value in same if same else None)

            return _Filter(f"{subject} {inner}in ({', '.join(map(_literal_text, listed))})", member)
        case "like":
            pattern = draw(_TEXT)

            def like(row: dict[str, Any]) -> bool | None:
                value = _value(row, keys)
                return of(value, _like(value, pattern) if isinstance(value, str) else None)

            return _Filter(f"{subject} {inner}like {_literal_text(pattern)}", like)
        case "contains":
            part = draw(_TEXT)

            def contains(row: dict[str, Any]) -> bool | None:
                value = _value(row, keys)
                return of(value, _contains(value, part))

            return _Filter(f"{subject} {inner}contains {_literal_text(part)}", contains)
        case "null":

            def null(row: dict[str, Any]) -> bool | None:
                value = _value(row, keys)
                return of(value, value is None or value is _MISSING)

            return _Filter(f"{subject} is {inner}null", null)
        case _:
            return _Filter(f"{subject} exists", lambda row: _value(row, keys) is not _MISSING)


def _not(part: _Filter) -> _Filter:
    def says(row: dict[str, Any]) -> bool | None:
        found = part.says(row)
        return None if found is None else not found

    return _Filter(f"not ({part.text})", says)


def _both(a: _Filter, b: _Filter) -> _Filter:
    def says(row: dict[str, Any]) -> bool | None:
        found = (a.says(row), b.says(row))
        return False if False in found else None if None in found else True

    return _Filter(f"({a.text}) and ({b.text})", says)


def _either(a: _Filter, b: _Filter) -> _Filter:
    def says(row: dict[str, Any]) -> bool | None:
        found = (a.says(row), b.says(row))
        return True if True in found else None if None in found else False

    return _Filter(f"({a.text}) or ({b.text})", says)


_FILTERS = st.recursive(
    _conditions(),
    lambda inner: st.one_of(st.builds(_not, inner), st.builds(_both, inner, inner), st.builds(_either, inner, inner)),
    max_leaves=5,
)


@settings(max_examples=250, deadline=None)
@given(chosen=_FILTERS, rows=st.lists(_ROWS, min_size=1, max_size=6))
def test_a_filter_keeps_what_an_evaluator_keeps(chosen: _Filter, rows: list[dict[str, Any]]) -> None:
    """A filter keeps exactly the rows of which an evaluator of three-valued logic says true."""
    numbered = [_row(number, **row) for number, row in enumerate(rows)]

    expected = [row["id"] for row in numbered if chosen.says(row) is True]

    assert _kept(Filter.parse(chosen.text), numbered) == expected


@settings(max_examples=300, deadline=None)
@given(text=st.text(st.sampled_from("ab1 .,()'\"`=<>!-;%*?$\\红“\0\n andornotinlike"), max_size=25))
def test_any_text_is_a_filter_or_a_clear_error(text: str) -> None:
    """Any text either runs in SQLite or is an InputError, never another error."""
    try:
        where = Filter.parse(text)
    except InputError:
        return
    _kept(where, [_row(metadata={"a": "b", "b": {"a": 1}})])


# ---------------------------------------------------------------------------------------------- single facts


def test_precedence() -> None:
    """`not` binds before `and`, `and` before `or`."""
    assert _keeps("a = 1 or a = 2 and b = 9", metadata={"a": 1, "b": 1})
    assert not _keeps("(a = 1 or a = 2) and b = 9", metadata={"a": 1, "b": 1})
    assert _keeps("not a = 2 and b = 1", metadata={"a": 1, "b": 1})


@pytest.mark.parametrize("text", ["year != 2020", "not year = 2020", "year < 3000", "not year contains 'x'"])
@pytest.mark.parametrize("metadata", [{}, {"year": None}, {"year": {"x": 1}}, {"year": True}])
def test_unknown_is_not_kept(text: str, metadata: dict[str, Any]) -> None:
    """Where the key is missing, null or of another type, neither a comparison nor its negation keeps the item."""
    assert not _keeps(text, metadata=metadata)


def test_keywords_take_any_case() -> None:
    """Keywords may be written in capitals."""
    assert _keeps("A IS NULL AND NOT b EXISTS OR c IN (TRUE)", metadata={})


def test_columns_are_compared_with_their_type() -> None:
    """The built-in columns are compared as what they are, times also with ISO dates in UTC."""
    at = datetime(2026, 11, 21, 12, tzinfo=UTC).timestamp()
    assert _keeps("kind = 'image' and id = 0 and uri like '%.JPG' and caption is null")
    assert _keeps("added_at > '2026-11-21' and added_at < '2026-11-21T13:00'", added_at=at)
    assert not _keeps("added_at > '2026-11-21T13:00+01:00'", added_at=at)


def test_a_key_named_as_a_column_is_reached() -> None:
    """`metadata.kind` and the key in backticks are of the metadata, `kind` is the column."""
    assert _keeps("metadata.kind = 'mug' and `kind` = 'mug' and kind = 'image'", metadata={"kind": "mug"})


def test_a_dot_goes_into_objects() -> None:
    """A dotted path goes into objects; a key with a dot in it stands in backticks."""
    metadata = {"camera": {"model": "X"}, "camera.model": "Y"}
    assert _keeps("camera.model = 'X' and `camera.model` = 'Y'", metadata=metadata)


def test_a_list_contains_its_elements() -> None:
    """`contains` of a list asks for a whole element, of its type."""
    metadata = {"tags": ["sea", 3, True]}
    assert _keeps("tags contains 'sea' and tags contains 3 and tags contains true", metadata=metadata)
    assert not _keeps("tags contains 'se' or tags contains 1", metadata=metadata)


@pytest.mark.parametrize(
    "injected",
    ["x' OR '1'='1", "'; DROP TABLE items; --", '" OR 1=1 --', '$."a"\') OR 1=1 --', "%' ESCAPE '", "?1", "1 OR 1"],
)
def test_what_is_quoted_stays_a_literal(injected: str) -> None:
    """SQL inside a literal is compared as text and is nowhere in the statement."""
    where = Filter.parse(f"a = {_literal_text(injected)}")

    sql, parameters = compiled(where)
    assert injected in parameters
    assert injected not in sql
    assert _kept(where, [_row(0, metadata={"a": injected}), _row(1, metadata={"a": "x"})]) == [0]


@pytest.mark.parametrize(
    "text",
    [
        "1 = 1", "a = 1; DROP TABLE items", "a = 1 -- b", "a = 1 /* b */", "a = 1 UNION SELECT 1", "a = (SELECT 1)",
        "json_extract(metadata, '$') = 1", "a = ?", "a = :b", "a || 'x' = 'y'", "`a\"') OR 1=1 --` = 1", "a\\ = 1",
    ],
)  # fmt: skip
def test_sql_is_no_filter(text: str) -> None:
    """SQL that is no filter is an error that shows the place."""
    with pytest.raises(InputError, match=r"\n +\^"):
        Filter.parse(text)


@pytest.mark.parametrize(
    ("text", "says", "carets"),
    [
        ("year >= 2020 an camera = 'X'", "'or'", (13, 15)),
        ("camera = X", "'X'", (9, 10)),
        ("year >", "ends", (6, 7)),
        ("年份 > 2020 和 x = 1", "和", (12, 14)),
        ("a = “x”", "“", (4, 5)),
        ("a = 'x", "closed", (4, 5)),
        ("kind = 'photo'", "'image'", (7, 14)),
        ("added_at > 'soon'", "time", (11, 17)),
        ("id = 'x'", "number", (5, 8)),
        ("a < null", "null", (4, 8)),
        ("a > true", "order", (2, 3)),
        ("a in (1, null)", "a is null", (9, 13)),
        ("a = 1e999", "large", (4, 9)),
        ("shot date = 3", "backticks", (5, 9)),
        ("kind.x = 1", "metadata.kind.x", (0, 4)),
        ("a like 3", "text", (7, 8)),
    ],
)
def test_an_error_has_a_caret_under_the_place(text: str, says: str, carets: tuple[int, int]) -> None:
    """An error says what was expected, shows the text, and marks the place by terminal cells."""
    with pytest.raises(InputError) as caught:
        Filter.parse(text)

    message, shown, marks = str(caught.value).split("\n")
    assert says in message
    assert shown == f"  {text}"
    assert (len(marks) - len(marks.lstrip()) - 2, len(marks) - 2) == carets


def test_a_long_filter_is_shown_around_the_place() -> None:
    """Of a long filter an error shows the part around the place, on one line."""
    with pytest.raises(InputError) as caught:
        Filter.parse("a = 1 or\n" * 50 + "b ! 2" + " or a = 1" * 50)

    _, shown, marks = str(caught.value).split("\n")
    assert len(shown) < 140
    assert shown[marks.index("^")] == "!"


@pytest.mark.parametrize(
    "text",
    ["", "   ", "not (" * 300 + "a = 1" + ")" * 300, "a = 'x' or " * 4000 + "a = 1", "x" * 200_000, "a = '\ud800'"],
    ids=["empty", "blank", "nested", "many", "long", "no UTF-8"],
)
def test_what_is_too_much_is_refused(text: str) -> None:
    """Empty, endless, deeply nested and undecodable filters are errors."""
    with pytest.raises(InputError):
        compiled(Filter.parse(text))


def test_many_conditions_run() -> None:
    """A thousand conditions and parentheses around everything are no problem for SQLite."""
    text = "(" * 500 + " or ".join(f"a = {number}" for number in range(1000)) + ")" * 500
    assert _keeps(text, metadata={"a": 999})


def test_a_filter_is_only_made_of_text() -> None:
    """Filters are equal if their texts are, and show as their texts."""
    assert Filter.parse("a = 1") == Filter.parse("a = 1") != Filter.parse("a = 2")
    assert str(Filter.parse("a = 1")) == "a = 1"


def test_all_of_several_filters_keeps_what_each_keeps() -> None:
    """Combined, `or` inside of one binds before the `and` between them, and the text says the same."""
    both = Filter.all_of(Filter.parse("a = 1 or b = 1"), Filter.parse("c = 1"), Filter.parse("d = 1 and e = 1"))
    rows = [_row(n, metadata={key: (n >> i) & 1 for i, key in enumerate("abcde")}) for n in range(32)]

    expected = [n for n in range(32) if n & 3 and n & 28 == 28]

    assert _kept(both, rows) == _kept(Filter.parse(str(both)), rows) == expected
    assert Filter.all_of(both) is both
