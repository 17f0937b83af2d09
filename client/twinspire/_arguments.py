"""Checks of arguments that the public functions of several packages share, and values in messages."""

from __future__ import annotations

import math
import os
import unicodedata
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import StrEnum
from numbers import Integral, Real
from typing import Any, TypeVar, cast

from twinspire.errors import InputError

Value = TypeVar("Value")
Member = TypeVar("Member", bound=StrEnum)

_SHOWN = 200  # characters of a value in a message
# Control and format characters, surrogates, unassigned ones, and the separators that end a line or paragraph.
_ESCAPED = ("C", "Zl", "Zp")
_ONE_THING = (str, bytes, bytearray, memoryview, os.PathLike)


def shown(value: object) -> str:
    """Return `repr(value)` for a message, shortened. Never raises: not for an int of thousands of digits either."""
    try:
        text = repr(value)
    except Exception:  # whatever a foreign `__repr__` raises
        text = f"<{type(value).__name__}>"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def _option(what: str) -> str | None:
    """Return the name of the argument or option that `what` is, None where it only describes one."""
    return what if what.lstrip("-").replace("-", "_").isidentifier() else None


def printable(text: str | os.PathLike[str], *, limit: int | None = None) -> str:
    """Return a path or text on one line, with control characters and invalid UTF-8 escaped.

    Longer text is cut after `limit` characters and its length is appended.
    """
    path = os.fspath(text)
    start = path if limit is None else path[:limit]
    decoded = os.fsencode(start).decode(errors="backslashreplace")
    escaped = "".join(
        character.encode("unicode_escape").decode()
        if unicodedata.category(character).startswith(_ESCAPED)
        else character
        for character in decoded
    )
    if limit is None or len(path) <= limit >= len(escaped):
        return escaped
    return f"{escaped[:limit]}... ({len(path):,} characters)"


def require_list(values: Iterable[Value], what: str) -> Iterable[Value]:
    """Return `values`. `what` names the elements: "ids", "paths".

    Raises `InputError` for what is not iterable, and for a str, bytes or a path: they would be read character by
    character.
    """
    if isinstance(values, _ONE_THING) or not isinstance(values, Iterable):
        raise InputError(
            f"expected a list of {what}, got one {type(values).__name__}: {shown(values)}. Put it in a list",
            option=_option(what),
        )
    return values


def as_list(values: Iterable[Value], what: str) -> list[Value]:
    """Return `values` as a list. Raises `InputError` as `require_list` does."""
    return list(require_list(values, what))


def as_member(value: Member | str, members: type[Member], what: str, *, besides: Sequence[str] = ()) -> Member:
    """Return the member of the enum `members` that `value` is or names.

    Raises `InputError` with the choices; `besides` are further ones, which the caller has handled.
    """
    try:
        return members(value)
    except ValueError:
        expected = ", ".join([*besides, *members])
        raise InputError(f"{what}: expected one of {expected}, got {shown(value)}", option=_option(what)) from None


def as_whole(value: int, what: str, *, minimum: int, maximum: int | None = None) -> int:
    """Return `value` as an int. Raises `InputError` unless it is a whole number, not a bool, within the range."""
    is_whole = isinstance(value, Integral) and not isinstance(value, bool)
    if not is_whole or value < minimum or (maximum is not None and value > maximum):
        range_ = f"from {minimum} up" if maximum is None else f"from {minimum} to {maximum}"
        raise InputError(f"{what}: expected a whole number {range_}, got {shown(value)}", option=_option(what))
    return int(value)


def is_finite(value: object) -> bool:
    """Whether `value` is a real number, not a bool, that a float can hold."""
    try:
        return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # an int beyond 1.8e308
        return False


def as_finite(value: object, what: str, *, minimum: float = -math.inf, maximum: float = math.inf) -> float:
    """Return a finite number as a float. Raises `InputError` for anything else and for one out of the range."""
    if not is_finite(value) or not minimum <= (number := float(cast("float", value))) <= maximum:
        range_ = "" if minimum == -math.inf else f" from {minimum:g} to {maximum:g}"
        raise InputError(f"{what}: expected a finite number{range_}, got {shown(value)}")
    return number


def as_weight(value: object, what: str) -> float:
    """Return a finite number other than 0 as a float. Raises `InputError`."""
    if not is_finite(value) or value == 0:
        raise InputError(f"{what}: expected a finite number other than 0, got {shown(value)}")
    return float(cast("float", value))


def require_text(text: str, what: str) -> str:
    """Return `text`. Raises `InputError` unless it is a str that UTF-8 can hold, without lone surrogates."""
    if not isinstance(text, str):
        raise InputError(f"{what}: expected a str, got {shown(text)}", option=_option(what))
    if not is_utf8(text):
        message = f"{what}: expected text that UTF-8 can hold, got lone surrogates in {shown(text)}"
        raise InputError(message, option=_option(what))
    return text


def is_utf8(text: str) -> bool:
    """Whether UTF-8 can hold `text`: it has no lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


@contextmanager
def file_errors(problem: str, path: str | os.PathLike[str] | None, remedy: str = "") -> Iterator[None]:
    """Raise `InputError` for an `OSError` inside: the problem, the system's cause and the remedy."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{problem}: {error.strerror or error}{remedy}", path=path) from error


@contextmanager
def naming(option: str) -> Iterator[None]:
    """Set `option` of an `InputError` that is raised inside; nested: `boosts[0].weight`."""
    try:
        yield
    except InputError as error:
        inner = "" if error.option in (None, option) else error.option
        error.option = f"{option}{'' if not inner or inner.startswith('[') else '.'}{inner}"
        raise


def checked_object(
    document: object, what: str, checks: Mapping[str, Callable[[Any], Any]], *, optional: Collection[str] = ()
) -> dict[str, Any]:
    """Check the values of a JSON object, each by the function of its key, and return them.

    Raises `InputError` for anything but an object, for unknown keys, and for missing ones that are not `optional`; its
    `option` names the key, also for errors of a check.
    """
    if not isinstance(document, Mapping):
        raise InputError(f"{what}: expected a JSON object, got {shown(document)}")
    for key in document:
        if key not in checks:
            raise InputError(f"{what}: unknown key {shown(key)}, expected {', '.join(checks)}", option=str(key))
    values = {}
    for key, check in checks.items():
        if key in document:
            with naming(key):
                values[key] = check(document[key])
        elif key not in optional:
            raise InputError(f"{what}: the key {key!r} is missing", option=key)
    return values


def checked_array(values: object, what: str, check: Callable[[Any], Value]) -> tuple[Value, ...]:
    """Check each element of a JSON array and return them. Raises `InputError`; its `option` has the position."""
    if not isinstance(values, list):
        raise InputError(f"{what}: expected a JSON array, got {shown(values)}")
    checked = []
    for position, value in enumerate(values):
        with naming(f"[{position}]"):
            checked.append(check(value))
    return tuple(checked)
