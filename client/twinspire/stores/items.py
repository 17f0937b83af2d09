"""What goes into an index and what comes out of it."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from twinspire._arguments import as_member, is_utf8, require_text, shown
from twinspire.errors import InputError

_JSON = json.JSONEncoder(allow_nan=False, ensure_ascii=False, separators=(",", ":"))
_METADATA = "metadata must be what JSON can hold: an object with str keys and finite numbers"


class ItemKind(StrEnum):
    """What a vector was made of."""

    IMAGE = "image"
    TEXT = "text"


@dataclass(frozen=True, slots=True)
class Item:
    """What one vector stands for.

    `uri` says where it is (for an image: its absolute path). `kind` may be given by name: "image". `metadata` is a
    JSON object. `content_hash` names the content itself: an index takes the same kind, uri and content once; without
    a hash an item is always taken. Raises `InputError` for what the catalogue could not give back unchanged or filter
    by: lone surrogates, NUL characters, numbers that are not finite and ints of thousands of digits.
    """

    uri: str
    kind: ItemKind
    caption: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    content_hash: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "kind", as_member(self.kind, ItemKind, "an item's kind"))
        if not isinstance(self.uri, str) or not self.uri:
            raise InputError(f"an item's uri must be a non-empty str, got {shown(self.uri)}")
        for name in ("uri", "caption", "content_hash"):
            value = getattr(self, name)
            if value is not None:
                _require_storable(name, value)
        metadata_as_json(self.metadata)


@dataclass(frozen=True, slots=True)
class StoredItem:
    """An item as the index holds it. `id` stays its own for ever; the times are Unix time, in seconds."""

    id: int
    uri: str
    kind: ItemKind
    caption: str | None
    metadata: Mapping[str, Any]
    content_hash: str | None
    added_at: float
    changed_at: float


@dataclass(frozen=True, slots=True)
class Hit:
    """One answer: an item and its score, higher is better.

    From a search by vectors the score is the inner product of its vector and the query's, -1 to 1; from a search
    by words it is the negated BM25 of FTS5, which has no upper end.
    """

    id: int
    uri: str
    score: float
    kind: ItemKind
    caption: str | None
    metadata: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class AddReport:
    """What one `add` did: the ids of the new items, and the positions of those that were there already."""

    added: list[int]
    skipped: list[int]


@dataclass(frozen=True, slots=True)
class BundleReference:
    """The bundle that made an index: its name and its folder.

    `path` is absolute; None for the sample that comes with the package. An index only remembers the reference, it
    never opens the bundle. Raises `InputError` for an empty name, a relative path and text that is not UTF-8.
    """

    name: str
    path: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise InputError(f"a bundle's name must be a non-empty str, got {self.name!r}")
        if self.path is not None and (not isinstance(self.path, str) or not Path(self.path).is_absolute()):
            raise InputError(f"a bundle's path must be an absolute path as a str, or None, got {self.path!r}")
        for what, text in (("name", self.name), ("path", self.path or "")):
            require_text(text, f"a bundle's {what}")

    def __str__(self) -> str:
        where = "the sample that comes with twinspire" if self.path is None else f"at {self.path}"
        return f"the bundle {self.name}{',' if self.path is None else ''} {where}"


def encoded_metadata(metadata: Mapping[str, Any]) -> str:
    """Return `metadata` as a JSON object. Raises `InputError` where JSON cannot hold it."""
    try:
        text = _JSON.encode(dict(metadata))
        text.encode()
    except (TypeError, ValueError, RecursionError) as error:  # UnicodeEncodeError is a ValueError
        raise InputError(f"{_METADATA}; got {shown(metadata)}: {_cause(error)}") from error
    return text


def metadata_as_json(metadata: Mapping[str, Any]) -> str:
    """Return `metadata` as a JSON object. Raises `InputError` where it would read back as something else."""
    text = encoded_metadata(metadata)
    try:
        same = json.loads(text) == metadata
    except (ValueError, RecursionError) as error:
        raise InputError(f"{_METADATA}; got {shown(metadata)}: {_cause(error)}") from error
    if not same:
        raise InputError(f"{_METADATA}, and no tuples; got {shown(metadata)}")
    if "\\u0000" in text and _has_nul(metadata):  # SQLite's JSON functions end a text at its first NUL
        raise InputError(f"metadata must have no NUL characters in its texts and keys; got {shown(metadata)}")
    return text


def metadata_columns(keys: Iterable[str], taken: Collection[str]) -> dict[str, str]:
    """Return the column that each metadata key gets in a table of items, sorted by key: the key itself, as in filters.

    A key that is named as one of the columns `taken` is `metadata.KEY`, as in filters, and so is one that starts with
    `metadata.` itself: no two keys share a column.
    """
    return {key: f"metadata.{key}" if key in taken or key.startswith("metadata.") else key for key in sorted(set(keys))}


def _require_storable(name: str, value: object) -> None:
    if not isinstance(value, str):
        raise InputError(f"an item's {name} must be a str, got {shown(value)}")
    if not is_utf8(value):
        raise InputError(f"an item's {name} must be text that UTF-8 can hold, got {shown(value)}")
    if "\0" in value:
        raise InputError(f"an item's {name} must have no NUL character, got {shown(value)}")


def _has_nul(value: object) -> bool:
    if isinstance(value, Mapping):
        return any(_has_nul(key) or _has_nul(each) for key, each in value.items())
    if isinstance(value, list):
        return any(map(_has_nul, value))
    return isinstance(value, str) and "\0" in value


def _cause(error: Exception) -> str:
    is_long = "int_max_str_digits" in str(error)  # Python's advice is none for metadata
    return "a whole number has too many digits" if is_long else str(error)
