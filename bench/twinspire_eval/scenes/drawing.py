"""Images of scenes: a background, then each object at its place, with random variation."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

from PIL import Image, ImageDraw

from twinspire_eval.scenes.description import Group, Scene
from twinspire_eval.scenes.objects import DRAWINGS
from twinspire_eval.scenes.pen import BASE, RGB, Pen, mix
from twinspire_eval.scenes.vocabulary import Axis, Background, Place, Size

SIDE = 256
"""Width and height of an image in pixels."""
OVERSAMPLING = 2
_FINE = 1024  # from this side on pixels are too small for jagged edges to matter

# An object's half width, as a share of the image's side.
_RADII: dict[Size, tuple[float, float]] = {Size.SMALL: (0.098, 0.112), Size.BIG: (0.150, 0.165)}
_PLACES: dict[Place, tuple[float, float]] = {
    Place.LEFT: (0.2, 0.5),
    Place.RIGHT: (0.8, 0.5),
    Place.TOP: (0.5, 0.2),
    Place.BOTTOM: (0.5, 0.8),
    Place.MIDDLE: (0.5, 0.5),
}
_Point = tuple[float, float]


def draw_scene(scene: Scene, rng: random.Random, side: int = SIDE) -> Image.Image:
    """Draw a scene, RGB, `side` by `side` pixels.

    The same state of `rng` gives the same image, with another size other details of the same scene.
    """
    oversampling = OVERSAMPLING if side < _FINE else 1
    image = paint_background(scene.background, side * oversampling, rng)
    for group, centres in zip(scene.groups, _layout(scene, rng), strict=True):
        colour = _shaded(BASE[group.colour], rng)
        for centre in centres:
            _put(image, group, colour, centre, rng)
    return image.reduce(oversampling)


def _shaded(colour: RGB, rng: random.Random) -> RGB:
    """Return a slightly different tone of the same colour."""
    tone = rng.uniform(-14, 14)
    red, green, blue = (min(255, max(0, round(value + tone + rng.uniform(-8, 8)))) for value in colour)
    return red, green, blue


def _put(image: Image.Image, group: Group, colour: RGB, centre: _Point, rng: random.Random) -> None:
    radius = rng.uniform(*_RADII[group.size]) * image.width
    pen = Pen(round(2 * radius / Pen.EXTENT), colour)
    DRAWINGS[group.kind](pen, rng)
    tile = pen.tile
    if rng.random() < 0.5:
        tile = tile.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    tile = tile.rotate(rng.uniform(-9, 9), Image.Resampling.BILINEAR)
    corner = (
        round(centre[0] * image.width - tile.width / 2),
        round(centre[1] * image.height - tile.height / 2),
    )
    image.paste(tile, corner, tile)


def _layout(scene: Scene, rng: random.Random) -> list[list[_Point]]:
    """Return the centres of each group's objects, as shares of the image's side."""
    if scene.place is not None:
        x, y = _PLACES[scene.place]
        return [[(x + rng.uniform(-0.05, 0.05), y + rng.uniform(-0.05, 0.05))]]
    if scene.axis is None:
        return [_scattered(scene.groups[0].count, rng)]
    # Groups have equal distances along the axis, and a random offset across it.
    steps = len(scene.groups)
    wander = 0.16 if steps == 2 else 0.10
    layout: list[list[_Point]] = []
    for step, group in enumerate(scene.groups):
        along = (0.25 + 0.5 * step if steps == 2 else 0.18 + 0.32 * step) + rng.uniform(-0.035, 0.035)
        if group.count == 1:
            offsets = [0.5 + rng.uniform(-wander, wander)]
        else:
            offsets = [0.27 + rng.uniform(-0.04, 0.04), 0.73 + rng.uniform(-0.04, 0.04)]
        layout.append([(along, offset) if scene.axis is Axis.ACROSS else (offset, along) for offset in offsets])
    return layout


def _scattered(count: int, rng: random.Random) -> list[_Point]:
    """Return places for two or three equal objects that do not overlap."""
    turn = rng.choice(("across", "down", "triangle") if count == 3 else ("across", "down", "diagonal"))
    if turn == "triangle":
        points = [(0.27, 0.3), (0.73, 0.3), (0.5, 0.74)]
        if rng.random() < 0.5:
            points = [(x, 1 - y) for x, y in points]
    elif turn == "diagonal":
        points = [(0.28, 0.3), (0.72, 0.7)]
        if rng.random() < 0.5:
            points = [(1 - x, y) for x, y in points]
    else:
        line = [(0.26, 0.5), (0.74, 0.5)] if count == 2 else [(0.18, 0.5), (0.5, 0.5), (0.82, 0.5)]
        points = line if turn == "across" else [(y, x) for x, y in line]
    return [(x + rng.uniform(-0.03, 0.03), y + rng.uniform(-0.03, 0.03)) for x, y in points]


Painter = Callable[[ImageDraw.ImageDraw, int, random.Random], None]


def paint_background(background: Background, side: int, rng: random.Random) -> Image.Image:
    """Paint a background of `side` pixels square."""
    top, bottom, painter = _BACKGROUNDS[background]
    shade = rng.uniform(-0.10, 0.10)
    toward: RGB = (255, 255, 255) if shade > 0 else (0, 0, 0)
    top, bottom = mix(top, toward, abs(shade)), mix(bottom, toward, abs(shade))
    ramp = _RAMP.resize((side, side))
    image = Image.composite(Image.new("RGB", (side, side), bottom), Image.new("RGB", (side, side), top), ramp)
    painter(ImageDraw.Draw(image), side, rng)
    return image


_RAMP = Image.linear_gradient("L").resize((8, 256))


def _hill(draw: ImageDraw.ImageDraw, side: int, rng: random.Random, level: float, height: float, fill: RGB) -> None:
    """Draw a ground with a wavy upper edge at `level` of the image's height."""
    phase, waves = rng.uniform(0, math.tau), rng.uniform(0.6, 1.6)
    edge = [(side * x / 16, side * (level + height * math.sin(phase + waves * math.tau * x / 16))) for x in range(17)]
    draw.polygon([*edge, (side, side), (0, side)], fill=fill)


