"""A scene's picture: background, then each object on its place, with jitter, so that no two pictures are equal."""

from __future__ import annotations

import random

from PIL import Image

from twinspire_eval.scenes.backgrounds import paint_background
from twinspire_eval.scenes.description import Group, Scene
from twinspire_eval.scenes.kinds import DRAWINGS
from twinspire_eval.scenes.pen import BASE, RGB, Pen
from twinspire_eval.scenes.vocabulary import Axis, Place, Size

SIDE = 256
"""Width and height of a picture in pixels."""
OVERSAMPLING = 2

# An object's half width, as a share of the picture's side.
_RADII: dict[Size, tuple[float, float]] = {Size.SMALL: (0.098, 0.112), Size.BIG: (0.150, 0.165)}
_PLACES: dict[Place, tuple[float, float]] = {
    Place.LEFT: (0.2, 0.5),
    Place.RIGHT: (0.8, 0.5),
    Place.TOP: (0.5, 0.2),
    Place.BOTTOM: (0.5, 0.8),
    Place.MIDDLE: (0.5, 0.5),
}
_Point = tuple[float, float]


def draw_scene(scene: Scene, rng: random.Random) -> Image.Image:
    """Draw a scene, RGB, `SIDE` by `SIDE` pixels. The same state of `rng` gives the same picture."""
    side = SIDE * OVERSAMPLING
    picture = paint_background(scene.background, side, rng)
    for group, centres in zip(scene.groups, _layout(scene, rng), strict=True):
        colour = _shaded(BASE[group.colour], rng)
        for centre in centres:
            _put(picture, group, colour, centre, rng)
    return picture.reduce(OVERSAMPLING)


def _shaded(colour: RGB, rng: random.Random) -> RGB:
    """A slightly different tone of the same colour."""
    tone = rng.uniform(-14, 14)
    red, green, blue = (min(255, max(0, round(value + tone + rng.uniform(-8, 8)))) for value in colour)
    return red, green, blue


def _put(picture: Image.Image, group: Group, colour: RGB, centre: _Point, rng: random.Random) -> None:
    radius = rng.uniform(*_RADII[group.size]) * picture.width
    pen = Pen(round(2 * radius / Pen.REACH), colour)
    DRAWINGS[group.kind](pen, rng)
    tile = pen.tile
    if rng.random() < 0.5:
        tile = tile.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    tile = tile.rotate(rng.uniform(-9, 9), Image.Resampling.BILINEAR)
    corner = (
        round(centre[0] * picture.width - tile.width / 2),
        round(centre[1] * picture.height - tile.height / 2),
    )
    picture.paste(tile, corner, tile)


def _layout(scene: Scene, rng: random.Random) -> list[list[_Point]]:
    """The centres of each group's objects, as shares of the picture's side."""
    if scene.place is not None:
        x, y = _PLACES[scene.place]
        return [[(x + rng.uniform(-0.05, 0.05), y + rng.uniform(-0.05, 0.05))]]
    if scene.axis is None:
        return [_scattered(scene.groups[0].count, rng)]
    # Along the axis the groups share the picture evenly; across it they may stray a little.
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
    """Places for two or three equal objects that do not overlap."""
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
