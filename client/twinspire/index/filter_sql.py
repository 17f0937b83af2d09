"""Filters compiled to SQL over the table `items`, and keyword queries compiled to expressions of SQLite's FTS5.

In the SQL every literal and every path of keys is a parameter. In an FTS5 expression everything is quoted, so that a
word is never syntax: https://sqlite.org/fts5.html#full_text_query_syntax
"""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from functools import lru_cache
from typing import TypeAlias

from twinspire._times import iso_utc
from twinspire.errors import InputError
from twinspire.stores.filters.filter import Filter
from twinspire.stores.filters.tree import (
    ATTRIBUTES,
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
from twinspire.stores.text_query import TextPhrase, TextQuery, TextTerm, is_prefix

Parameter: TypeAlias = int | float | str
Sql: TypeAlias = tuple[str, tuple[Parameter, ...]]
"""An expression, and what is bound to its question marks, in order."""

MAX_PARAMETERS = 10_000
_LARGEST = 2**63 - 1
_JSON_TYPES = {
    ValueType.TEXT: "'text'",
    ValueType.NUMBER: "'integer', 'real'",
    ValueType.BOOLEAN: "'true', 'false'",
    ValueType.TIME: "'text'",
}
"""The results of `json_type` for the values that a literal compares with."""
_IS_DATE = "GLOB '[0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9]*'"  # `julianday` alone would take "now" for a time


@lru_cache(maxsize=256)
def compiled(where: Filter) -> Sql:
    """Return a filter as SQL. Raises `InputError` where it is too long or nested too deeply for SQLite."""
    sql, parameters = _sql(where.condition)
    if len(parameters) > MAX_PARAMETERS:
        raise InputError(
            f"the filter has {len(parameters):,} literals and fields: expected {MAX_PARAMETERS:,} or fewer"
        )
    # SQLite's parser has a stack of 100: leave room for the query around the expression.
    columns = ", ".join([*ATTRIBUTES, "metadata"])
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.execute(f"CREATE TABLE items ({columns})")
        try:
            connection.execute(f"EXPLAIN SELECT 1 FROM items WHERE {'(' * 20}{sql}{')' * 20}", parameters)  # noqa: S608
        except sqlite3.OperationalError as error:
            raise InputError(f"the filter is nested too deeply: {error}. Write it with fewer parentheses") from error
    return sql, parameters


def fts5_expression(query: TextQuery) -> str:
    """Return the FTS5 expression of a keyword query that is not empty."""
    required = " AND ".join([*map(_phrase, query.phrases), *(f"({_any_of(term)})" for term in query.must)])
    optional = " OR ".join(map(_any_of, query.should))
    if not required or not optional:
        return required or optional
    # An item without any of the optional words matches too; BM25 counts all phrases of an expression.
    return f"({required}) AND ({optional} OR ({required}))"


def json_path(keys: tuple[str, ...]) -> str:
    """Return a path of keys as SQLite's JSON functions take it."""
    return "$" + "".join(f'."{key}"' for key in keys)


def _sql(condition: Condition) -> Sql:
    match condition:
        case And(conditions):
            return _joined([_sql(part) for part in conditions], " AND ")
        case Or(conditions):
            return _joined([_sql(part) for part in conditions], " OR ")
        case Not(part):
            sql, parameters = _sql(part)
            return f"(NOT {sql})", parameters
        case IsNull(field):
            if field.is_attribute:
                return f"(items.{field.name} IS NULL)", ()
            return "(COALESCE(json_type(items.metadata, ?), 'null') = 'null')", (json_path(field.keys),)
        case Exists(field):
            if field.is_attribute:
                return f"(items.{field.name} IS NOT NULL)", ()
            return "(json_type(items.metadata, ?) IS NOT NULL)", (json_path(field.keys),)
        case Comparison(field, operator, literal):
            return _typed(field, [literal], f"{{}} {operator} {{}}")
        case In(field, literals):
            by_type = [[literal for literal in literals if literal.type is type_] for type_ in ValueType]
            cases = [_typed(field, some, "{} IN ({})") for some in by_type if some]
            sql = ", ".join(case for case, _ in cases)
            bound = tuple(parameter for _, some in cases for parameter in some)
            return (f"COALESCE({sql})" if len(cases) > 1 else sql), bound
        case Like(field, literal):
            return _typed(field, [literal], "{} LIKE {}")
        case Contains(field, literal):
            return _contains(field, literal)


def _contains(field: Field, literal: Literal) -> Sql:
    text = "".join("\\" + character if character in "\\%_" else character for character in str(literal.value))
    in_text = _case(field, ValueType.TEXT, "{} LIKE ? ESCAPE '\\'", (f"%{text}%",))
    if field.is_attribute:
        return in_text
    value, parameter = _bound(field, literal)
    path = json_path(field.keys)
    listed = f"element.type IN ({_JSON_TYPES[literal.type]}) AND element.value = {value}"
    elements = f"SELECT 1 FROM json_each(items.metadata, ?) AS element WHERE {listed}"  # noqa: S608 - no literal in it
    in_list = f"CASE WHEN json_type(items.metadata, ?) = 'array' THEN EXISTS ({elements}) END"
    parameters = (path, path, parameter)
    if literal.type is not ValueType.TEXT:
        return in_list, parameters
    return f"COALESCE({in_text[0]}, {in_list})", (*in_text[1], *parameters)


def _typed(field: Field, literals: list[Literal], condition: str) -> Sql:
    """Return `condition` over the field's value and literals of one type; NULL for values of another type."""
    pairs = [_bound(field, literal) for literal in literals]
    condition = condition.format("{}", ", ".join(sql for sql, _ in pairs))
    parameters = tuple(parameter for _, parameter in pairs)
    if literals[0].type is not ValueType.TIME:
        return _case(field, literals[0].type, condition, parameters)
    path = json_path(field.keys)
    dated = condition.format("julianday(json_extract(items.metadata, ?))")
    sql = f"CASE WHEN json_extract(items.metadata, ?) {_IS_DATE} THEN {dated} END"
    sql = f"CASE WHEN json_type(items.metadata, ?) = 'text' THEN {sql}"
    parameters = (path, path, path, *parameters)
    if field.is_modified:
        number, paths = _case(field, ValueType.NUMBER, condition.replace("julianday(?)", "?"), ())
        sql += f" ELSE {number}"
        parameters += (*paths, *(float(literal.value) for literal in literals))
    return f"{sql} END", parameters


def _case(field: Field, value_type: ValueType, condition: str, parameters: tuple[Parameter, ...]) -> Sql:
    """Return `condition` over the field's value, NULL for values of another type."""
    if field.is_attribute:
        return f"({condition.format(f'items.{field.name}')})", parameters
    value = condition.format("json_extract(items.metadata, ?)")
    path = json_path(field.keys)
    sql = f"CASE WHEN json_type(items.metadata, ?) IN ({_JSON_TYPES[value_type]}) THEN {value} END"
    return sql, (path, path, *parameters)


def _bound(field: Field, literal: Literal) -> tuple[str, Parameter]:
    """Return a literal as an expression with one parameter, and the parameter."""
    value = literal.value
    if literal.type is ValueType.TIME:
        return "julianday(?)", iso_utc(float(value))
    if isinstance(value, bool):
        return "?", int(value)
    if isinstance(value, str) or (isinstance(value, int) and -_LARGEST - 1 <= value <= _LARGEST):
        return "?", value
    if field.is_attribute and isinstance(value, float):
        return "?", value
    # Read as the metadata is: SQLite's other ways to read a number differ in the last bit, some of them.
    return "json_extract(?, '$')", json.dumps(value)


def _joined(parts: list[Sql], word: str) -> Sql:
    """Join with AND or OR as a balanced tree: SQLite refuses expressions of more than 1,000 levels."""
    while len(parts) > 1:
        pairs = [parts[start : start + 2] for start in range(0, len(parts), 2)]
        parts = [
            (f"({word.join(sql for sql, _ in pair)})", tuple(bound for _, some in pair for bound in some))
            for pair in pairs
        ]
    return parts[0]


def _any_of(term: TextTerm) -> str:
    return " OR ".join(map(_phrase, term))


def _phrase(words: TextPhrase) -> str:
    quoted = '"' + " ".join(words).replace('"', '""') + '"'
    return f"{quoted}*" if is_prefix(words[-1]) else quoted