def _disc(draw: ImageDraw.ImageDraw, x: float, y: float, radius: float, fill: RGB) -> None:
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)


def _cloud(draw: ImageDraw.ImageDraw, side: int, rng: random.Random, fill: RGB) -> None:
    x, y, scale = rng.uniform(0, side), rng.uniform(0.05, 0.25) * side, rng.uniform(0.03, 0.06) * side
    for dx, dy, r in ((-1.4, 0.2, 0.8), (0, -0.2, 1.1), (1.3, 0.2, 0.8)):
        _disc(draw, x + dx * scale, y + dy * scale, r * scale, fill)


def _meadow(draw: ImageDraw.ImageDraw, side: int, rng: random.Random) -> None:
    for _ in range(rng.randint(1, 3)):
        _cloud(draw, side, rng, (246, 250, 252))
    level = rng.uniform(0.40, 0.5)
    _hill(draw, side, rng, level, 0.04, (140, 200, 104))
    _hill(draw, side, rng, level + 0.14, 0.03, (116, 184, 84))
    for _ in range(26):
        x, y = rng.uniform(0, side), rng.uniform(level + 0.22, 1) * side
        draw.line((x, y, x + rng.uniform(-4, 4), y - rng.uniform(6, 12)), fill=(84, 152, 64), width=3)


def _sea(draw: ImageDraw.ImageDraw, side: int, rng: random.Random) -> None:
    _disc(draw, rng.uniform(0.1, 0.9) * side, rng.uniform(0.08, 0.18) * side, 0.05 * side, (255, 244, 196))
    level = rng.uniform(0.32, 0.42)
    draw.rectangle((0, level * side, side, side), fill=(38, 128, 178))
    for row in range(5):
        y = (level + 0.06 + row * 0.11) * side
        offset, step = rng.uniform(-0.1, 0) * side, 0.1 * side
        for wave in range(12):
            x = offset + wave * step
            draw.arc((x, y, x + step, y + 0.04 * side), 180, 360, fill=(120, 190, 222), width=4)
    _hill(draw, side, rng, rng.uniform(0.92, 0.95), 0.012, (238, 220, 170))


def _desert(draw: ImageDraw.ImageDraw, side: int, rng: random.Random) -> None:
    _disc(draw, rng.uniform(0.1, 0.9) * side, rng.uniform(0.1, 0.2) * side, 0.07 * side, (255, 236, 150))
    level = rng.uniform(0.36, 0.46)
    _hill(draw, side, rng, level, 0.06, (230, 190, 120))
    _hill(draw, side, rng, level + 0.16, 0.05, (218, 172, 98))
    _hill(draw, side, rng, level + 0.34, 0.04, (206, 156, 84))


