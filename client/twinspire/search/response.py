"""`SearchResponse`: the hits of one search, in Python, as JSON and as HTML for notebooks."""

from __future__ import annotations

import base64
import io
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from html import escape
from types import MappingProxyType
from typing import Any

from PIL import Image

from twinspire._arguments import (
    as_finite,
    as_member,
    as_whole,
    checked_array,
    checked_object,
    naming,
    require_text,
    shown,
)
from twinspire._codec import encode
from twinspire.errors import ImageError, InputError
from twinspire.images import load_image
from twinspire.stores.items import ItemKind, metadata_as_json

_SCHEMA_VERSION = 1
_HTML_HITS = 24
_THUMBNAIL = 128  # pixels
_JPEG_QUALITY = 70
_HTML_CHARACTERS = 160
_CARD = f"display:inline-block;width:{_THUMBNAIL}px;margin:4px;vertical-align:top;overflow:hidden;font:11px sans-serif"
_IMAGE_BOX = (
    f"height:{_THUMBNAIL}px;display:flex;align-items:center;justify-content:center;background:#8882;overflow:hidden"
)
_NO_PARTS: Mapping[str, float] = MappingProxyType({})


class Mode(StrEnum):
    """How to search: by vector, by keyword in captions and file names, or both (hybrid); `auto` goes by the query."""

    AUTO = "auto"
    VECTOR = "vector"
    KEYWORD = "keyword"
    HYBRID = "hybrid"


@dataclass(frozen=True, slots=True, repr=False)
class SearchHit:
    """One hit: an item, its rank from 1, and its score.

    `parts` are what the score is made of: `vector`, the similarity, which is the inner product of the query's and the
    item's vector, -1 to 1; `keyword`, BM25, above 0; `fused`, the reciprocal rank fusion, up to 1, and the ranks that
    it fuses, from 1: `vector_rank`, `keyword_rank`, `rare_rank` (by the rare words of the query); `boost FILTER`, what
    a boost added; `pinned`, 1 where a pin put the item first; `rerank`, the reranker's probability, which orders the
    first hits of a reranked search. `probability` is that of the similarity, where a
    calibration is known. `similar` are the ids of the near-equal hits that a grouped search left out, best first.
    """

    rank: int
    id: int
    uri: str
    score: float
    kind: ItemKind
    caption: str | None
    metadata: Mapping[str, Any]
    parts: Mapping[str, float] = field(default_factory=lambda: _NO_PARTS)
    probability: float | None = None
    similar: tuple[int, ...] = ()

    def __repr__(self) -> str:
        return f"<SearchHit {self.id}: {self.score:.4f} {shown(self.uri)}>"

    def to_dict(self) -> dict[str, Any]:
        """Return the hit as JSON."""
        document: dict[str, Any] = encode(self)
        return document

    @classmethod
    def from_dict(cls, document: object) -> SearchHit:
        """Read what `to_dict` writes. Raises `InputError`; its `option` names the key."""
        checks: dict[str, Callable[[Any], Any]] = {
            "rank": lambda rank: as_whole(rank, "a rank", minimum=1),
            "id": lambda number: as_whole(number, "an id", minimum=0),
            "uri": lambda uri: require_text(uri, "a uri"),
            "score": lambda score: as_finite(score, "a score"),
            "kind": lambda kind: as_member(kind, ItemKind, "a kind of item"),
            "caption": lambda caption: None if caption is None else require_text(caption, "a caption"),
            "metadata": _metadata,
            "parts": _parts,
            "probability": lambda share: (
                None if share is None else as_finite(share, "probability", minimum=0, maximum=1)
            ),
            "similar": lambda ids: checked_array(ids, "similar", lambda number: as_whole(number, "an id", minimum=0)),
        }
        return cls(**checked_object(document, "a hit", checks, optional={"similar"}))  # older documents lack it


