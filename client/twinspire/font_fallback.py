"""Drawing text on images with font fallback: the first font that has a character, and never an empty box.

Three sources are tried in this order, so that a text looks the same on every machine where the first two cover it:
Pillow's own font (Aileron, printable ASCII), the font in `fonts/` (Latin-1, punctuation and the 3,755 level 1
characters of GB 2312; made by `tools/make_font.py`), then fonts installed in the system's folders. Characters that no
font has are replaced by a note with their number, and returned to the caller.
"""

from __future__ import annotations

import os
import re
import unicodedata
from bisect import bisect_right
from collections.abc import Callable, Iterator
from functools import cache, lru_cache
from itertools import groupby
from pathlib import Path

from PIL import ImageDraw, ImageFont

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

_PILLOW = ""  # in place of a path: Pillow's own font, which has no file
_SHIPPED = str(Path(__file__).parent / "fonts" / "TwinspireSansSC-Regular.otf")
_FOLDERS = (
    "/usr/share/fonts", "/usr/local/share/fonts", "~/.local/share/fonts", "~/.fonts", "/System/Library/Fonts",
    "/Library/Fonts",
)  # fmt: skip
# File names of installed fonts, in the order in which they are tried.
_NAMES = (
    "NotoSans-Regular.ttf", "DejaVuSans.ttf", "LiberationSans-Regular.ttf", "Arial.ttf", "NotoSansCJK-Regular.ttc",
    "NotoSansCJKsc-Regular.otf", "NotoSansSC-Regular.otf", "NotoSansSC-Regular.ttf", "SourceHanSansSC-Regular.otf",
    "SourceHanSansCN-Regular.otf", "wqy-microhei.ttc", "wqy-zenhei.ttc", "DroidSansFallbackFull.ttf",
    "DroidSansFallback.ttf", "uming.ttc", "ukai.ttc", "PingFang.ttc", "Hiragino Sans GB.ttc", "STHeiti Medium.ttc",
    "Arial Unicode.ttf", "unifont.otf", "unifont.ttf",
)  # fmt: skip
_NO_CHARACTER = "\U0010fffd"  # private use: fonts draw it as a missing glyph


class TextRenderer:
    """Draws text of one size in pixels, in the first font that has all of it, else in several.

    `like` is a longer text that the drawn ones are parts of, so that all of them have the same font.
    """

    def __init__(self, size: int, *, like: str = "") -> None:
        self.size = size
        whole = _path_for_all(like) if like else None
        self._first = () if whole is None else (whole,)

    def width(self, text: str) -> float:
        """Return the width of `text` in pixels."""
        return sum(font.getlength(run) for font, run in self._runs(text))

    def draw(self, draw: ImageDraw.ImageDraw, at: tuple[float, float], text: str, fill: str) -> None:
        """Draw `text`, as `legible` returns it, from `at`, the left end of its baseline."""
        x, y = at
        for font, run in self._runs(text):
            draw.text((x, y), run, fill=fill, font=font, anchor="ls")
            x += font.getlength(run)

    def shorten(self, text: str, width: float) -> str:
        """Return `text`, with its middle left out where it is too wide: the ends of file names tell them apart."""
        if self.width(text) <= width:
            return text
        return _without_middle(text, self._longest(len(text) - 1, width, lambda kept: _without_middle(text, kept)))

    def wrap(self, text: str, width: float, lines: int) -> list[str]:
        """Break `text` into at most `lines` lines of this width, at spaces where there are any."""
        wrapped: list[str] = []
        rest = text.strip()
        while rest and len(wrapped) < lines:
            if len(wrapped) == lines - 1 or self.width(rest) <= width:
                wrapped.append(self.shorten(rest, width))
                break
            end = self._longest(len(rest) - 1, width, lambda end: rest[:end])  # noqa: B023 - used at once
            space = rest.rfind(" ", 0, end + 1)
            end = space if space > 0 else end
            wrapped.append(rest[:end].rstrip())
            rest = rest[end:].lstrip()
        return wrapped

    def _longest(self, limit: int, width: float, part: Callable[[int], str]) -> int:
        """Return the largest length from 1 to `limit` at which `part(length)` fits into `width`."""
        return max(1, bisect_right(range(1, limit + 1), width, key=lambda length: self.width(part(length))))

    def _runs(self, text: str) -> list[tuple[Font, str]]:
        whole = _path_for_all(text, self._first)
        if whole is not None:
            return [(_font(whole, self.size), text)]
        runs = groupby(text, key=_path_for)
        return [(_font(path or _PILLOW, self.size), "".join(characters)) for path, characters in runs]


def legible(text: str) -> tuple[str, frozenset[str]]:
    """Return `text` on one line, with a note in place of characters that no font has, and the set of these.

    Control and format characters, which are not visible, are removed.
    """
    text = "".join(character for character in re.sub(r"\s+", " ", text) if unicodedata.category(character)[0] != "C")
    missing = frozenset(character for character in text if _path_for(character) is None)
    parts = []
    for is_missing, run in groupby(text, key=missing.__contains__):
        characters = "".join(run)
        count = len(characters)
        parts.append(f"(no font for {count} character{'s' if count > 1 else ''})" if is_missing else characters)
    return "".join(parts), missing


def _without_middle(text: str, kept: int) -> str:
    tail = kept // 2
    return text[: kept - tail] + "…" + text[len(text) - tail :]


def _paths() -> Iterator[str]:
    """Yield the fonts in the order in which they are tried; the system's folders are listed only if needed."""
    yield _PILLOW
    yield _SHIPPED
    yield from _installed()


@cache
def _installed() -> tuple[str, ...]:
    """Return the paths of the known fonts that are installed."""
    found: dict[str, str] = {}
    for folder in _FOLDERS:
        for parent, _, names in os.walk(Path(folder).expanduser()):
            for name in names:
                if name in _NAMES:
                    found.setdefault(name, str(Path(parent, name)))
    return tuple(found[name] for name in _NAMES if name in found and _opens(found[name]))


def _opens(path: str) -> bool:
    try:
        ImageFont.truetype(path, 16)
    except OSError:
        return False
    return True


@lru_cache(maxsize=64)
def _font(path: str, size: int) -> Font:
    return ImageFont.load_default(size) if path == _PILLOW else ImageFont.truetype(path, size)


@cache
def _glyph(path: str, character: str) -> tuple[tuple[int, int], bytes]:
    mask = _plain_font(path).getmask(character)
    return mask.size, bytes(mask)


@cache
def _plain_font(path: str) -> Font:
    """Open a font without complex layout, which moves the box of a missing combining mark, as if it were a glyph."""
    font = _font(path, 24)
    return font.font_variant(layout_engine=ImageFont.Layout.BASIC) if isinstance(font, ImageFont.FreeTypeFont) else font


def _has(path: str, character: str) -> bool:
    return character.isspace() or _glyph(path, character) != _glyph(path, _NO_CHARACTER)


def _path_for_all(text: str, first: tuple[str, ...] = ()) -> str | None:
    return next((path for path in (*first, *_paths()) if all(_has(path, character) for character in text)), None)


@cache
def _path_for(character: str) -> str | None:
    return next((path for path in _paths() if _has(path, character)), None)
