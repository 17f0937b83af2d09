"""Plain sentences for bodies that are not as their model says, instead of pydantic's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from twinspire_server.gateway.errors import GatewayError

_CODES = {"missing": "missing_field", "extra_forbidden": "unknown_field"}
_EXPECTED = {
    "string_type": "a text",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
}
_LIMITS = {"greater_than_equal": ("ge", "at least"), "less_than_equal": ("le", "at most")}
_SHOWN = 40


def of_validation(errors: Sequence[Mapping[str, Any]]) -> GatewayError:
    """Return the error of a body that is not as its model says; `errors` are pydantic's, the first one counts."""
    first = errors[0]
    kind, context = first["type"], first.get("ctx") or {}
    path = path_of(first["loc"])
    where = path or "the body"
    code = _CODES.get(kind, "invalid_value")
    if kind == "json_invalid":
        return GatewayError(400, f"the body is not JSON: {context['error']}", code="invalid_json")
    if kind == "missing":
        message = f"{where} is missing"
    elif kind == "extra_forbidden":
        form = next((part for part in first["loc"][:2] if is_tag(part)), None)
        message = f"{where}: unknown field" + (f" of a request in the form of {str(form)[1:-1]}" if form else "")
    elif kind == "too_short":
        message = f"{where} is empty: expected at least {context['min_length']}"
    elif (expected := _expected(kind, context)) is not None:
        message = f"{where}: expected {expected}, got {shown(first.get('input'))}"
    else:  # those of our own validators, whose type is a code
        message, code = f"{where}: {first['msg']}", kind
    return GatewayError(400, message, path or None, code)


def path_of(location: Sequence[str | int]) -> str:
    """Return the place of a fault, such as `input[3].text`; names of the alternatives of a union, "(...)", drop out."""
    path = ""
    for part in location:
        if (part in ("body", "query", "path") and not path) or is_tag(part):
            continue
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else str(part)
    return path


def is_tag(part: str | int) -> bool:
    """Return whether a part of a fault's location names an alternative of a union: it stands in parentheses."""
    return isinstance(part, str) and part.startswith("(")


def shown(value: object) -> str:
    """Return a value of JSON for a message: its kind, and the value where it is short."""
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case int() | float():
            return f"{value}"[:_SHOWN]
        case str():
            return repr(value) if len(value) <= _SHOWN else f"{value[:_SHOWN]!r}..."
        case list() | tuple():
            return f"a list of {len(value)}"
        case Mapping():
            return "an object"
        case _:
            return "something else"


def _expected(kind: str, context: Mapping[str, Any]) -> str | None:
    if kind in ("literal_error", "enum"):
        expected = str(context["expected"])
        return {"True": "true", "False": "false"}.get(expected, expected)
    if kind in _LIMITS:
        name, words = _LIMITS[kind]
        return f"{words} {context[name]}"
    return _EXPECTED.get(kind)
