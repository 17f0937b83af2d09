"""JSON to frozen dataclasses and back, strictly: the dataclasses are the schema.

`decode` requires every field and no other, of exactly the annotated type: a bool is not a number; an int is taken for a
float. A field with the metadata OPTIONAL may be missing, and is left out where it is None, so that older documents
stay as they were. `ignore_unknown` skips keys that this version does not know, and the entries of a mapping whose
enum key it does not know: documents that say by their version whether that is safe are read so.

Errors are InputError: its `option` is the place, such as `bundle.json.towers.text.settings.pad_id`. No library is used:
msgspec ignores unknown keys of dataclasses and takes the last of repeated keys, cattrs turns "3" and true into numbers.
"""

# ruff: noqa: ANN401 - parsed JSON and type hints are of any type

from __future__ import annotations

import dataclasses
import json
import types
from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from twinspire.errors import InputError

T = TypeVar("T")

OPTIONAL: Mapping[str, Any] = {"optional": True}
"""The metadata of a dataclass's field that may be missing; its default is None."""

_EXPECTED = {int: "an integer", float: "a number", str: "a string", bool: "true or false"}


def parse_json(text: str, where: str) -> Any:
    """Parse JSON. Raises InputError for invalid JSON, which a repeated key, NaN and infinity are too."""
    try:
        return json.loads(text, object_pairs_hook=_unique_keys, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} is not valid JSON: {error}", option=where) from error


def parse_document(text: str, where: str, versions: Sequence[int], remedy: str) -> tuple[int, dict[str, Any]]:
    """Parse a JSON object that has a `schema_version`; return that and the rest. Raises InputError for another one."""
    document = parse_json(text, where)
    if not isinstance(document, dict):
        raise _unexpected(document, "an object", where)
    version = document.pop("schema_version", None)
    if type(version) is not int or version not in versions:
        raise InputError(
            f"{where} has schema_version {version!r}: this version of twinspire reads {', '.join(map(str, versions))}. "
            f"{remedy}",
            option=f"{where}.schema_version",
        )
    return version, document


def write_document(value: Any, version: int) -> str:
    """Return a dataclass as the text of a JSON file with a `schema_version`; the inverse of `parse_document`."""
    document = {"schema_version": version, **encode(value)}
    return json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def decode(cls: type[T], value: Any, where: str, *, ignore_unknown: bool = False) -> T:
    """Return parsed JSON as an instance of `cls`. Raises InputError with the place, the value and what was expected."""
    return cast(T, _decode(cls, value, where, ignore_unknown))


def encode(value: Any) -> Any:
    """Return a dataclass as plain JSON data; the inverse of `decode`."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        items = {field: getattr(value, field.name) for field in dataclasses.fields(value)}
        return {field.name: encode(item) for field, item in items.items() if item is not None or not _optional(field)}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {encode(key): encode(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [encode(item) for item in value]
    return value


def _decode(hint: Any, value: Any, where: str, ignore_unknown: bool) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):  # only `X | None` is used
        (inner,) = (argument for argument in arguments if argument is not types.NoneType)
        return None if value is None else _decode(inner, value, where, ignore_unknown)
    if origin is tuple:
        return _decode_tuple(arguments, value, where, ignore_unknown)
    if origin is not None and issubclass(origin, Mapping):
        return _decode_mapping(arguments[0], arguments[1], value, where, ignore_unknown)
    if dataclasses.is_dataclass(hint):
        return _decode_dataclass(hint, value, where, ignore_unknown)
    if issubclass(hint, Enum):
        try:
            return hint(value)
        except ValueError:
            raise _unexpected(value, "one of " + ", ".join(str(m.value) for m in hint), where) from None
    if hint is Path and type(value) is str:
        return Path(value)
    if hint is float and type(value) is int:
        try:
            return float(value)
        except OverflowError:
            raise _unexpected(value, "a number", where) from None
    if type(value) is not hint:
        raise _unexpected(value, _EXPECTED.get(hint, "a string"), where)
    return value


def _decode_tuple(hints: tuple[Any, ...], value: Any, where: str, ignore_unknown: bool) -> tuple[Any, ...]:
    if hints[1:] == (...,):
        hints = hints[:1] * len(value) if isinstance(value, list) else ()
        expected = "a list"
    else:
        expected = f"a list of {len(hints)}"
    if not isinstance(value, list) or len(value) != len(hints):
        raise _unexpected(value, expected, where)
    pairs = enumerate(zip(hints, value, strict=True))
    return tuple(_decode(hint, item, f"{where}[{index}]", ignore_unknown) for index, (hint, item) in pairs)


def _decode_mapping(key_hint: Any, hint: Any, value: Any, where: str, ignore_unknown: bool) -> dict[Any, Any]:
    if not isinstance(value, dict):
        raise _unexpected(value, "an object", where)
    known = {str(member.value) for member in key_hint} if issubclass(key_hint, Enum) else value.keys()
    return {
        _decode(key_hint, key, f"a key of {where}", ignore_unknown): _decode(
            hint, item, f"{where}.{key}", ignore_unknown
        )
        for key, item in value.items()
        if not ignore_unknown or key in known
    }


def _decode_dataclass(cls: Any, value: Any, where: str, ignore_unknown: bool) -> Any:
    if not isinstance(value, dict):
        raise _unexpected(value, "an object", where)
    hints = get_type_hints(cls)
    fields = dataclasses.fields(cls)
    if missing := [field.name for field in fields if field.name not in value and not _optional(field)]:
        raise InputError(f"{where} has no {', '.join(missing)}, which must be given", option=f"{where}.{missing[0]}")
    names = [field.name for field in fields if field.name in value]
    if not ignore_unknown and (unknown := [name for name in value if name not in names]):
        raise InputError(f"{where} has unknown keys: {', '.join(unknown)}", option=f"{where}.{unknown[0]}")
    known = {name: _decode(hints[name], value[name], f"{where}.{name}", ignore_unknown) for name in names}
    try:
        return cls(**known)
    except InputError as error:
        raise InputError(f"{where}: {error}", option=where) from error


def _optional(field: dataclasses.Field[Any]) -> bool:
    return bool(field.metadata.get("optional"))


def _unexpected(value: Any, expected: str, where: str) -> InputError:
    text = json.dumps(value, ensure_ascii=False)
    return InputError(f"{where} is {text if len(text) <= 80 else text[:77] + '...'}: expected {expected}", option=where)


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise ValueError(f"the key {key!r} occurs twice in one object")
        result[key] = value
    return result


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")
