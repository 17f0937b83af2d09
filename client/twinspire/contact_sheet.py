"""Contact sheet: one PNG or JPEG that shows queries and their hits as thumbnails."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageOps

from twinspire._arguments import file_errors
from twinspire._atomic import atomic_file
from twinspire.errors import ImageError, InputError
from twinspire.font_fallback import TextRenderer, legible
from twinspire.images import load_image

# All in pixels.
_MARGIN = 44
_THUMB = 212
_GAP = 20
_RADIUS = 12
_COLUMNS = 5  # at most; more hits go on below
_TITLE_SIZE = 27
_TITLE_LINE = 36
_TITLE_GAP = 18
_CAPTION = 50
_LINE_GAP = 20
_ROW_GAP = 34
_QUERY_THUMB = 72
_TEXT_SIZE = 17  # of a text hit
_TEXT_LINE = 24
_TEXT_LINES = 8
_TEXT_MARGIN = 14

_JPEG_SUFFIXES = (".jpg", ".jpeg")
_JPEG_QUALITY = 88

_PAGE = "#f7f7f5"
_CARD = "#e9e9e6"
_INK = "#1c1f26"
_MUTED = "#797d86"
_ACCENT = "#2f5fd0"
_LINE = "#dededa"

_SCORE = TextRenderer(18)
_NAME = TextRenderer(14)


@dataclass(frozen=True, slots=True)
class SheetRow:
    """A query and its hits, best first: the path of an image or a text, and the score.

    `image` is the query image, where there is one.
    """

    title: str
    hits: Sequence[tuple[Path | str, float]]
    image: Path | None = None


def contact_sheet(rows: Sequence[SheetRow], destination: str | os.PathLike[str]) -> frozenset[str]:
    """Draw `rows` below each other and write them to `destination`, atomically: JPEG for .jpg and .jpeg, else PNG.

    A hit whose file is missing or cannot be opened is drawn as an empty card that says so. Returns the characters of
    titles and names that no font has; the sheet says where they are missing. Raises `InputError` for no rows and
    where `destination` cannot be written.
    """
    if not rows:
        raise InputError("a contact sheet needs at least one query with its hits")
    columns = min(_COLUMNS, max(1, *(len(row.hits) for row in rows)))
    width = max(columns, 3) * (_THUMB + _GAP) - _GAP
    drawn = [_Row(row, width) for row in rows]
    height = sum(row.height for row in drawn) + _ROW_GAP * (len(drawn) - 1)
    page = Image.new("RGB", (width + 2 * _MARGIN, height + 2 * _MARGIN), _PAGE)
    top = _MARGIN
    for number, row in enumerate(drawn):
        if number:
            middle = top - _ROW_GAP // 2
            ImageDraw.Draw(page).line([(_MARGIN, middle), (_MARGIN + width, middle)], fill=_LINE, width=1)
        row.draw(page, top)
        top += row.height + _ROW_GAP
    destination = Path(destination)
    with (
        file_errors(f"the contact sheet cannot be written to {destination}", destination),
        atomic_file(destination) as draft,
    ):
        if destination.suffix.lower() in _JPEG_SUFFIXES:
            page.save(draft, format="JPEG", quality=_JPEG_QUALITY, optimize=True)
        else:
            page.save(draft, format="PNG", optimize=True)
    return frozenset().union(*(row.missing for row in drawn))


def missing_font_note(characters: frozenset[str]) -> str:
    """Return a note on the `characters` that a contact sheet leaves out."""
    return (
        f"note: no installed font has the characters {''.join(sorted(characters))}, so the contact sheet leaves "
        "them out: install a font that has them, such as Noto Sans CJK (Debian: fonts-noto-cjk)"
    )


class _Row:
    """Layout of one query and its hits: `height` is known at once, `draw` takes the position."""

    def __init__(self, row: SheetRow, width: int) -> None:
        self._row = row
        self._columns = (width + _GAP) // (_THUMB + _GAP)
        title, self.missing = legible(row.title)
        self._indent = _QUERY_THUMB + _GAP if row.image is not None else 0
        self._text = TextRenderer(_TITLE_SIZE, like=title)
        self._title = self._text.wrap(title, width - self._indent, lines=3) or ["(no text)"]
        self._title_height = _TITLE_LINE * len(self._title)
        if row.image is not None:
            self._title_height = max(self._title_height, _QUERY_THUMB)
        lines = max(1, -(-len(row.hits) // self._columns))
        self.height = self._title_height + _TITLE_GAP + lines * (_THUMB + _CAPTION + _LINE_GAP) - _LINE_GAP
        if not row.hits:
            self.height = self._title_height + _TITLE_GAP + _CAPTION

    def draw(self, page: Image.Image, top: int) -> None:
        draw = ImageDraw.Draw(page)
        text_top = top + (self._title_height - _TITLE_LINE * len(self._title)) // 2
        for number, line in enumerate(self._title):
            baseline = text_top + number * _TITLE_LINE + _TITLE_SIZE
            self._text.draw(draw, (_MARGIN + self._indent, baseline), line, _INK)
        if self._row.image is not None:
            _paste(page, self._row.image, (_MARGIN, top), _QUERY_THUMB)
        top += self._title_height + _TITLE_GAP
        if not self._row.hits:
            _NAME.draw(draw, (_MARGIN, top + 14), "no hits", _MUTED)
        for number, (hit, score) in enumerate(self._row.hits):
            down, across = divmod(number, self._columns)
            left = _MARGIN + across * (_THUMB + _GAP)
            self._draw_hit(page, hit, score, (left, top + down * (_THUMB + _CAPTION + _LINE_GAP)))

    def _draw_hit(self, page: Image.Image, hit: Path | str, score: float, at: tuple[int, int]) -> None:
        draw = ImageDraw.Draw(page)
        left, top = at
        _SCORE.draw(draw, (left + 2, top + _THUMB + 24), f"{score:.3f}", _ACCENT)
        if isinstance(hit, str):
            self.missing |= _paste_text(page, hit, at)
            return
        path = hit
        _paste(page, path, at, _THUMB)
        name, missing = legible(os.fsencode(path.name).decode(errors="replace"))
        self.missing |= missing
        _NAME.draw(draw, (left + 2, top + _THUMB + 44), _NAME.shorten(name, _THUMB - 4), _MUTED)


def _paste(page: Image.Image, path: Path, at: tuple[int, int], size: int) -> None:
    """Paste the thumbnail of a file, or a card that says why there is none, as a square with round corners."""
    try:
        image = load_image(path)
        thumb = Image.new("RGB", (size, size), _CARD)
        fitted = ImageOps.contain(image, (size, size), Image.Resampling.LANCZOS)
        thumb.paste(fitted, ((size - fitted.width) // 2, (size - fitted.height) // 2))
    except ImageError:
        thumb = _placeholder("file is missing" if not path.exists() else "cannot be opened", size)
    page.paste(thumb, at, _corners(size))


def _paste_text(page: Image.Image, text: str, at: tuple[int, int]) -> frozenset[str]:
    """Paste a text as a card and return its characters that no font has."""
    card = Image.new("RGB", (_THUMB, _THUMB), _CARD)
    draw = ImageDraw.Draw(card)
    drawable, missing = legible(text)
    renderer = TextRenderer(_TEXT_SIZE, like=drawable)
    for number, line in enumerate(renderer.wrap(drawable, _THUMB - 2 * _TEXT_MARGIN, lines=_TEXT_LINES)):
        renderer.draw(draw, (_TEXT_MARGIN, _TEXT_MARGIN + _TEXT_SIZE + number * _TEXT_LINE), line, _INK)
    page.paste(card, at, _corners(_THUMB))
    return missing


def _placeholder(message: str, size: int) -> Image.Image:
    card = Image.new("RGB", (size, size), _CARD)
    draw = ImageDraw.Draw(card)
    middle, arm = size / 2, size / 11
    top = middle - (arm if size >= _THUMB else 0)
    draw.line([(middle - arm, top - arm), (middle + arm, top + arm)], fill=_MUTED, width=3)
    draw.line([(middle - arm, top + arm), (middle + arm, top - arm)], fill=_MUTED, width=3)
    if size >= _THUMB:
        _NAME.draw(draw, ((size - _NAME.width(message)) / 2, middle + 2.6 * arm), message, _MUTED)
    return card


@cache
def _corners(size: int) -> Image.Image:
    """Return the mask of a square with round corners, drawn larger and scaled down for smooth edges."""
    scale = 4
    mask = Image.new("L", (size * scale, size * scale), 0)
    radius = _RADIUS * scale if size >= _THUMB else _RADIUS * scale // 2
    ImageDraw.Draw(mask).rounded_rectangle([(0, 0), (size * scale - 1, size * scale - 1)], radius, fill=255)
    return mask.resize((size, size), Image.Resampling.LANCZOS)
