"""Literals of filters: what type a value has, and how it is bound in SQL."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, TypeAlias

from twinspire._arguments import is_utf8
from twinspire._times import iso_utc
from twinspire.errors import InputError

if TYPE_CHECKING:
    from lark import Token

Parameter: TypeAlias = int | float | str
Wrong: TypeAlias = "Callable[[Token, str], InputError]"
"""Makes the error that shows a token of the filter and says what is wrong with it."""

_LARGEST = 2**63 - 1


class LiteralType(StrEnum):
    """What can be compared with what."""

    TEXT = "text"
    NUMBER = "number"
    TRUTH = "truth"
    TIME = "time"


JSON_TYPES: dict[LiteralType, tuple[str, ...]] = {
    LiteralType.TEXT: ("text",),
    LiteralType.NUMBER: ("integer", "real"),
    LiteralType.TRUTH: ("true", "false"),
    LiteralType.TIME: ("text",),
}
"""The types of values that a literal is compared with, as SQLite's `json_type` names them."""


@dataclass(frozen=True, slots=True)
class Literal:
    """A literal: its type and how it is bound. A time is bound as ISO 8601 in UTC, and has its seconds since 1970."""

    kind: LiteralType
    sql: str
    parameter: Parameter
    seconds: float = 0.0


def read_literal(token: Token, wrong: Wrong) -> Literal:
    """Read a literal that is not null. Raises `InputError`, made by `wrong`."""
    if token.type in ("TRUE", "FALSE"):
        return Literal(LiteralType.TRUTH, "?", int(token.type == "TRUE"))
    if token.type == "NUMBER":
        return _number(token, wrong)
    if token.type == "TIME":
        return _time(token, str(token), wrong)
    text = token[1:-1].replace(token[0] * 2, token[0])
    if not is_utf8(text):
        raise wrong(token, "this text is not UTF-8")
    return Literal(LiteralType.TEXT, "?", text)


def read_time(token: Token, wrong: Wrong) -> Literal:
    """Read a literal that is compared with a time: seconds since 1970, or ISO 8601 with quotes or without."""
    literal = read_literal(token, wrong)
    if literal.kind is LiteralType.TEXT:
        return _time(token, str(literal.parameter), wrong)
    if literal.kind is LiteralType.NUMBER:
        return _moment(token, float(token), wrong)
    return literal


def _number(token: Token, wrong: Wrong) -> Literal:
    if not math.isfinite(float(token)):
        raise wrong(token, "this number is too large: expected one below 1.8e308")
    try:
        number: int | float = int(token)
    except ValueError:  # a fraction
        number = float(token)
    if isinstance(number, int) and -_LARGEST - 1 <= number <= _LARGEST:
        return Literal(LiteralType.NUMBER, "?", number)
    # Read as the metadata is: SQLite's other ways to read a number differ in the last bit, some of them.
    return Literal(LiteralType.NUMBER, "json_extract(?, '$')", json.dumps(number))


def _time(token: Token, text: str, wrong: Wrong) -> Literal:
    try:
        moment = datetime.fromisoformat(text)
        moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        return Literal(LiteralType.TIME, "julianday(?)", iso_utc(moment), moment.timestamp())
    except (ValueError, OverflowError):
        raise _no_time(token, wrong) from None


def _moment(token: Token, seconds: float, wrong: Wrong) -> Literal:
    try:
        return Literal(LiteralType.TIME, "julianday(?)", iso_utc(seconds), seconds)
    except (ValueError, OverflowError):
        raise _no_time(token, wrong) from None


def _no_time(token: Token, wrong: Wrong) -> InputError:
    return wrong(
        token, f"{token} is no time: expected a date such as 2026-11-21 or '2026-11-21T09:30+01:00', or seconds"
    )