@dataclass(frozen=True, slots=True, repr=False)
class SearchResponse:
    """The hits of one search, best first; a notebook shows them with thumbnails.

    `mode` is the mode that was used in the end, never `auto` where there are hits; `searched` is the number of items
    in the index, `offset` the number of better hits that were skipped, `cached` whether the response came from the
    cache. `notes` are for a person: a phrase that no item has, a filter that matches nothing.
    """

    hits: tuple[SearchHit, ...]
    mode: Mode
    searched: int
    cached: bool = False
    notes: tuple[str, ...] = ()
    offset: int = 0

    def __repr__(self) -> str:
        best = f", the first {self.hits[0]!r}" if self.hits else ""
        return f"<SearchResponse: {len(self.hits)} hits of {self.searched:,} items, mode {self.mode}{best}>"

    def to_dict(self) -> dict[str, Any]:
        """Return the response as JSON."""
        return {
            "schema_version": _SCHEMA_VERSION,
            "mode": self.mode.value,
            "searched": self.searched,
            "offset": self.offset,
            "cached": self.cached,
            "notes": list(self.notes),
            "hits": [hit.to_dict() for hit in self.hits],
        }

    @classmethod
    def from_dict(cls, document: object) -> SearchResponse:
        """Read what `to_dict` writes.

        Raises `InputError` for unknown or missing keys, another schema version and wrong types; its `option` names the
        key, such as `hits[0].score`.
        """
        checks: dict[str, Callable[[Any], Any]] = {
            "schema_version": lambda version: as_whole(
                version, "schema_version", minimum=_SCHEMA_VERSION, maximum=_SCHEMA_VERSION
            ),
            "mode": lambda mode: as_member(mode, Mode, "mode"),
            "searched": lambda searched: as_whole(searched, "searched", minimum=0),
            "offset": lambda offset: as_whole(offset, "offset", minimum=0),
            "cached": _boolean,
            "notes": lambda notes: checked_array(notes, "notes", lambda note: require_text(note, "a note")),
            "hits": lambda hits: checked_array(hits, "hits", SearchHit.from_dict),
        }
        values = checked_object(document, "a search response", checks)
        del values["schema_version"]
        return cls(**values)

    def _repr_html_(self) -> str:
        """Return the first 24 hits as cards; an image that cannot be opened is a card that says so.

        Self-contained: no scripts, no links, nothing to load. Thumbnails are data URIs of pixels that were encoded
        again, so that no metadata of a file (where a photo was taken, say) gets out; the rest is escaped. An item's
        metadata is not shown.
        """
        title = f"{len(self.hits)} hits of {self.searched:,} items, mode {self.mode}"
        if len(self.hits) > _HTML_HITS:
            title += f"; the first {_HTML_HITS} are shown"
        notes = "".join(f"<div>note: {_text(note, _HTML_CHARACTERS * 4)}</div>" for note in self.notes)
        cards = "".join(map(_card, self.hits[:_HTML_HITS]))
        return f'<div><div style="font:12px sans-serif">{escape(title)}{notes}</div>{cards}</div>'


def _boolean(value: object) -> bool:
    if not isinstance(value, bool):
        raise InputError(f"expected true or false, got {shown(value)}")
    return value


def _metadata(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InputError(f"metadata: expected a JSON object, got {shown(value)}")
    metadata_as_json(value)
    return value


def _parts(value: object) -> dict[str, float]:
    parts = {}
    for name, part in _metadata(value).items():
        with naming(name):
            parts[name] = as_finite(part, f"the part {name!r} of a score")
    return parts


def _card(hit: SearchHit) -> str:
    is_text = hit.kind is ItemKind.TEXT
    shown = _text(hit.caption or "", _HTML_CHARACTERS) if is_text else _thumbnail(hit)
    caption = "" if is_text or not hit.caption else f"<div>{_text(hit.caption, _HTML_CHARACTERS)}</div>"
    name = _text(hit.uri.rpartition("/")[2], _HTML_CHARACTERS)
    similar = f"<div>+{len(hit.similar):,} similar</div>" if hit.similar else ""
    return (
        f'<div style="{_CARD}"><div style="{_IMAGE_BOX}">{shown}</div>'
        f"<div>{hit.rank}. <b>{hit.score:.3f}</b> {name}</div>{caption}{similar}</div>"
    )


def _thumbnail(hit: SearchHit) -> str:
    if hit.kind is ItemKind.AUDIO:
        return "<i>sound</i>"
    if not hit.uri.startswith("/"):
        return "<i>no local file</i>"
    try:
        image = load_image(hit.uri)
    except (ImageError, MemoryError):
        return "<i>the file is missing or cannot be opened</i>"
    image.thumbnail((_THUMBNAIL, _THUMBNAIL), Image.Resampling.BILINEAR)
    jpeg = io.BytesIO()
    Image.frombytes(image.mode, image.size, image.tobytes()).save(jpeg, "JPEG", quality=_JPEG_QUALITY)
    return f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(jpeg.getvalue()).decode()}">'


def _text(text: str, limit: int) -> str:
    """Return text for HTML, on one line and shortened; control and format characters are escaped."""
    shortened = text if len(text) <= limit else f"{text[:limit]}…"
    visible = (
        character.encode("unicode_escape").decode() if unicodedata.category(character)[0] == "C" else character
        for character in " ".join(shortened.split())
    )
    return escape("".join(visible))
