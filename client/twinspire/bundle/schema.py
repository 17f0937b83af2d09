"""JSON to frozen dataclasses and back, strictly: the dataclasses are the schema, so that there is only one.

Every field must be there and no other; a bool is no number; an int stands for a float where one is due. A field
that came later, marked with `OPTIONAL`, may be missing and is left out where it is None: documents without it stay as
they were. This covers the types that the manifest uses, not JSON in general.
"""

# ruff: noqa: ANN401 - parsed JSON and type hints are of any type

from __future__ import annotations

import dataclasses
import json
import types
from collections.abc import Mapping
from enum import Enum
from typing import Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from twinspire.errors import BundleError, InputError

T = TypeVar("T")

OPTIONAL: Mapping[str, Any] = {"optional": True}
"""The metadata of a dataclass's field that may be missing; its default is None."""


def parse_json(text: str, where: str) -> Any:
    """Parse JSON; a repeated key, NaN or infinity is a BundleError, as is text that is no JSON."""
    try:
        return json.loads(text, object_pairs_hook=_unique_keys, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{where} is no valid JSON: {error}") from error


def decode(kind: type[T], value: Any, where: str) -> T:
    """Make a `kind` of parsed JSON. Raises BundleError that says where, what came and what was expected."""
    return cast(T, _decode(kind, value, where))


def encode(value: Any) -> Any:
    """Make plain JSON data of a dataclass; the inverse of `decode`."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        found = {field: getattr(value, field.name) for field in dataclasses.fields(value)}
        return {field.name: encode(item) for field, item in found.items() if item is not None or not _optional(field)}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Mapping):
        return {encode(key): encode(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [encode(item) for item in value]
    return value


def _decode(kind: Any, value: Any, where: str) -> Any:
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if origin in (Union, types.UnionType):  # only `X | None` is used
        (inner,) = (argument for argument in arguments if argument is not types.NoneType)
        return None if value is None else _decode(inner, value, where)
    if origin is tuple and arguments[1:] == (...,):
        if not isinstance(value, list):
            raise _unexpected(value, "a list", where)
        return tuple(_decode(arguments[0], item, f"{where}[{index}]") for index, item in enumerate(value))
    if origin is tuple:
        if not isinstance(value, list) or len(value) != len(arguments):
            raise _unexpected(value, f"a list of {len(arguments)}", where)
        pairs = enumerate(zip(arguments, value, strict=True))
        return tuple(_decode(argument, item, f"{where}[{index}]") for index, (argument, item) in pairs)
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(value, dict):
            raise _unexpected(value, "an object", where)
        key_kind, item_kind = arguments
        return {
            _decode(key_kind, key, f"a key of {where}"): _decode(item_kind, item, f"{where}.{key}")
            for key, item in value.items()
        }
    if dataclasses.is_dataclass(kind):
        return _decode_dataclass(kind, value, where)
    if issubclass(kind, Enum):
        try:
            return kind(value)
        except ValueError:
            raise _unexpected(value, "one of " + ", ".join(str(m.value) for m in kind), where) from None
    if kind is float and type(value) is int:
        try:
            return float(value)
        except OverflowError:
            raise _unexpected(value, "a number", where) from None
    if type(value) is not kind:
        raise _unexpected(
            value, {int: "an integer", float: "a number", str: "a string", bool: "true or false"}[kind], where
        )
    return value


def _decode_dataclass(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise _unexpected(value, "an object", where)
    hints = get_type_hints(kind)
    known = dataclasses.fields(kind)
    if missing := [field.name for field in known if field.name not in value and not _optional(field)]:
        raise BundleError(f"{where} lacks {', '.join(missing)}")
    names = [field.name for field in known if field.name in value]
    if unknown := [name for name in value if name not in names]:
        raise BundleError(f"{where} has keys that this version does not know: {', '.join(unknown)}")
    fields = {name: _decode(hints[name], value[name], f"{where}.{name}") for name in names}
    try:
        return kind(**fields)
    except InputError as error:
        raise BundleError(f"{where}: {error}") from error


def _optional(field: dataclasses.Field[Any]) -> bool:
    return bool(field.metadata.get("optional"))


def _unexpected(value: Any, expected: str, where: str) -> BundleError:
    shown = json.dumps(value, ensure_ascii=False)
    return BundleError(f"{where} is {shown if len(shown) <= 80 else shown[:77] + '...'}: expected {expected}")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise ValueError(f"the key {key!r} stands twice in one object")
        result[key] = value
    return result


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")
