"""Parser of filters: text to a tree.

either:    both (OR both)*
both:      negation (AND negation)*
negation:  NOT negation | "(" either ")" | condition
condition: field COMPARE value | field [NOT] IN "(" value ("," value)* ")" | field [NOT] (LIKE | CONTAINS) value
| field IS [NOT] NULL | field EXISTS
field:     (NAME | QUOTED) ("." (NAME | QUOTED))*
value:     TEXT | NUMBER | TIME | TRUE | FALSE | NULL
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from datetime import UTC, datetime

from twinspire._arguments import is_utf8
from twinspire._times import iso_utc
from twinspire.errors import InputError
from twinspire.stores.filters.lexer import MAX_CHARACTERS, Token, error_at, tokenize, unexpected
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

MAX_DEPTH = 60
_MAX_PATTERN_BYTES = 50_000  # SQLite's SQLITE_MAX_LIKE_PATTERN_LENGTH
_TIMES = ("added_at", "changed_at")
_EXPECTED = {
    ValueType.TEXT: "text in quotes",
    ValueType.NUMBER: "a number",
    ValueType.BOOLEAN: "true or false",
    ValueType.TIME: "a time",
}
_FIELD = "a field such as year or camera.model"
_RELATION = "one of = != < <= > >=, in (...), like, contains, is null, exists"
_VALUE = "a value: 'text' in quotes, a number, a date such as 2026-11-21, true, false or null"
_SPACE_HINT = ". A field whose name has a space is written in backticks: `shot date`"
_RELATIONS = ("COMPARE", "NOT", "IN", "LIKE", "CONTAINS", "IS", "EXISTS")
_VALUES = ("TEXT", "NUMBER", "TIME", "TRUE", "FALSE", "NULL")


@dataclass(slots=True)
class _Group:
    """What was read within parentheses, or of the whole filter: a disjunction of conjunctions, and their depths.

    `negations` counts the `not`s before the next condition.
    """

    parts: list[list[tuple[Condition, int]]] = field(default_factory=lambda: [[]])
    negations: int = 0

    def add(self, condition: Condition, depth: int) -> None:
        """Append a condition to the last conjunction, negated as often as `not` stands before it."""
        for _ in range(self.negations):
            condition, depth = Not(condition), depth + 1
            _check_depth(depth)
        self.negations = 0
        self.parts[-1].append((condition, depth))

    def joined(self) -> tuple[Condition, int]:
        """Return all as one condition, with its depth."""
        return _joined(Or, [_joined(And, part) for part in self.parts])


def parse(text: str) -> Condition:
    """Parse a filter. Raises `InputError`, which shows the place, for a text that is not a filter."""
    if not isinstance(text, str):
        raise InputError(f"a filter is a str such as \"year >= 2020 and camera = 'X'\", got {text!r}")
    if not text.strip():
        raise InputError("the filter is empty: expected a condition such as year >= 2020")
    if len(text) > MAX_CHARACTERS:
        raise InputError(f"the filter has {len(text):,} characters: expected {MAX_CHARACTERS:,} or fewer")
    return _Parser(text).parse()


class _Parser:
    """Reads one text, a token ahead."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens = tokenize(text)
        self._next = next(self._tokens)

    def parse(self) -> Condition:
        """Return the condition that the text is, by a stack of its open parentheses instead of recursion."""
        groups = [_Group()]
        while True:
            while self._next.type in ("NOT", "("):
                if self._take().type == "NOT":
                    groups[-1].negations += 1
                else:
                    groups.append(_Group())
            groups[-1].add(self._condition(), 0)
            while self._next.type == ")" and len(groups) > 1:
                self._take()
                closed = groups.pop().joined()
                groups[-1].add(*closed)
            if self._next.type == "END" and len(groups) == 1:
                return groups[0].joined()[0]
            end = "the end" if len(groups) == 1 else "')'"
            if self._take("AND", "OR", expected=f"'and', 'or' or {end}").type == "OR":
                groups[-1].parts.append([])

    def _take(self, *types: str, expected: str = "", hint: str = "") -> Token:
        """Return the next token and go on. Raises `InputError` if it is of none of `types`, where some are given."""
        token = self._next
        if types and token.type not in types:
            raise unexpected(self._text, token, expected, hint)
        if token.type != "END":
            self._next = next(self._tokens)
        return token

    def _error(self, token: Token, reason: str) -> InputError:
        return error_at(self._text, token, reason)

    def _value_token(self) -> Token:
        return self._take(*_VALUES, expected=_VALUE, hint=". If {0} is text, put it in quotes: '{0}'")

    def _condition(self) -> Condition:
        first = self._next
        subject = self._field()
        relation = self._take(*_RELATIONS, expected=_RELATION, hint=_SPACE_HINT)
        if relation.type == "NOT":
            relation = self._take("IN", "LIKE", "CONTAINS", expected="in, like or contains")
            return Not(self._in(subject, first) if relation.type == "IN" else self._match(subject, relation))
        if relation.type == "COMPARE":
            return self._comparison(subject, relation, self._value_token())
        if relation.type == "IN":
            return self._in(subject, first)
        if relation.type == "EXISTS":
            return Exists(subject)
        if relation.type == "IS":
            is_not = self._take("NOT", "NULL", expected="'not' or null").type == "NOT"
            if is_not:
                self._take("NULL", expected="null")
            return Not(IsNull(subject)) if is_not else IsNull(subject)
        return self._match(subject, relation)

    def _comparison(self, field: Field, relation: Token, token: Token) -> Condition:
        operator = {"==": "=", "<>": "!="}.get(relation.text, relation.text)
        is_order = operator not in ("=", "!=")
        if token.type == "NULL":
            if is_order:
                raise self._error(token, f"null has no order: expected is null or is not null, got {operator}")
            return IsNull(field) if operator == "=" else Not(IsNull(field))
        literal = self._literal(token, field)
        if is_order and (literal.type is ValueType.BOOLEAN or _is_kind(field)):
            raise self._error(relation, f"{token.text} has no order: expected = or !=, got {operator}")
        return Comparison(field, operator, literal)

    def _in(self, field: Field, first: Token) -> In:
        opening = self._take("(", expected="'('")
        literals = []
        while opening.type in ("(", ","):
            token = self._value_token()
            if token.type == "NULL":
                raise self._error(token, f"null cannot stand in a list: add or {first.text} is null")
            literals.append(self._literal(token, field))
            if {ValueType.TEXT, ValueType.TIME} <= {literal.type for literal in literals}:
                raise self._error(token, "a list has times without quotes or texts in quotes, not both")
            opening = self._take(",", ")", expected="a comma or ')'")
        return In(field, tuple(literals))

    def _match(self, field: Field, word: Token) -> Like | Contains:
        token = self._value_token()
        is_contains = word.type == "CONTAINS"
        if field.is_attribute and (ATTRIBUTES[field.name] is not ValueType.TEXT or _is_kind(field)):
            raise self._error(word, f"{field.name} is not free text: expected = != < <= > >= or in, got {word.text}")
        takes_any = is_contains and not field.is_attribute  # elements of a list
        if token.type in ("NULL", "TIME") or (token.type != "TEXT" and not takes_any):
            raise self._error(token, f"{word.text} expects text in quotes, got {token.text}")
        literal = self._plain_literal(token)
        text = str(literal.value)
        if "\0" in text:
            raise self._error(token, f"{word.text} takes no NUL character")
        length = len(text.encode()) + (sum(map(text.count, "\\%_")) + 2 if is_contains else 0)  # as a pattern
        if length > _MAX_PATTERN_BYTES:
            raise self._error(token, f"{word.text} takes text of at most {_MAX_PATTERN_BYTES:,} bytes, got {length:,}")
        return Contains(field, literal) if is_contains else Like(field, literal)

    def _field(self) -> Field:
        tokens = [self._take("NAME", "QUOTED", expected=f"{_FIELD}, 'not' or '('")]
        while self._next.type == ".":
            self._take()
            tokens.append(self._take("NAME", "QUOTED", expected=_FIELD))
        keys = [token.text[1:-1] if token.type == "QUOTED" else token.text for token in tokens]
        for token, key in zip(tokens, keys, strict=True):
            # SQLite has no way to write these inside a quoted key.
            if not key or any(character in '"\\' or not character.isprintable() for character in key):
                reason = 'a key is empty or has a character that a filter cannot name (" \\ or control)'
                raise self._error(token, reason)
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
            raise self._error(token, f"{field.name} is compared with {_EXPECTED[expected]}, got {token.text}")
        if _is_kind(field) and literal.value not in list(ItemKind):
            kinds = " or ".join(f"'{kind}'" for kind in ItemKind)
            raise self._error(token, f"unknown kind {token.text}: expected {kinds}")
        return literal

    def _plain_literal(self, token: Token) -> Literal:
        source = token.text
        if token.type in ("TRUE", "FALSE"):
            return Literal(ValueType.BOOLEAN, token.type == "TRUE", source)
        if token.type == "NUMBER":
            if not math.isfinite(float(source)):
                raise self._error(token, "this number is too large: expected one below 1.8e308")
            try:
                return Literal(ValueType.NUMBER, int(source), source)
            except ValueError:  # a fraction
                return Literal(ValueType.NUMBER, float(source), source)
        if token.type == "TIME":
            return self._as_time(token, Literal(ValueType.TEXT, source, source))
        text = source[1:-1].replace(source[0] * 2, source[0])
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
            raise self._error(token, f"{token.text} is not a time: expected {example}") from None
        return Literal(ValueType.TIME, seconds, literal.source)


def _joined(node: type[And] | type[Or], parts: list[tuple[Condition, int]]) -> tuple[Condition, int]:
    if len(parts) == 1:
        return parts[0]
    depth = 1 + max(depth for _, depth in parts)
    _check_depth(depth)
    return node(tuple(condition for condition, _ in parts)), depth


def _check_depth(depth: int) -> None:
    if depth > MAX_DEPTH:
        raise InputError(f"the filter is nested too deeply: expected {MAX_DEPTH} levels or fewer")


def _is_kind(field: Field) -> bool:
    return field.is_attribute and field.name == "kind"
