"""Filters compiled to SQL; `twinspire.stores.filters.filter` says what they mean."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from twinspire.errors import InputError
from twinspire.stores.filters.grammar import syntax_tree, wrong_at
from twinspire.stores.filters.literals import JSON_TYPES, Literal, LiteralType, Parameter, read_literal, read_time
from twinspire.stores.items import ItemKind

if TYPE_CHECKING:
    from lark import Token, Tree

Sql: TypeAlias = tuple[str, tuple[Parameter, ...]]

MOST_PARAMETERS = 10_000
_MOST_NESTED = 60


COLUMNS = {
    "kind": LiteralType.TEXT,
    "uri": LiteralType.TEXT,
    "caption": LiteralType.TEXT,
    "id": LiteralType.NUMBER,
    "added_at": LiteralType.NUMBER,
    "changed_at": LiteralType.NUMBER,
}
_TIMES = ("added_at", "changed_at")
_MODIFIED = '$."modified"'  # of metadata: when a file was last written to
_SAID = {
    LiteralType.TEXT: "text in quotes",
    LiteralType.NUMBER: "a number",
    LiteralType.TRUTH: "true or false",
    LiteralType.TIME: "a time",
}
_MOST_PATTERN_BYTES = 50_000  # SQLITE_MAX_LIKE_PATTERN_LENGTH
_IS_DATE = "GLOB '[0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9]*'"  # `julianday` alone would take "now" for a time


@dataclass(frozen=True, slots=True)
class KeyTest:
    """A condition on a key of the metadata, as an explanation needs it.

    `key` is the key as a filter writes it, `path` as SQLite does. `types` are the types that it can be true of, as
    `json_type` names them, all of them where empty; `literal` is what the value is compared with.
    """

    key: str
    path: str
    types: frozenset[str] = frozenset()
    literal: str = ""


def compiled(text: str) -> tuple[str, tuple[Parameter, ...], tuple[KeyTest, ...]]:
    """Return a filter as an expression over the table `items`, what is bound in it, and its tests of metadata.

    Raises `InputError`, which shows the place.
    """
    compiler = _Compiler(text)
    sql, parameters = compiler.compile()
    return sql, parameters, tuple(compiler.tests)


@dataclass(frozen=True, slots=True)
class _Field:
    """A column, or a path into the metadata."""

    column: str | None
    path: str
    shown: Token
    key: str = ""


class _Compiler:
    """Turns one text into SQL."""

    def __init__(self, text: str) -> None:
        self._text = text
        self.tests: dict[KeyTest, None] = {}
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
        if relation not in ("=", "!=") and (value.kind is LiteralType.TRUTH or subject.column == "kind"):
            raise self._wrong(_token(node.children[1]), f"{literal} has no order: expected = or !=, got {relation}")
        return self._typed(subject, [value], f"{{}} {relation} {{}}", str(literal))

    def _member(self, node: Tree[Token]) -> Sql:
        subject = self._field(node.children[0])
        values = []
        for literal in map(_token, node.children[1:]):
            if literal.type == "NULL":
                raise self._wrong(literal, f"null cannot stand in a list: add or {subject.shown} is null")
            values.append(self._value(literal, subject))
        kinds = {value.kind for value in values}
        if {LiteralType.TEXT, LiteralType.TIME} <= kinds:
            raise self._wrong(_token(node.children[1]), "a list has times without quotes or texts in quotes, not both")
        literals = ", ".join(map(str, node.children[1:]))
        by_kind = [[value for value in values if value.kind is kind] for kind in LiteralType]
        cases = [self._typed(subject, some, "{} IN ({})", literals, kinds) for some in by_kind if some]
        sql = ", ".join(case for case, _ in cases)
        parameters = tuple(parameter for _, bound in cases for parameter in bound)
        return (f"COALESCE({sql})" if len(cases) > 1 else sql), parameters

    def _matched(self, node: Tree[Token]) -> Sql:
        subject, word, literal = self._field(node.children[0]), _token(node.children[1]), _token(node.children[2])
        in_list = word.type == "CONTAINS" and subject.column is None
        if subject.column is not None and (COLUMNS[subject.column] is not LiteralType.TEXT or subject.column == "kind"):
            raise self._wrong(word, f"{subject.column} is no free text: expected = != < <= > >= or in, got {word}")
        if literal.type in ("NULL", "TIME") or (literal.type != "TEXT" and not in_list):
            raise self._wrong(literal, f"{word} expects text in quotes, got {literal}")
        value = read_literal(literal, self._wrong)
        text = str(value.parameter)
        if "\0" in text:
            raise self._wrong(literal, f"{word} knows no NUL character")
        escaped = "".join("\\" + character if character in "\\%_" else character for character in text)
        pattern = text if word.type == "LIKE" else f"%{escaped}%"
        if len(pattern.encode()) > _MOST_PATTERN_BYTES:
            raise self._wrong(
                literal, f"{word} takes text of at most {_MOST_PATTERN_BYTES:,} bytes, got {len(pattern.encode()):,}"
            )
        if in_list:
            types = ["array", *(["text"] if value.kind is LiteralType.TEXT else [])]
            self.tests[KeyTest(subject.key, subject.path, frozenset(types), str(literal))] = None
        if word.type == "LIKE":
            return self._typed(subject, [Literal(LiteralType.TEXT, "?", pattern)], "{} LIKE {}", str(literal))
        found = _case(subject, LiteralType.TEXT, "{} LIKE ? ESCAPE '\\'", (pattern,))
        if not in_list:
            return found
        listed = f"element.type IN ({_listed(value.kind)}) AND element.value = {value.sql}"
        elements = f"SELECT 1 FROM json_each(items.metadata, ?) AS element WHERE {listed}"  # noqa: S608 - no literal in it
        has = f"CASE WHEN json_type(items.metadata, ?) = 'array' THEN EXISTS ({elements}) END"
        has_parameters = (subject.path, subject.path, value.parameter)
        if value.kind is not LiteralType.TEXT:
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
        field = _Field(None, "$" + "".join(f'."{key}"' for key in keys), tokens[0], ".".join(keys))
        self.tests.setdefault(KeyTest(field.key, field.path))
        return field

    def _value(self, token: Token, subject: _Field) -> Literal:
        """Read a literal that is not null."""
        if subject.path == _MODIFIED and token.type not in ("TRUE", "FALSE"):
            return read_time(token, self._wrong)
        value = read_literal(token, self._wrong)
        if subject.column in _TIMES and value.kind in (LiteralType.TEXT, LiteralType.TIME):
            value = Literal(LiteralType.NUMBER, "?", read_time(token, self._wrong).seconds)
        if subject.column is not None and value.kind is not COLUMNS[subject.column]:
            expected = _SAID[COLUMNS[subject.column]]
            raise self._wrong(token, f"{subject.column} is compared with {expected}, got {token}")
        if subject.column == "kind" and value.parameter not in [kind.value for kind in ItemKind]:
            raise self._wrong(token, f"there is no kind {token}: expected {' or '.join(map(repr, map(str, ItemKind)))}")
        return value

    def _typed(
        self, subject: _Field, values: list[Literal], condition: str, literal: str, kinds: Iterable[LiteralType] = ()
    ) -> Sql:
        """Return `condition` over the subject's value and `values`, all of one type; NULL for values of another."""
        (kind,) = {value.kind for value in values}
        is_modified = subject.path == _MODIFIED
        if subject.column is None:
            types = [name for each in {kind, *kinds} for name in JSON_TYPES[each]]
            types += JSON_TYPES[LiteralType.NUMBER] if is_modified else []
            self.tests[KeyTest(subject.key, subject.path, frozenset(types), literal)] = None
        condition = condition.format("{}", ", ".join(value.sql for value in values))
        found = tuple(value.parameter for value in values)
        if kind is not LiteralType.TIME:
            return _case(subject, kind, condition, found)
        dated = condition.format("julianday(json_extract(items.metadata, ?))")
        sql = f"CASE WHEN json_extract(items.metadata, ?) {_IS_DATE} THEN {dated} END"
        sql = f"CASE WHEN json_type(items.metadata, ?) = 'text' THEN {sql}"
        parameters: tuple[Parameter, ...] = (subject.path,) * 3 + found
        if is_modified:
            number, seconds = _case(subject, LiteralType.NUMBER, condition.replace("julianday(?)", "?"), ())
            sql += f" ELSE {number}"
            parameters += (*seconds, *(value.seconds for value in values))
        return f"{sql} END", parameters

    def _wrong(self, token: Token, reason: str) -> InputError:
        return wrong_at(self._text, token.start_pos or 0, len(token), reason)


def _case(subject: _Field, kind: LiteralType, condition: str, parameters: tuple[Parameter, ...]) -> Sql:
    """Return `condition` over the subject's value, NULL where the value is of another type than `kind`."""
    if subject.column is not None:
        return f"({condition.format(f'items.{subject.column}')})", parameters
    value = condition.format("json_extract(items.metadata, ?)")
    sql = f"CASE WHEN json_type(items.metadata, ?) IN ({_listed(kind)}) THEN {value} END"
    return sql, (subject.path, subject.path, *parameters)


def _listed(kind: LiteralType) -> str:
    return ", ".join(f"'{name}'" for name in JSON_TYPES[kind])


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
