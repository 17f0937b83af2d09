"""Charts as SVG, for pages that need no network: points and lines whose marks lead to their records."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _HEIGHT = 520, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 14, 12, 40
_COLOURS = 8


@dataclass(frozen=True)
class Mark:
    """A point of a chart: where it is, what a reader sees when pointing at it, and the record that it leads to."""

    x: float
    y: float
    label: str
    link: str


@dataclass(frozen=True)
class Series:
    """Marks of one colour, joined by a line where `joined`."""

    name: str
    marks: Sequence[Mark]
    joined: bool = True


@dataclass(frozen=True)
class Axis:
    """An axis: its words, whether it is logarithmic, and names of the places 0, 1, ... instead of numbers."""

    words: str
    logarithmic: bool = False
    names: Sequence[str] = ()


def chart(title: str, x: Axis, y: Axis, series: Sequence[Series]) -> str:
    """Return a figure with its caption and legend. Marks that are not positive are left out of a logarithmic axis."""
    shown = [
        Series(one.name, [mark for mark in one.marks if _fits(mark.x, x) and _fits(mark.y, y)], one.joined)
        for one in series
    ]
    shown = [one for one in shown if one.marks]
    if not shown:
        return ""
    across = _Scale(x, [mark.x for one in shown for mark in one.marks], _LEFT, _WIDTH - _RIGHT)
    up = _Scale(y, [mark.y for one in shown for mark in one.marks], _HEIGHT - _BOTTOM, _TOP)
    parts = [*_grid(across, up)]
    for number, one in enumerate(shown):
        colour = f"var(--c{number % _COLOURS})"
        places = [(across.at(mark.x), up.at(mark.y)) for mark in one.marks]
        if one.joined and len(places) > 1:
            line = " ".join(f"{left:.1f},{top:.1f}" for left, top in places)
            parts.append(f'<polyline points="{line}" stroke="{colour}"/>')
        for mark, (left, top) in zip(one.marks, places, strict=True):
            parts.append(
                f'<a href="{escape(mark.link)}"><circle class="mark" cx="{left:.1f}" cy="{top:.1f}" r="4" '
                f'fill="{colour}"><title>{escape(mark.label)}</title></circle></a>'
            )
    legend = "".join(
        f'<li><i style="background:var(--c{number % _COLOURS})"></i>{escape(one.name)}</li>'
        for number, one in enumerate(shown)
    )
    drawn = "".join(parts)
    return (
        f'<figure><figcaption>{escape(title)}</figcaption><svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'aria-label="{escape(title)}">{drawn}</svg><ul class="legend">{legend}</ul></figure>'
    )


def _fits(value: float, axis: Axis) -> bool:
    return math.isfinite(value) and (value > 0 or not axis.logarithmic)


class _Scale:
    """Places of values on an axis, in units of the drawing."""

    def __init__(self, axis: Axis, values: Sequence[float], start: float, end: float) -> None:
        self.axis, self._start, self._end = axis, start, end
        low, high = min(values), max(values)
        if axis.names:
            self._low, self._high = -0.5, len(axis.names) - 0.5
            self.ticks = [float(place) for place in range(len(axis.names))]
        elif axis.logarithmic:
            self._low, self._high = math.log10(low) - 0.08, math.log10(high) + 0.08
            first, last = math.floor(self._low), math.ceil(self._high)
            steps = (1, 2, 5) if self._high - self._low < 3 else (1,)
            candidates = [step * 10.0**power for power in range(first, last + 1) for step in steps]
            self.ticks = [tick for tick in candidates if self._low <= math.log10(tick) <= self._high]
        else:
            room = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
            self._low, self._high = low - room, high + room
            step = 10.0 ** math.floor(math.log10((self._high - self._low) / 2))
            step *= next(factor for factor in (1, 2, 5, 10) if (self._high - self._low) / (factor * step) <= 6)
            first = math.ceil(self._low / step)
            self.ticks = [tick * step for tick in range(first, math.floor(self._high / step) + 1)]

    def at(self, value: float) -> float:
        """Return the place of a value."""
        number = math.log10(value) if self.axis.logarithmic and not self.axis.names else value
        share = (number - self._low) / (self._high - self._low)
        return self._start + share * (self._end - self._start)

    def word(self, tick: float) -> str:
        """Return what stands at a tick."""
        return self.axis.names[int(tick)] if self.axis.names else f"{tick:,.6g}"


def _grid(across: _Scale, up: _Scale) -> list[str]:
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    parts = []
    for tick in up.ticks:
        top = up.at(tick)
        parts.append(f'<line class="axis" x1="{_LEFT}" x2="{right}" y1="{top:.1f}" y2="{top:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{top + 4:.1f}" text-anchor="end">{escape(up.word(tick))}</text>')
    every = max(1, math.ceil(len(across.ticks) / 8))
    for tick in across.ticks[::every]:
        left = across.at(tick)
        parts.append(f'<line class="axis" x1="{left:.1f}" x2="{left:.1f}" y1="{_TOP}" y2="{bottom}"/>')
        parts.append(f'<text x="{left:.1f}" y="{bottom + 15}" text-anchor="middle">{escape(across.word(tick))}</text>')
    middle = (_TOP + bottom) / 2
    parts.append(
        f'<text x="{(_LEFT + right) / 2}" y="{_HEIGHT - 6}" text-anchor="middle">{escape(across.axis.words)}</text>'
    )
    parts.append(
        f'<text x="12" y="{middle}" text-anchor="middle" transform="rotate(-90 12 {middle})">'
        f"{escape(up.axis.words)}</text>"
    )
    return parts
