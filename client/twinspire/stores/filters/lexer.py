"""Tokens of a filter's text, and errors that show their place."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from typing import NamedTuple

from twinspire.errors import InputError

MAX_CHARACTERS = 100_000
_SHOWN = 60  # characters of a long filter that a message shows before and behind the place

KEYWORDS = {"AND", "OR", "NOT", "IN", "IS", "EXISTS", "LIKE", "CONTAINS", "TRUE", "FALSE", "NULL"}
"""Reserved in any case of letters; a key that is one, or has a space, is written in backticks."""
_TOKEN = re.compile(
    r"""
    (?P<SPACE>\s+)
    | (?P<TIME>(?a:\d{4}(?:-\d\d){2}(?:[T ]\d\d(?::\d\d){1,2}(?:\.\d+)?(?:Z|[+-]\d\d:\d\d)?)?)(?![\w.:+-]))
    | (?P<NUMBER>[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?(?![\w.]))
    | (?P<TEXT>'(?:[^']|'')*'|"(?:[^"]|"")*")
    | (?P<QUOTED>`[^`]*`)
    | (?P<NAME>[^\W\d][\w-]*)
    | (?P<COMPARE><=|>=|!=|<>|==|<|>|=)
    | (?P<SIGN>[(),.])
    """,
    re.VERBOSE,
)
_OTHER_QUOTES = "“”„‘’‚«»「」『』＂＇"


class Token(NamedTuple):
    """A piece of a filter; `type` is a keyword, a sign such as "(", or a group of `_TOKEN`, END at the end."""

    type: str
    text: str
    start: int


def tokenize(text: str) -> Iterator[Token]:
    """Yield the tokens of a filter, END last; or STRANGE, at the first character with which no token begins."""
    place = 0
    while place < len(text):
        match = _TOKEN.match(text, place)
        if match is None:
            yield Token("STRANGE", text[place], place)
            return
        group = str(match.lastgroup)
        if group == "NAME" and match[0].upper() in KEYWORDS:
            group = match[0].upper()
        elif group == "SIGN":
            group = match[0]
        if group != "SPACE":
            yield Token(group, match[0], place)
        place = match.end()
    yield Token("END", "", len(text.rstrip()))


def error_at(text: str, token: Token, reason: str) -> InputError:
    """Make the error that shows `text` with carets under a token."""
    start = token.start
    left, right = max(0, start - _SHOWN), min(len(text), start + _SHOWN)
    before = ("…" if left else "") + _on_one_line(text[left:start])
    after = _on_one_line(text[start:right]) + ("…" if right < len(text) else "")
    marked = _cells(_on_one_line(text[start : min(right, start + len(token.text))]))
    return InputError(
        f"the filter cannot be used: {reason}\n  {before}{after}\n  {' ' * _cells(before)}{'^' * marked or '^'}"
    )


def unexpected(text: str, token: Token, expected: str, hint: str) -> InputError:
    """Make the error for a token that cannot be where it is."""
    if token.type == "END":
        reason = f"the filter ends here: expected {expected}"
    elif token.type == "STRANGE":
        reason = _strange(token.text, expected)
    else:
        shown = token.text if len(token.text) <= _SHOWN else f"{token.text[:_SHOWN]}…"
        reason = f"{_on_one_line(shown)} cannot stand here: expected {expected}"
        reason += hint.format(shown) if token.type == "NAME" else ""
    return error_at(text, token, reason)


def _strange(character: str, expected: str) -> str:
    if character in "'\"`":
        return f"this {character} is never closed: expected another {character}"
    if character in _OTHER_QUOTES:
        return f"the quotation mark {character} is not supported: expected ' or \""
    if character.isdigit():
        return f"a number ends in letters or dots: expected {expected}. Put text in quotes"
    name = unicodedata.name(character, f"U+{ord(character):04X}")
    return f"{character if character.isprintable() else name} has no meaning here: expected {expected}"


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
