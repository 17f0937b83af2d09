"""Pen that draws one object on its own tile, in coordinates from -1 to 1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from PIL import Image, ImageDraw

from twinspire_eval.scenes.vocabulary import Colour

RGB = tuple[int, int, int]
Paint = Literal["main", "light", "dark", "ink", "paper", "brown", "glass", "leaf", "none"]

BASE: dict[Colour, RGB] = {
    Colour.RED: (222, 44, 44),
    Colour.ORANGE: (246, 140, 30),
    Colour.YELLOW: (250, 216, 48),
    Colour.GREEN: (48, 164, 68),
    Colour.BLUE: (40, 96, 220),
    Colour.PURPLE: (148, 62, 190),
    Colour.WHITE: (246, 246, 244),
    Colour.BLACK: (34, 34, 38),
}


def mix(a: RGB, b: RGB, share: float) -> RGB:
    """Return `a` with `share` of `b` mixed in."""
    return tuple(round(x + (y - x) * share) for x, y in zip(a, b, strict=True))  # type: ignore[return-value]


class Pen:
    """Shapes with an outline in shades of one colour.

    The tile is a square of `side` pixels; -1..1 spans `EXTENT` of its width, which leaves room for rotating it.
    """

    EXTENT = 0.70

    def __init__(self, side: int, colour: RGB) -> None:
        self.tile = Image.new("RGBA", (side, side))
        self._draw = ImageDraw.Draw(self.tile)
        self._half = side / 2
        self._unit = side / 2 * self.EXTENT
        dim = sum(colour) < 150
        self._width = max(2, round(side * 0.012))
        self._outline: RGB = (150, 150, 158) if dim else mix(colour, (20, 16, 30), 0.72)
        self._paints: dict[str, RGB] = {
            "main": colour,
            "light": mix(colour, (255, 255, 255), 0.30),
            "dark": mix(colour, (0, 0, 0), 0.22) if not dim else mix(colour, (255, 255, 255), 0.16),
            "ink": (30, 26, 36) if not dim else (226, 226, 226),
            "paper": (252, 250, 244),
            "brown": (128, 84, 50),
            "glass": (196, 228, 246),
            "leaf": (86, 140, 70),
        }

    def ellipse(self, x: float, y: float, rx: float, ry: float, paint: Paint = "main", *, outline: bool = True) -> None:
        """Fill an ellipse around (x, y)."""
        box = (*self._point(x - rx, y - ry), *self._point(x + rx, y + ry))
        self._draw.ellipse(box, **self._style(paint, outline))

    def box(
        self,
        x0: float,
        y0: float,
        x1: float,
        y1: float,
        paint: Paint = "main",
        *,
        radius: float = 0.0,
        outline: bool = True,
    ) -> None:
        """Fill a rectangle with rounded corners."""
        corners = (*self._point(x0, y0), *self._point(x1, y1))
        self._draw.rounded_rectangle(corners, radius * self._unit, **self._style(paint, outline))

    def polygon(self, points: Sequence[tuple[float, float]], paint: Paint = "main", *, outline: bool = True) -> None:
        """Fill a polygon."""
        placed = [self._point(x, y) for x, y in points]
        self._draw.polygon(placed, fill=self._paints[paint])
        if outline:
            self._draw.line([*placed, placed[0]], self._outline, self._width, joint="curve")

    def slice(self, x: float, y: float, rx: float, ry: float, start: float, end: float, paint: Paint = "main") -> None:
        """Fill the part of an ellipse between two angles, in degrees clockwise from the right."""
        box = (*self._point(x - rx, y - ry), *self._point(x + rx, y + ry))
        self._draw.chord(box, start, end, **self._style(paint, True))

    def line(self, points: Sequence[tuple[float, float]], paint: Paint = "ink", *, width: float = 0.06) -> None:
        """Draw a stroke through the points."""
        placed = [self._point(x, y) for x, y in points]
        self._draw.line(placed, self._paints[paint], max(1, round(width * self._unit)), joint="curve")

    def arc(
        self,
        x: float,
        y: float,
        rx: float,
        ry: float,
        start: float,
        end: float,
        paint: Paint = "ink",
        *,
        width: float = 0.06,
    ) -> None:
        """Draw a stroke along an ellipse between two angles, in degrees clockwise from the right."""
        box = (*self._point(x - rx, y - ry), *self._point(x + rx, y + ry))
        self._draw.arc(box, start, end, self._paints[paint], max(1, round(width * self._unit)))

    def _point(self, x: float, y: float) -> tuple[float, float]:
        return self._half + x * self._unit, self._half + y * self._unit

    def _style(self, paint: Paint, outline: bool) -> dict[str, Any]:
        return {
            "fill": self._paints[paint],
            "outline": self._outline if outline else None,
            "width": self._width if outline else 0,
        }
