"""Text of a filter to its tree: fields, literals and which of them can be compared."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from twinspire._arguments import is_utf8
from twinspire._times import iso_utc
from twinspire.errors import InputError
from twinspire.stores.filters.grammar import error_at, syntax_tree
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
from twinspire.stores.items import ItemKind

if TYPE_CHECKING:
    from lark import Token

MAX_DEPTH = 60
_MAX_PATTERN_BYTES = 50_000  # SQLite's SQLITE_MAX_LIKE_PATTERN_LENGTH
_TIMES = ("added_at", "changed_at")
_EXPECTED = {
    ValueType.TEXT: "text in quotes",
    ValueType.NUMBER: "a number",
    ValueType.BOOLEAN: "true or false",
    ValueType.TIME: "a time",
}


def parse(text: str) -> Condition:
    """Parse a filter. Raises `InputError`, which shows the place, for a text that is none."""
    return _Parser(text).condition(syntax_tree(text).children[0], 0)


class _Parser:
    """Turns lark's tree of one text into ours."""

    def __init__(self, text: str) -> None:
        self._text = text

    def condition(self, node: Any, depth: int) -> Condition:  # noqa: ANN401 - a branch of lark's tree
        if depth > MAX_DEPTH:
            raise InputError(f"the filter is nested too deeply: expected {MAX_DEPTH} levels or fewer")
        children = node.children
        if node.data in ("either", "both"):
            parts = tuple(self.condition(child, depth + 1) for child in children)
            return Or(parts) if node.data == "either" else And(parts)
        if node.data == "negated":
            return Not(self.condition(children[0], depth + 1))
        field, first = self._field(children[0].children), children[0].children[0]
        match node.data:
            case "compared":
                return self._comparison(field, children[1], children[2])
            case "member":
                return self._in(field, first, children[1:])
            case "no_member":
                return Not(self._in(field, first, children[1:]))
            case "matched":
                return self._match(field, children[1], children[2])
            case "not_matched":
                return Not(self._match(field, children[1], children[2]))
            case "null":
                return IsNull(field)
            case "not_null":
                return Not(IsNull(field))
            case _:
                return Exists(field)

    def _comparison(self, field: Field, relation: Token, token: Token) -> Condition:
        operator = {"==": "=", "<>": "!="}.get(relation, str(relation))
        is_order = operator not in ("=", "!=")
        if token.type == "NULL":
            if is_order:
                raise self._error(token, f"null has no order: expected is null or is not null, got {operator}")
            return IsNull(field) if operator == "=" else Not(IsNull(field))
        literal = self._literal(token, field)
        if is_order and (literal.type is ValueType.BOOLEAN or _is_kind(field)):
            raise self._error(relation, f"{token} has no order: expected = or !=, got {operator}")
        return Comparison(field, operator, literal)

    def _in(self, field: Field, first: Token, tokens: list[Token]) -> In:
        for token in tokens:
            if token.type == "NULL":
                raise self._error(token, f"null cannot stand in a list: add or {first} is null")
        literals = tuple(self._literal(token, field) for token in tokens)
        if {ValueType.TEXT, ValueType.TIME} <= {literal.type for literal in literals}:
            raise self._error(tokens[0], "a list has times without quotes or texts in quotes, not both")
        return In(field, literals)

    def _match(self, field: Field, word: Token, token: Token) -> Like | Contains:
        is_contains = word.type == "CONTAINS"
        if field.is_attribute and (ATTRIBUTES[field.name] is not ValueType.TEXT or _is_kind(field)):
            raise self._error(word, f"{field.name} is no free text: expected = != < <= > >= or in, got {word}")
        takes_any = is_contains and not field.is_attribute  # elements of a list
        if token.type in ("NULL", "TIME") or (token.type != "TEXT" and not takes_any):
            raise self._error(token, f"{word} expects text in quotes, got {token}")
        literal = self._plain_literal(token)
        text = str(literal.value)
        if "\0" in text:
            raise self._error(token, f"{word} takes no NUL character")
        length = len(text.encode()) + (sum(map(text.count, "\\%_")) + 2 if is_contains else 0)  # as a pattern
        if length > _MAX_PATTERN_BYTES:
            raise self._error(token, f"{word} takes text of at most {_MAX_PATTERN_BYTES:,} bytes, got {length:,}")
        return Contains(field, literal) if is_contains else Like(field, literal)

    def _field(self, tokens: list[Token]) -> Field:
        keys = [token[1:-1] if token.type == "QUOTED" else str(token) for token in tokens]
        for token, key in zip(tokens, keys, strict=True):
            # SQLite has no way to write these inside a quoted key.
            if not key or any(character in '"\\' or not character.isprintable() for character in key):
                raise self._error(
                    token, 'a key is empty or has a character that a filter cannot name (" \\ or control)'
                )
        if tokens[0].type == "NAME":
            if len(keys) == 1 and keys[0] in ATTRIBUTES:
                return Field((keys[0],), is_attribute=True)
            if len(keys) > 1 and keys[0] == "metadata":
                return Field(tuple(keys[1:]))
            if len(keys) > 1 and keys[0] in ATTRIBUTES:
                key = ".".join(keys)
                raise self._error(tokens[0], f"{keys[0]} is a column: a key of that name is metadata.{key}")
        return Field(tuple(keys))

    def _literal(self, token: Token, field: Field) -> Literal:
        """Read a literal that is not null and is compared with `field`."""
        literal = self._plain_literal(token)
        if field.is_modified:
            return self._as_time(token, literal)
        if not field.is_attribute:
            return literal
        expected = ATTRIBUTES[field.name]
        if field.name in _TIMES and literal.type in (ValueType.TEXT, ValueType.TIME):
            literal = Literal(ValueType.NUMBER, self._as_time(token, literal).value, literal.source)
        if literal.type is not expected:
            raise self._error(token, f"{field.name} is compared with {_EXPECTED[expected]}, got {token}")
        if _is_kind(field) and literal.value not in list(ItemKind):
            raise self._error(token, f"there is no kind {token}: expected {' or '.join(map(repr, map(str, ItemKind)))}")
        return literal

    def _plain_literal(self, token: Token) -> Literal:
        source = str(token)
        if token.type in ("TRUE", "FALSE"):
            return Literal(ValueType.BOOLEAN, token.type == "TRUE", source)
        if token.type == "NUMBER":
            if not math.isfinite(float(token)):
                raise self._error(token, "this number is too large: expected one below 1.8e308")
            try:
                return Literal(ValueType.NUMBER, int(token), source)
            except ValueError:  # a fraction
                return Literal(ValueType.NUMBER, float(token), source)
        if token.type == "TIME":
            return self._as_time(token, Literal(ValueType.TEXT, source, source))
        text = token[1:-1].replace(token[0] * 2, token[0])
        if not is_utf8(text):
            raise self._error(token, "this text is not UTF-8")
        return Literal(ValueType.TEXT, text, source)

    def _as_time(self, token: Token, literal: Literal) -> Literal:
        """Return ISO 8601 text, UTC if it names no zone, or seconds since 1970 as a time; a boolean as it is."""
        if literal.type in (ValueType.BOOLEAN, ValueType.TIME):
            return literal
        try:
            if isinstance(literal.value, str):
                moment = datetime.fromisoformat(literal.value)
                seconds = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
            else:
                seconds = float(literal.value)
            iso_utc(seconds)
        except (ValueError, OverflowError):
            example = "a date such as 2026-11-21 or '2026-11-21T09:30+01:00', or seconds"
            raise self._error(token, f"{token} is no time: expected {example}") from None
        return Literal(ValueType.TIME, seconds, literal.source)

    def _error(self, token: Token, reason: str) -> InputError:
        return error_at(self._text, token.start_pos or 0, len(token), reason)


def _is_kind(field: Field) -> bool:
    return field.is_attribute and field.name == "kind"
