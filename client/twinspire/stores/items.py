"""Items, hits and the other values that go into a vector store and come out of it."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from twinspire._arguments import as_member, require_text, shown
from twinspire.errors import InputError

_JSON = json.JSONEncoder(allow_nan=False, ensure_ascii=False, separators=(",", ":"))
_METADATA = "metadata must be a JSON object: str keys, finite numbers"


class ItemKind(StrEnum):
    """The modality of an item."""

    IMAGE = "image"
    TEXT = "text"
    AUDIO = "audio"


@dataclass(frozen=True, slots=True)
class Item:
    """The image, text or sound that a vector was computed from.

    `uri` is its location, for a file the absolute path. `kind` may be given by name: "image". `metadata` is a JSON
    object. `content_hash` identifies the content: a store takes an item of the same kind, uri and content hash only
    once; without a hash always. Raises `InputError` for values that a store cannot return unchanged or filter by: lone
    surrogates, NUL characters, numbers that are not finite and ints of thousands of digits.
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
    """An item as a store holds it. Its `id` is never reused; times are Unix time, in seconds."""

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
    """An item that a search found, and its score; higher is better.

    The score of a vector search is the inner product of the item's vector and the query's, -1 to 1; that of a keyword
    search is BM25, which has no upper bound.
    """

    id: int
    uri: str
    score: float
    kind: ItemKind
    caption: str | None
    metadata: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class AddReport:
    """Result of `add`: the ids of the new items, and the positions of those that the store had already."""

    added: list[int]
    skipped: list[int]


@dataclass(frozen=True, slots=True)
class BundleReference:
    """The bundle that made the embeddings of a store: its name and its folder.

    `path` is absolute; None for the sample bundle of the package. A store records the reference and never opens the
    bundle. Raises `InputError` for an empty name, a relative path and text that is not UTF-8.
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
    """Return `metadata` as a JSON object. Raises `InputError` if JSON cannot represent it."""
    try:
        text = _JSON.encode(dict(metadata))
        text.encode()
    except (TypeError, ValueError, RecursionError) as error:  # UnicodeEncodeError is a ValueError
        raise InputError(f"{_METADATA}; got {shown(metadata)}: {_cause(error)}") from error
    return text


def metadata_as_json(metadata: Mapping[str, Any]) -> str:
    """Return `metadata` as a JSON object. Raises `InputError` if reading it would give something else."""
    text = encoded_metadata(metadata)
    try:
        same = json.loads(text) == metadata
    except (ValueError, RecursionError) as error:
        raise InputError(f"{_METADATA}; got {shown(metadata)}: {_cause(error)}") from error
    if not same:
        raise InputError(f"{_METADATA}, and no tuples; got {shown(metadata)}")
    if "\\u0000" in text and _has_nul(metadata):  # SQLite's JSON functions truncate text at a NUL
        raise InputError(f"metadata must have no NUL characters in its texts and keys; got {shown(metadata)}")
    return text


def metadata_columns(keys: Iterable[str], taken: Collection[str]) -> dict[str, str]:
    """Return the column that each metadata key gets in a table of items, sorted by key: the key itself, as in filters.

    A key that is named as one of the columns `taken` is `metadata.KEY`, as in filters, and so is one that starts with
    `metadata.` itself: no two keys share a column.
    """
    return {key: f"metadata.{key}" if key in taken or key.startswith("metadata.") else key for key in sorted(set(keys))}


def _require_storable(name: str, value: str) -> None:
    if "\0" in require_text(value, f"an item's {name}"):
        raise InputError(f"an item's {name} must have no NUL character, got {shown(value)}")


def _has_nul(value: object) -> bool:
    if isinstance(value, Mapping):
        return any(_has_nul(key) or _has_nul(part) for key, part in value.items())
    if isinstance(value, list):
        return any(map(_has_nul, value))
    return isinstance(value, str) and "\0" in value


def _cause(error: Exception) -> str:
    is_long = "int_max_str_digits" in str(error)  # Python's message advises on its settings
    return "a whole number has too many digits" if is_long else str(error)