def _night(draw: ImageDraw.ImageDraw, side: int, rng: random.Random) -> None:
    for _ in range(60):
        _disc(draw, rng.uniform(0, side), rng.uniform(0, 0.8) * side, rng.uniform(1, 2.6), (236, 236, 210))
    x, y, radius = rng.uniform(0.1, 0.9) * side, rng.uniform(0.08, 0.18) * side, 0.055 * side
    _disc(draw, x, y, radius, (246, 240, 206))
    _disc(draw, x + radius * 0.5, y - radius * 0.2, radius * 0.85, (22, 28, 66))
    _hill(draw, side, rng, rng.uniform(0.8, 0.86), 0.03, (24, 34, 52))


def _snow(draw: ImageDraw.ImageDraw, side: int, rng: random.Random) -> None:
    level = rng.uniform(0.42, 0.55)
    _hill(draw, side, rng, level, 0.04, (226, 234, 244))
    _hill(draw, side, rng, level + 0.18, 0.03, (238, 243, 250))
    for _ in range(70):
        _disc(draw, rng.uniform(0, side), rng.uniform(0, side), rng.uniform(2, 4.5), (255, 255, 255))


def _city(draw: ImageDraw.ImageDraw, side: int, rng: random.Random) -> None:
    x = -rng.uniform(0, 0.06) * side
    while x < side:
        width, top = rng.uniform(0.09, 0.16) * side, rng.uniform(0.12, 0.5) * side
        grey = rng.randint(112, 164)
        draw.rectangle((x, top, x + width, side), fill=(grey, grey + 4, grey + 16))
        for wy in range(int(top) + 14, int(side * 0.78), 30):
            for wx in range(int(x) + 8, int(x + width) - 12, 20):
                lit = (242, 226, 160) if rng.random() < 0.35 else (grey - 34, grey - 30, grey - 18)
                draw.rectangle((wx, wy, wx + 8, wy + 13), fill=lit)
        x += width + 3
    draw.rectangle((0, 0.82 * side, side, side), fill=(92, 94, 102))
    for dash in range(6):
        start = (dash * 0.19 + rng.uniform(0, 0.02)) * side
        draw.rectangle((start, 0.9 * side, start + 0.09 * side, 0.915 * side), fill=(226, 222, 200))


def _forest(draw: ImageDraw.ImageDraw, side: int, rng: random.Random) -> None:
    for row, green in enumerate(((70, 122, 88), (54, 104, 70), (42, 84, 56))):
        base = (0.5 + row * 0.14) * side
        for trunk in range(9):
            x = (trunk / 8 + rng.uniform(-0.05, 0.05)) * side
            height, width = rng.uniform(0.28, 0.42) * side, rng.uniform(0.06, 0.09) * side
            draw.polygon([(x, base - height), (x - width, base), (x + width, base)], fill=green)
        draw.rectangle((0, base - 2, side, side), fill=green)
    _hill(draw, side, rng, 0.84, 0.015, (96, 82, 56))


def _mountains(draw: ImageDraw.ImageDraw, side: int, rng: random.Random) -> None:
    for peak in range(4):
        x = (peak / 3 + rng.uniform(-0.08, 0.08)) * side
        top, base, half = rng.uniform(0.12, 0.3) * side, 0.72 * side, rng.uniform(0.24, 0.34) * side
        draw.polygon([(x, top), (x - half, base), (x + half, base)], fill=(126 + 8 * peak, 124 + 6 * peak, 146))
        cap = 0.28
        draw.polygon(
            [
                (x, top),
                (x - half * cap, top + (base - top) * cap),
                (x, top + (base - top) * cap * 0.8),
                (x + half * cap, top + (base - top) * cap),
            ],
            fill=(244, 247, 252),
        )
    _hill(draw, side, rng, rng.uniform(0.66, 0.72), 0.03, (128, 146, 110))


_BACKGROUNDS: dict[Background, tuple[RGB, RGB, Painter]] = {
    Background.MEADOW: ((122, 190, 236), (214, 238, 250), _meadow),
    Background.SEA: ((140, 206, 240), (224, 242, 250), _sea),
    Background.DESERT: ((246, 206, 150), (252, 234, 198), _desert),
    Background.NIGHT: ((12, 16, 48), (50, 54, 104), _night),
    Background.SNOW: ((176, 196, 218), (222, 230, 240), _snow),
    Background.CITY: ((172, 190, 212), (226, 222, 218), _city),
    Background.FOREST: ((164, 204, 190), (216, 232, 214), _forest),
    Background.MOUNTAINS: ((150, 186, 226), (232, 236, 242), _mountains),
}
"""The colours of the sky at the top and at the bottom, and what is painted before it."""
