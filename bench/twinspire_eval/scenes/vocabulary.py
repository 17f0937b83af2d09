"""What a scene can be made of."""

from __future__ import annotations

from enum import StrEnum


class Kind(StrEnum):
    """What an object is."""

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
    """What colour an object has."""

    RED = "red"
    ORANGE = "orange"
    YELLOW = "yellow"
    GREEN = "green"
    BLUE = "blue"
    PURPLE = "purple"
    WHITE = "white"
    BLACK = "black"


class Size(StrEnum):
    """How large an object is drawn."""

    SMALL = "small"
    BIG = "big"


class Background(StrEnum):
    """Where the scene takes place."""

    MEADOW = "meadow"
    SEA = "sea"
    DESERT = "desert"
    NIGHT = "night"
    SNOW = "snow"
    CITY = "city"
    FOREST = "forest"
    MOUNTAINS = "mountains"


class Place(StrEnum):
    """Where a single object stands in the picture."""

    LEFT = "left"
    RIGHT = "right"
    TOP = "top"
    BOTTOM = "bottom"
    MIDDLE = "middle"


class Axis(StrEnum):
    """How several things are lined up: from left to right, or from top to bottom."""

    ACROSS = "across"
    DOWN = "down"


class Language(StrEnum):
    """The languages of the captions."""

    ENGLISH = "en"
    CHINESE = "zh"
