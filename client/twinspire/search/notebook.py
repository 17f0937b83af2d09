"""An answer as a piece of HTML for notebooks: thumbnails, scores and captions.

Self-contained: no scripts, links or addresses to load, the thumbnails are data URIs of pixels that were encoded again,
so that nothing of an image's own metadata (where it was taken, say) gets out. Everything else is escaped. Of an item's
metadata nothing is shown.
"""

from __future__ import annotations

import base64
import io
import unicodedata
from html import escape
from typing import TYPE_CHECKING

from PIL import Image

from twinspire.errors import ImageError
from twinspire.images import load_image
from twinspire.index import ItemKind

if TYPE_CHECKING:
    from twinspire.search.response import SearchHit, SearchResponse

_MOST_HITS = 24
_SIDE = 128  # pixels
_QUALITY = 70
_MOST_CHARACTERS = 160
_CARD = f"display:inline-block;width:{_SIDE}px;margin:4px;vertical-align:top;overflow:hidden;font:11px sans-serif"
_PLACE = f"height:{_SIDE}px;display:flex;align-items:center;justify-content:center;background:#8882;overflow:hidden"


def response_html(answer: SearchResponse) -> str:
    """Return the first 24 hits as cards; an image that is gone or cannot be opened is a card that says so."""
    first = answer.offset + 1
    cards = [_card(rank, hit) for rank, hit in enumerate(answer.hits[:_MOST_HITS], start=first)]
    title = f"{len(answer.hits)} hits of {answer.searched:,} items, mode {answer.mode}"
    if len(answer.hits) > _MOST_HITS:
        title += f"; the first {_MOST_HITS} are shown"
    notes = "".join(f"<div>note: {_text(note, _MOST_CHARACTERS * 4)}</div>" for note in answer.notes)
    return f'<div><div style="font:12px sans-serif">{escape(title)}{notes}</div>{"".join(cards)}</div>'


def _card(rank: int, hit: SearchHit) -> str:
    words = hit.kind is ItemKind.TEXT
    shown = _text(hit.caption or "", _MOST_CHARACTERS) if words else _thumbnail(hit)
    caption = "" if words or not hit.caption else f"<div>{_text(hit.caption, _MOST_CHARACTERS)}</div>"
    name = _text(hit.uri.rpartition("/")[2], _MOST_CHARACTERS)
    return (
        f'<div style="{_CARD}"><div style="{_PLACE}">{shown}</div><div>{rank}. <b>{hit.score:.3f}</b> {name}</div>'
        f"{caption}</div>"
    )


def _thumbnail(hit: SearchHit) -> str:
    if not hit.uri.startswith("/"):
        return "<i>no local file</i>"
    try:
        picture = load_image(hit.uri)
    except (ImageError, MemoryError):
        return "<i>the file is gone or cannot be opened</i>"
    picture.thumbnail((_SIDE, _SIDE), Image.Resampling.BILINEAR)
    jpeg = io.BytesIO()
    Image.frombytes(picture.mode, picture.size, picture.tobytes()).save(jpeg, "JPEG", quality=_QUALITY)
    return f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(jpeg.getvalue()).decode()}">'


def _text(text: str, most: int) -> str:
    """Return text escaped, on one line and shortened; control and direction characters are written as escapes."""
    shortened = text if len(text) <= most else f"{text[:most]}…"
    visible = (
        character.encode("unicode_escape").decode() if unicodedata.category(character)[0] == "C" else character
        for character in " ".join(shortened.split())
    )
    return escape("".join(visible))
