"""Drawings of the objects, one function each, in coordinates from -1 to 1, y downwards."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

from twinspire_eval.scenes.pen import Pen
from twinspire_eval.scenes.vocabulary import ObjectType

Drawing = Callable[[Pen, random.Random], None]


def _cat(pen: Pen, rng: random.Random) -> None:
    pen.arc(0.55, 0.35, 0.4, 0.5, -80, 90, "dark", width=0.16)
    pen.ellipse(0, 0.5, 0.52, 0.46)
    for side in (-1, 1):
        pen.polygon([(side * 0.62, -0.95), (side * 0.1, -0.62), (side * 0.6, -0.2)])
    pen.ellipse(0, -0.3, 0.62, 0.5)
    for side in (-1, 1):
        pen.ellipse(side * 0.25, -0.38, 0.09, 0.13, "paper")
        pen.ellipse(side * 0.25, -0.36, 0.05, 0.09, "ink", outline=False)
        pen.line([(side * 0.2, -0.1), (side * 0.8, -0.18)], "ink", width=0.03)
        pen.line([(side * 0.2, -0.06), (side * 0.8, 0.0)], "ink", width=0.03)
    pen.polygon([(-0.08, -0.18), (0.08, -0.18), (0, -0.08)], "ink", outline=False)
    pen.ellipse(-0.25, 0.9, 0.2, 0.1, "light")
    pen.ellipse(0.25, 0.9, 0.2, 0.1, "light")


def _dog(pen: Pen, rng: random.Random) -> None:
    pen.line([(0.72, 0.0), (0.95, -0.4 + rng.uniform(-0.1, 0.1))], "dark", width=0.14)
    pen.box(-0.45, -0.05, 0.8, 0.5, radius=0.25)
    for x in (-0.38, -0.12, 0.4, 0.62):
        pen.box(x, 0.35, x + 0.17, 0.95, radius=0.06)
    pen.ellipse(-0.5, -0.35, 0.4, 0.36)
    pen.ellipse(-0.8, -0.22, 0.24, 0.17, "light")
    pen.ellipse(-0.98, -0.28, 0.07, 0.06, "ink", outline=False)
    pen.ellipse(-0.58, -0.45, 0.06, 0.07, "ink", outline=False)
    pen.ellipse(-0.22, -0.25, 0.15, 0.36, "dark")


def _bird(pen: Pen, rng: random.Random) -> None:
    pen.polygon([(0.5, 0.1), (1.0, -0.2), (1.0, 0.3)], "dark")
    pen.line([(-0.1, 0.5), (-0.1, 0.9)], "brown", width=0.06)
    pen.line([(0.15, 0.5), (0.15, 0.9)], "brown", width=0.06)
    pen.ellipse(0, 0.15, 0.62, 0.46)
    pen.ellipse(-0.45, -0.35, 0.34, 0.32)
    pen.polygon([(-0.72, -0.45), (-1.0, -0.3), (-0.72, -0.2)], "brown")
    pen.ellipse(-0.52, -0.42, 0.07, 0.07, "ink", outline=False)
    lift = rng.uniform(-0.15, 0.1)
    pen.polygon([(-0.2, 0.05), (0.5, -0.55 + lift), (0.45, 0.2)], "light")


def _fish(pen: Pen, rng: random.Random) -> None:
    pen.polygon([(0.45, 0), (1.0, -0.5), (0.88, 0), (1.0, 0.5)], "dark")
    pen.polygon([(-0.2, -0.4), (0.3, -0.8), (0.35, -0.3)], "dark")
    pen.ellipse(-0.15, 0, 0.8, 0.48)
    for x in (-0.1, 0.15, 0.4):
        pen.arc(x - 0.2, 0, 0.22, 0.3, -60, 60, "light", width=0.06)
    pen.ellipse(-0.6, -0.1, 0.12, 0.12, "paper")
    pen.ellipse(-0.62, -0.1, 0.06, 0.06, "ink", outline=False)


def _rabbit(pen: Pen, rng: random.Random) -> None:
    lean = rng.uniform(-0.05, 0.12)
    for side in (-1, 1):
        pen.ellipse(side * 0.22 + lean, -0.68, 0.14, 0.42)
        pen.ellipse(side * 0.22 + lean, -0.66, 0.06, 0.28, "light", outline=False)
    pen.ellipse(0.45, 0.7, 0.2, 0.18, "light")
    pen.ellipse(0, 0.55, 0.46, 0.42)
    pen.ellipse(0, -0.08, 0.42, 0.38)
    for side in (-1, 1):
        pen.ellipse(side * 0.17, -0.14, 0.06, 0.08, "ink", outline=False)
        pen.ellipse(side * 0.24, 0.92, 0.2, 0.09, "light")
    pen.ellipse(0, 0.04, 0.06, 0.045, "ink", outline=False)


def _turtle(pen: Pen, rng: random.Random) -> None:
    for x in (-0.5, 0.4):
        pen.ellipse(x, 0.5, 0.2, 0.2, "light")
    pen.ellipse(-0.85, 0.12, 0.22, 0.18, "light")
    pen.ellipse(-0.92, 0.06, 0.04, 0.05, "ink", outline=False)
    pen.polygon([(0.7, 0.3), (1.0, 0.45), (0.7, 0.48)], "light")
    pen.slice(0, 0.42, 0.78, 0.95, 180, 360)
    pen.line([(-0.78, 0.42), (0.78, 0.42)], "dark", width=0.12)
    for x in (-0.38, 0, 0.38):
        pen.ellipse(x, 0.08 - 0.12 * (x == 0), 0.14, 0.16, "dark", outline=False)


def _butterfly(pen: Pen, rng: random.Random) -> None:
    spread = rng.uniform(0.9, 1.05)
    for side in (-1, 1):
        pen.ellipse(side * 0.5 * spread, -0.35, 0.44, 0.46)
        pen.ellipse(side * 0.42 * spread, 0.45, 0.34, 0.38)
        pen.ellipse(side * 0.52 * spread, -0.35, 0.2, 0.22, "light", outline=False)
        pen.ellipse(side * 0.42 * spread, 0.45, 0.14, 0.16, "dark", outline=False)
        pen.line([(0, -0.5), (side * 0.22, -0.95)], "ink", width=0.05)
    pen.ellipse(0, 0.05, 0.1, 0.62, "ink", outline=False)


def _car(pen: Pen, rng: random.Random) -> None:
    pen.polygon([(-0.5, 0.0), (-0.28, -0.5), (0.32, -0.5), (0.62, 0.0)])
    pen.polygon([(-0.36, -0.03), (-0.2, -0.38), (-0.02, -0.38), (-0.02, -0.03)], "glass")
    pen.polygon([(0.08, -0.03), (0.08, -0.38), (0.26, -0.38), (0.46, -0.03)], "glass")
    pen.box(-0.98, -0.04, 0.98, 0.42, radius=0.16)
    pen.ellipse(-0.9, 0.12, 0.08, 0.08, "paper")
    for x in (-0.55, 0.55):
        pen.ellipse(x, 0.44, 0.25, 0.25, "ink")
        pen.ellipse(x, 0.44, 0.1, 0.1, "paper", outline=False)


def _bus(pen: Pen, rng: random.Random) -> None:
    pen.box(-0.98, -0.66, 0.98, 0.55, radius=0.14)
    for x in (-0.85, -0.42, 0.01, 0.44):
        pen.box(x, -0.48, x + 0.34, -0.06, "glass", radius=0.05)
    pen.line([(-0.95, 0.14), (0.95, 0.14)], "light", width=0.1)
    for x in (-0.55, 0.55):
        pen.ellipse(x, 0.58, 0.22, 0.22, "ink")
        pen.ellipse(x, 0.58, 0.09, 0.09, "paper", outline=False)


def _boat(pen: Pen, rng: random.Random) -> None:
    pen.line([(0, -0.95), (0, 0.4)], "brown", width=0.08)
    pen.polygon([(0.08, -0.9), (0.08, 0.22), (0.75 + rng.uniform(-0.08, 0.08), 0.22)])
    pen.polygon([(-0.08, -0.72), (-0.08, 0.22), (-0.6, 0.22)], "light")
    pen.polygon([(-0.95, 0.38), (0.95, 0.38), (0.62, 0.88), (-0.62, 0.88)])


def _plane(pen: Pen, rng: random.Random) -> None:
    pen.polygon([(0.62, -0.05), (0.98, -0.6), (1.0, 0.02)], "dark")
    pen.polygon([(-0.1, -0.1), (0.35, -0.75), (0.5, -0.72), (0.28, -0.1)], "dark")
    pen.ellipse(0, 0, 0.98, 0.24)
    pen.polygon([(-0.2, 0.06), (0.3, 0.78), (0.5, 0.74), (0.22, 0.06)])
    for x in (-0.3, -0.08, 0.14, 0.36):
        pen.ellipse(x, -0.06, 0.055, 0.055, "glass")
    pen.slice(-0.78, -0.04, 0.16, 0.12, 150, 330, "glass")


def _rocket(pen: Pen, rng: random.Random) -> None:
    flame = rng.uniform(0.82, 1.0)
    pen.polygon([(-0.2, 0.5), (0.2, 0.5), (0, flame)], "brown", outline=False)
    for side in (-1, 1):
        pen.polygon([(side * 0.22, 0.1), (side * 0.62, 0.62), (side * 0.22, 0.55)], "dark")
    pen.polygon([(0, -1.0), (0.2, -0.72), (0.3, -0.3), (0.3, 0.55), (-0.3, 0.55), (-0.3, -0.3), (-0.2, -0.72)])
    pen.ellipse(0, -0.28, 0.16, 0.16, "glass")
    pen.line([(-0.28, 0.3), (0.28, 0.3)], "light", width=0.08)


def _balloon(pen: Pen, rng: random.Random) -> None:
    for side in (-1, 1):
        pen.line([(side * 0.45, 0.15), (side * 0.16, 0.66)], "brown", width=0.04)
    pen.ellipse(0, -0.3, 0.68, 0.68)
    pen.ellipse(0, -0.3, 0.3, 0.68, "light")
    pen.box(-0.2, 0.64, 0.2, 0.95, "brown", radius=0.05)


def _house(pen: Pen, rng: random.Random) -> None:
    if rng.random() < 0.6:
        pen.box(0.35, -0.85, 0.56, -0.3, "dark")
    pen.box(-0.7, -0.15, 0.7, 0.9)
    pen.polygon([(-0.95, -0.12), (0, -0.92), (0.95, -0.12)], "dark")
    pen.box(-0.14, 0.32, 0.2, 0.9, "brown")
    pen.box(-0.55, 0.1, -0.26, 0.4, "glass")
    pen.box(0.32, 0.1, 0.58, 0.4, "glass")


def _tent(pen: Pen, rng: random.Random) -> None:
    pen.polygon([(-0.95, 0.75), (-0.1, -0.75), (0.55, -0.5), (0.98, 0.62)], "dark")
    pen.polygon([(-0.95, 0.75), (-0.1, -0.75), (0.6, 0.75)])
    pen.polygon([(-0.35, 0.75), (-0.1, -0.1), (0.12, 0.75)], "ink")


def _tree(pen: Pen, rng: random.Random) -> None:
    pen.box(-0.13, 0.2, 0.13, 0.98, "brown", radius=0.05)
    if rng.random() < 0.5:
        pen.ellipse(-0.4, -0.05, 0.42, 0.4)
        pen.ellipse(0.4, -0.05, 0.42, 0.4)
        pen.ellipse(0, -0.5, 0.5, 0.46)
        pen.ellipse(-0.02, -0.12, 0.36, 0.34, outline=False)
    else:
        pen.ellipse(0, -0.32, 0.62, 0.66)
        pen.ellipse(-0.2, -0.5, 0.2, 0.2, "light", outline=False)


def _flower(pen: Pen, rng: random.Random) -> None:
    pen.line([(0, 0), (0, 0.98)], "leaf", width=0.1)
    pen.ellipse(0.24, 0.66, 0.24, 0.11, "leaf")
    turn = rng.uniform(0, math.tau)
    for petal in range(6):
        angle = turn + petal * math.tau / 6
        pen.ellipse(0.4 * math.cos(angle), -0.38 + 0.4 * math.sin(angle), 0.25, 0.25)
    pen.ellipse(0, -0.38, 0.2, 0.2, "brown")


def _mushroom(pen: Pen, rng: random.Random) -> None:
    pen.box(-0.24, -0.05, 0.24, 0.9, "paper", radius=0.16)
    pen.slice(0, 0.1, 0.92, 0.92, 180, 360)
    for x, y, radius in ((-0.45, -0.2, 0.13), (0.02, -0.5, 0.16), (0.45, -0.18, 0.12)):
        pen.ellipse(x + rng.uniform(-0.04, 0.04), y, radius, radius, "paper", outline=False)


def _apple(pen: Pen, rng: random.Random) -> None:
    pen.line([(0.02, -0.45), (0.1, -0.92)], "brown", width=0.1)
    pen.ellipse(0.36, -0.74, 0.26, 0.12, "leaf")
    pen.ellipse(-0.27, 0.2, 0.5, 0.66)
    pen.ellipse(0.27, 0.2, 0.5, 0.66)
    pen.ellipse(0, 0.2, 0.4, 0.58, outline=False)
    pen.ellipse(-0.42, -0.02, 0.12, 0.18, "light", outline=False)


def _umbrella(pen: Pen, rng: random.Random) -> None:
    pen.line([(0, -0.8), (0, 0.75)], "brown", width=0.08)
    pen.arc(0.15, 0.72, 0.15, 0.18, 0, 180, "brown", width=0.08)
    pen.slice(0, 0.1, 0.95, 0.85, 180, 360)
    pen.slice(0, 0.1, 0.34, 0.85, 180, 360, "light")


def _cup(pen: Pen, rng: random.Random) -> None:
    pen.arc(0.52, 0.15, 0.38, 0.36, -100, 100, "dark", width=0.16)
    pen.polygon([(-0.72, -0.5), (0.58, -0.5), (0.44, 0.8), (-0.58, 0.8)])
    pen.ellipse(-0.07, -0.5, 0.65, 0.17, "light")
    pen.ellipse(-0.07, -0.47, 0.5, 0.1, "brown", outline=False)


def _hat(pen: Pen, rng: random.Random) -> None:
    pen.ellipse(0, 0.58, 0.98, 0.22)
    pen.polygon([(-0.5, 0.55), (-0.56, -0.7), (0.56, -0.7), (0.5, 0.55)])
    pen.ellipse(0, -0.7, 0.56, 0.13, "light")
    pen.polygon([(-0.51, 0.48), (-0.52, 0.22), (0.52, 0.22), (0.51, 0.48)], "dark")


def _chair(pen: Pen, rng: random.Random) -> None:
    pen.box(-0.6, -0.95, -0.4, 0.95, radius=0.05)
    pen.box(0.42, 0.1, 0.6, 0.95, radius=0.05)
    pen.box(-0.6, 0.02, 0.64, 0.26, radius=0.06)
    pen.box(-0.6, -0.95, -0.34, 0.05, "light", radius=0.1)


def _kite(pen: Pen, rng: random.Random) -> None:
    sway = rng.uniform(-0.15, 0.15)
    pen.line([(0, 0.4), (0.2 + sway, 0.65), (-0.1 + sway, 0.8), (0.15 + sway, 0.98)], "ink", width=0.05)
    pen.polygon([(0, -0.98), (0.62, -0.3), (0, 0.45), (-0.62, -0.3)])
    pen.polygon([(0, -0.98), (0.62, -0.3), (0, -0.3)], "light")
    pen.polygon([(0, -0.3), (0, 0.45), (-0.62, -0.3)], "dark")


DRAWINGS: dict[ObjectType, Drawing] = {
    ObjectType.CAT: _cat,
    ObjectType.DOG: _dog,
    ObjectType.BIRD: _bird,
    ObjectType.FISH: _fish,
    ObjectType.RABBIT: _rabbit,
    ObjectType.TURTLE: _turtle,
    ObjectType.BUTTERFLY: _butterfly,
    ObjectType.CAR: _car,
    ObjectType.BUS: _bus,
    ObjectType.BOAT: _boat,
    ObjectType.PLANE: _plane,
    ObjectType.ROCKET: _rocket,
    ObjectType.BALLOON: _balloon,
    ObjectType.HOUSE: _house,
    ObjectType.TENT: _tent,
    ObjectType.TREE: _tree,
    ObjectType.FLOWER: _flower,
    ObjectType.MUSHROOM: _mushroom,
    ObjectType.APPLE: _apple,
    ObjectType.UMBRELLA: _umbrella,
    ObjectType.CUP: _cup,
    ObjectType.HAT: _hat,
    ObjectType.CHAIR: _chair,
    ObjectType.KITE: _kite,
}
