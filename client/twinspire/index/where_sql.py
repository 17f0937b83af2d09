"""Filters compiled to SQL; `twinspire.index.where` says what they mean."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any, TypeAlias

from twinspire.errors import InputError
from twinspire.index.items import ItemKind
from twinspire.index.where_text import syntax_tree, wrong_at

if TYPE_CHECKING:
    from lark import Token, Tree

Parameter: TypeAlias = int | float | str
Sql: TypeAlias = tuple[str, tuple[Parameter, ...]]

MOST_PARAMETERS = 10_000
_MOST_NESTED = 60
_LARGEST = 2**63 - 1


class _Type(StrEnum):
    """What can be compared with what; the values are JSON's types as SQLite names them."""

    TEXT = "'text'"
    NUMBER = "'integer', 'real'"
    TRUTH = "'true', 'false'"


COLUMNS = {
    "kind": _Type.TEXT,
    "uri": _Type.TEXT,
    "caption": _Type.TEXT,
    "id": _Type.NUMBER,
    "added_at": _Type.NUMBER,
    "changed_at": _Type.NUMBER,
}
_TIMES = ("added_at", "changed_at")
_SAID = {_Type.TEXT: "text in quotes", _Type.NUMBER: "a number", _Type.TRUTH: "true or false"}


def compiled(text: str) -> tuple[str, tuple[Parameter, ...], tuple[str, ...]]:
    """Return a filter as an expression over the table `items`, what is bound in it, and the metadata's keys in it.

    Keys are written as a filter has them. Raises `InputError`, which shows the place.
    """
    compiler = _Compiler(text)
    sql, parameters = compiler.compile()
    return sql, parameters, tuple(compiler.keys)


@dataclass(frozen=True, slots=True)
class _Field:
    """A column, or a path into the metadata."""

    column: str | None
    path: str
    shown: Token


@dataclass(frozen=True, slots=True)
class _Value:
    """A literal: its type and how it is bound."""

    kind: _Type
    sql: str
    parameter: Parameter


