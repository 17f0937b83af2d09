"""Vocabulary of scenes: objects, colours, sizes, backgrounds, places and languages."""

from __future__ import annotations

from enum import StrEnum


class ObjectType(StrEnum):
    """Types of objects."""

    CAT = "cat"
    DOG = "dog"
    BIRD = "bird"
    FISH = "fish"
    RABBIT = "rabbit"
    TURTLE = "turtle"
    BUTTERFLY = "butterfly"
    CAR = "car"
    BUS = "bus"
    BOAT = "boat"
    PLANE = "plane"
    ROCKET = "rocket"
    BALLOON = "balloon"
    HOUSE = "house"
    TENT = "tent"
    TREE = "tree"
    FLOWER = "flower"
    MUSHROOM = "mushroom"
    APPLE = "apple"
    UMBRELLA = "umbrella"
    CUP = "cup"
    HAT = "hat"
    CHAIR = "chair"
    KITE = "kite"


class Colour(StrEnum):
    """Colours of objects."""

    RED = "red"
    ORANGE = "orange"
    YELLOW = "yellow"
    GREEN = "green"
    BLUE = "blue"
    PURPLE = "purple"
    WHITE = "white"
    BLACK = "black"


class Size(StrEnum):
    """Sizes of objects."""

    SMALL = "small"
    BIG = "big"


class Background(StrEnum):
    """Backgrounds of a scene."""

    MEADOW = "meadow"
    SEA = "sea"
    DESERT = "desert"
    NIGHT = "night"
    SNOW = "snow"
    CITY = "city"
    FOREST = "forest"
    MOUNTAINS = "mountains"


class Place(StrEnum):
    """Places of a single object in the image."""

    LEFT = "left"
    RIGHT = "right"
    TOP = "top"
    BOTTOM = "bottom"
    MIDDLE = "middle"


class Axis(StrEnum):
    """Directions in which several groups are lined up: from left to right, or from top to bottom."""

    ACROSS = "across"
    DOWN = "down"


class Language(StrEnum):
    """The languages of the captions."""

    ENGLISH = "en"
    CHINESE = "zh"
