"""The grammar of filters: text to a syntax tree, and errors that show the place."""

from __future__ import annotations

import unicodedata
from functools import cache
from typing import TYPE_CHECKING, Any

from twinspire.errors import InputError

if TYPE_CHECKING:
    from lark import Lark, Token, Tree

MAX_CHARACTERS = 100_000
_SHOWN = 60  # characters of a long filter that a message shows before and behind the place

# Keywords are reserved in any case of letters; a key that is one, or has a space, is written in backticks.
_GRAMMAR = r"""
start: either
?either: both (_OR both)*
?both: _negation (_AND _negation)*
_negation: negated | _OPEN either _CLOSE | _condition
negated: _NOT _negation
_condition: compared | member | no_member | matched | not_matched | null | not_null | exists
compared: field COMPARE _value
member: field _IN _OPEN _value (_COMMA _value)* _CLOSE
no_member: field _NOT _IN _OPEN _value (_COMMA _value)* _CLOSE
matched: field (LIKE | CONTAINS) _value
not_matched: field _NOT (LIKE | CONTAINS) _value
null: field _IS NULL
not_null: field _IS _NOT NULL
exists: field _EXISTS
field: (NAME | QUOTED) (_DOT (NAME | QUOTED))*
_value: TEXT | NUMBER | TIME | TRUE | FALSE | NULL

_AND: "and"i
_OR: "or"i
_NOT: "not"i
_IN: "in"i
_IS: "is"i
_EXISTS: "exists"i
LIKE: "like"i
CONTAINS: "contains"i
TRUE: "true"i
FALSE: "false"i
NULL: "null"i
COMPARE: "<=" | ">=" | "!=" | "<>" | "==" | "<" | ">" | "="
_OPEN: "("
_CLOSE: ")"
_COMMA: ","
_DOT: "."
NAME: /[^\W\d][\w-]*/i
QUOTED: /`[^`]*`/
TEXT: /'(?:[^']|'')*'|"(?:[^"]|"")*"/
TIME.2: /(?a:\d{4}(?:-\d\d){2}(?:[T ]\d\d(?::\d\d){1,2}(?:\.\d+)?(?:Z|[+-]\d\d:\d\d)?)?)(?![\w.:+-])/
NUMBER: /[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?(?![\w.])/
%ignore /\s+/
"""
_VALUE = "a value: 'text' in quotes, a number, a date such as 2026-11-21, true, false or null"
_FIELD = "a field such as year or camera.model"
_RELATION = "one of = != < <= > >=, in (...), like, contains, is null, exists"
# What a message says could be written here, in this order.
_TERMINALS = {
    "NAME": _FIELD,
    "COMPARE": _RELATION,
    "_NOT": "'not'",
    "_OPEN": "'('",
    "LIKE": "in, like or contains",
    "NULL": "null",
    "_COMMA": "a comma",
    "_AND": "'and'",
    "_OR": "'or'",
    "_CLOSE": "')'",
    "$END": "the end",
}
_OTHER_QUOTES = "“”„‘’‚«»「」『』＂＇"


def syntax_tree(text: str) -> Tree[Token]:
    """Parse a filter. Raises `InputError` that shows the text, the place and what was expected there."""
    from lark.exceptions import UnexpectedCharacters, UnexpectedToken

    if not isinstance(text, str):
        raise InputError(f"a filter is a str such as \"year >= 2020 and camera = 'X'\", got {text!r}")
    if not text.strip():
        raise InputError("the filter is empty: expected a condition such as year >= 2020")
    if len(text) > MAX_CHARACTERS:
        raise InputError(f"the filter has {len(text):,} characters: expected {MAX_CHARACTERS:,} or fewer")
    parser: Any = _parser().parse_interactive(text)  # half of its methods have no types
    try:
        parser.exhaust_lexer()
        tree: Tree[Token] = parser.feed_eof()
    except UnexpectedCharacters as error:
        expected = _expected(parser.accepts())
        place = error.pos_in_stream or 0
        raise error_at(text, place, 1, _strange(text, place, expected)) from None
    except UnexpectedToken as error:
        token = error.token
        expected = _expected(parser.accepts())
        if token.type == "$END":
            raise error_at(text, len(text.rstrip()), 1, f"the filter ends here: expected {expected}") from None
        raise error_at(text, token.start_pos or 0, len(token), _unexpected(token, expected)) from None
    return tree


def error_at(text: str, start: int, length: int, reason: str) -> InputError:
    """Make the error that shows `text` with `length` carets under the characters from `start` on."""
    left, right = max(0, start - _SHOWN), min(len(text), start + _SHOWN)
    before = ("…" if left else "") + _on_one_line(text[left:start])
    after = _on_one_line(text[start:right]) + ("…" if right < len(text) else "")
    marked = _cells(_on_one_line(text[start : min(right, start + length)]))
    return InputError(
        f"the filter cannot be used: {reason}\n  {before}{after}\n  {' ' * _cells(before)}{'^' * marked or '^'}"
    )


def _strange(text: str, place: int, expected: str) -> str:
    character = text[place]
    if character in "'\"`":
        return f"this {character} opens what is never closed: expected another {character}"
    if character in _OTHER_QUOTES:
        return f"the quote {character} is not known: expected ' or \""
    if character.isdigit():
        return f"a number ends in letters or dots: expected {expected}. Text stands in quotes"
    name = unicodedata.name(character, f"U+{ord(character):04X}")
    shown = character if character.isprintable() else name
    return f"{shown} has no meaning here: expected {expected}"


def _unexpected(token: Token, expected: str) -> str:
    shown = str(token) if len(token) <= _SHOWN else f"{token[:_SHOWN]}…"
    hint = f". If {shown} is text, put it in quotes: '{shown}'" if token.type == "NAME" and _VALUE in expected else ""
    if token.type == "NAME" and expected == _RELATION:
        hint = ". A field whose name has a space is written in backticks: `shot date`"
    return f"{_on_one_line(shown)} cannot stand here: expected {expected}{hint}"


def _expected(accepted: set[str]) -> str:
    if "COMPARE" in accepted:
        return _RELATION
    if "TEXT" in accepted:
        return _VALUE
    if "$END" in accepted:  # lark does not name these two
        accepted = accepted | {"_AND", "_OR"}
    words = [words for terminal, words in _TERMINALS.items() if terminal in accepted]
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " or " + words[-1]


def _on_one_line(text: str) -> str:
    return "".join(
        " " if unicodedata.category(character)[0] == "C" or character.isspace() else character for character in text
    )


def _cells(text: str) -> int:
    """Return how wide a terminal draws `text`: Chinese characters take two cells."""
    return sum(
        0 if unicodedata.combining(character) else 2 if unicodedata.east_asian_width(character) in "WF" else 1
        for character in text
    )


@cache
def _parser() -> Lark:
    from lark import Lark

    # The basic lexer: a keyword is one wherever it stands.
    return Lark(_GRAMMAR, parser="lalr", lexer="basic")