class _Compiler:
    """Turns one text into SQL."""

    def __init__(self, text: str) -> None:
        self._text = text
        self.keys: dict[str, None] = {}
        self._conditions: dict[str, Callable[[Any], Sql]] = {
            "compared": self._compared,
            "member": self._member,
            "matched": self._matched,
            "null": lambda node: self._null(self._field(node.children[0])),
            "not_null": lambda node: _not(self._null(self._field(node.children[0]))),
            "exists": lambda node: self._exists(self._field(node.children[0])),
            "no_member": lambda node: _not(self._member(node)),
            "not_matched": lambda node: _not(self._matched(node)),
        }

    def compile(self) -> Sql:
        sql, parameters = self._expression(syntax_tree(self._text).children[0], 0)
        if len(parameters) > MOST_PARAMETERS:
            raise InputError(
                f"the filter has {len(parameters):,} literals and fields: expected {MOST_PARAMETERS:,} or fewer"
            )
        return sql, parameters

    def _expression(self, node: Any, depth: int) -> Sql:  # noqa: ANN401 - a branch of lark's tree
        if depth > _MOST_NESTED:
            raise InputError(f"the filter is nested too deeply: expected {_MOST_NESTED} levels or fewer")
        if node.data in ("either", "both"):
            parts = [self._expression(child, depth + 1) for child in node.children]
            return _joined(parts, " OR " if node.data == "either" else " AND ")
        if node.data == "negated":
            return _not(self._expression(node.children[0], depth + 1))
        return self._conditions[node.data](node)

    def _compared(self, node: Tree[Token]) -> Sql:
        subject, relation, literal = self._field(node.children[0]), str(node.children[1]), _token(node.children[2])
        relation = {"==": "=", "<>": "!="}.get(relation, relation)
        if literal.type == "NULL":
            if relation not in ("=", "!="):
                raise self._wrong(literal, f"null has no order: expected is null or is not null, got {relation}")
            return self._null(subject) if relation == "=" else _not(self._null(subject))
        value = self._value(literal, subject)
        if relation not in ("=", "!=") and (value.kind is _Type.TRUTH or subject.column == "kind"):
            raise self._wrong(_token(node.children[1]), f"{literal} has no order: expected = or !=, got {relation}")
        return _typed(subject, value.kind, f"{{}} {relation} {value.sql}", (value.parameter,))

    def _member(self, node: Tree[Token]) -> Sql:
        subject = self._field(node.children[0])
        values = []
        for literal in map(_token, node.children[1:]):
            if literal.type == "NULL":
                raise self._wrong(literal, f"null cannot stand in a list: add or {subject.shown} is null")
            values.append(self._value(literal, subject))
        cases: list[Sql] = []
        for kind in _Type:
            some = [value for value in values if value.kind is kind]
            if some:
                listed = ", ".join(value.sql for value in some)
                cases.append(_typed(subject, kind, f"{{}} IN ({listed})", tuple(value.parameter for value in some)))
        sql = ", ".join(case for case, _ in cases)
        parameters = tuple(parameter for _, bound in cases for parameter in bound)
        return (f"COALESCE({sql})" if len(cases) > 1 else sql), parameters

    def _matched(self, node: Tree[Token]) -> Sql:
        subject, word, literal = self._field(node.children[0]), _token(node.children[1]), _token(node.children[2])
        in_list = word.type == "CONTAINS" and subject.column is None
        if subject.column is not None and (COLUMNS[subject.column] is not _Type.TEXT or subject.column == "kind"):
            raise self._wrong(word, f"{subject.column} is no free text: expected = != < <= > >= or in, got {word}")
        if literal.type == "NULL" or (literal.type != "TEXT" and not in_list):
            raise self._wrong(literal, f"{word} expects text in quotes, got {literal}")
        value = self._value(literal, subject)
        text = str(value.parameter)
        if "\0" in text:
            raise self._wrong(literal, f"{word} knows no NUL character")
        if word.type == "LIKE":
            return _typed(subject, _Type.TEXT, "{} LIKE ?", (text,))
        escaped = "".join("\\" + character if character in "\\%_" else character for character in text)
        found = _typed(subject, _Type.TEXT, "{} LIKE ? ESCAPE '\\'", (f"%{escaped}%",))
        if not in_list:
            return found
        listed = f"element.type IN ({value.kind.value}) AND element.value = {value.sql}"
        elements = f"SELECT 1 FROM json_each(items.metadata, ?) AS element WHERE {listed}"  # noqa: S608 - no literal in it
        has = f"CASE WHEN json_type(items.metadata, ?) = 'array' THEN EXISTS ({elements}) END"
        has_parameters = (subject.path, subject.path, value.parameter)
        if value.kind is not _Type.TEXT:
            return has, has_parameters
        return f"COALESCE({found[0]}, {has})", (*found[1], *has_parameters)

    @staticmethod
    def _null(subject: _Field) -> Sql:
        if subject.column is not None:
            return f"(items.{subject.column} IS NULL)", ()
        return "(COALESCE(json_type(items.metadata, ?), 'null') = 'null')", (subject.path,)

    @staticmethod
    def _exists(subject: _Field) -> Sql:
        if subject.column is not None:
            return f"(items.{subject.column} IS NOT NULL)", ()
        return "(json_type(items.metadata, ?) IS NOT NULL)", (subject.path,)

    def _field(self, node: Any) -> _Field:  # noqa: ANN401 - a branch of lark's tree
        tokens: list[Token] = node.children
        keys = []
        for token in tokens:
            key = token[1:-1] if token.type == "QUOTED" else str(token)
            # SQLite has no way to write these inside a quoted key.
            if not key or any(character in '"\\' or not character.isprintable() for character in key):
                raise self._wrong(
                    token, 'a key is empty or has a character that a filter cannot name (" \\ or control)'
                )
            keys.append(key)
        if tokens[0].type == "NAME" and len(keys) == 1 and keys[0] in COLUMNS:
            return _Field(keys[0], "", tokens[0])
        if tokens[0].type == "NAME" and len(keys) > 1:
            if keys[0] == "metadata":
                keys = keys[1:]
            elif keys[0] in COLUMNS:
                raise self._wrong(tokens[0], f"{keys[0]} is a column: a key of that name is metadata.{'.'.join(keys)}")
        self.keys[".".join(f"`{key}`" for key in keys)] = None
        return _Field(None, "$" + "".join(f'."{key}"' for key in keys), tokens[0])

    def _value(self, token: Token, subject: _Field) -> _Value:
        """Read a literal that is not null."""
        if token.type in ("TRUE", "FALSE"):
            value = _Value(_Type.TRUTH, "?", int(token.type == "TRUE"))
        elif token.type == "NUMBER":
            value = self._number(token)
        else:
            text = token[1:-1].replace(token[0] * 2, token[0])
            if any("\ud800" <= character <= "\udfff" for character in text):
                raise self._wrong(token, "this text is not UTF-8")
            value = _Value(_Type.TEXT, "?", text)
        if subject.column in _TIMES and value.kind is _Type.TEXT:
            value = _Value(_Type.NUMBER, "?", self._time(token, str(value.parameter)))
        if subject.column is not None and value.kind is not COLUMNS[subject.column]:
            expected = _SAID[COLUMNS[subject.column]]
            raise self._wrong(token, f"{subject.column} is compared with {expected}, got {token}")
        if subject.column == "kind" and value.parameter not in [kind.value for kind in ItemKind]:
            raise self._wrong(token, f"there is no kind {token}: expected {' or '.join(map(repr, map(str, ItemKind)))}")
        return value

    def _number(self, token: Token) -> _Value:
        try:
            whole = int(token)
            if abs(whole) <= _LARGEST:
                return _Value(_Type.NUMBER, "?", whole)
        except ValueError:  # a fraction, or thousands of digits
            pass
        number = float(token)
        if not math.isfinite(number):
            raise self._wrong(token, "this number is too large: expected one below 1.8e308")
        # As text: SQLite then reads it just as it reads the metadata's.
        return _Value(_Type.NUMBER, "CAST(? AS REAL)", json.dumps(number))

    def _time(self, token: Token, text: str) -> float:
        try:
            moment = datetime.fromisoformat(text)
        except ValueError:
            raise self._wrong(
                token, f"{token} is no time: expected a date such as '2026-11-21' or '2026-11-21T09:30', or seconds"
            ) from None
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()

    def _wrong(self, token: Token, reason: str) -> InputError:
        return wrong_at(self._text, token.start_pos or 0, len(token), reason)


def _typed(subject: _Field, kind: _Type, condition: str, parameters: tuple[Parameter, ...]) -> Sql:
    """Return `condition` over the subject's value, NULL where the value is of another type."""
    if subject.column is not None:
        return f"({condition.format(f'items.{subject.column}')})", parameters
    value = condition.format("json_extract(items.metadata, ?)")
    sql = f"CASE WHEN json_type(items.metadata, ?) IN ({kind.value}) THEN {value} END"
    return sql, (subject.path, subject.path, *parameters)


def _not(part: Sql) -> Sql:
    return f"(NOT {part[0]})", part[1]


def _joined(parts: list[Sql], word: str) -> Sql:
    """Join with AND or OR as a balanced tree: SQLite refuses expressions of more than 1,000 levels."""
    while len(parts) > 1:
        pairs: Iterable[list[Sql]] = (parts[start : start + 2] for start in range(0, len(parts), 2))
        parts = [
            (f"({word.join(sql for sql, _ in pair)})", tuple(bound for _, some in pair for bound in some))
            for pair in pairs
        ]
    return parts[0]


def _token(child: Any) -> Token:  # noqa: ANN401 - lark's trees hold tokens and branches
    return child  # type: ignore[no-any-return]
