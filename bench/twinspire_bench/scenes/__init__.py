"""Scenes: a data set of pictures with captions in two languages that can be drawn anywhere."""

from __future__ import annotations

from twinspire_bench.scenes.captions import caption
from twinspire_bench.scenes.dataset import CaptionedScene, draw_dataset, draw_pairs, scene_set
from twinspire_bench.scenes.description import (
    Contrast,
    Group,
    Scene,
    Split,
    Swap,
    other_kinds,
    sample_pairs,
    sample_scenes,
    swapped,
)
from twinspire_bench.scenes.drawing import SIDE, draw_scene
from twinspire_bench.scenes.vocabulary import Axis, Background, Colour, Kind, Language, Place, Size

__all__ = [
    "SIDE",
    "Axis",
    "Background",
    "CaptionedScene",
    "Colour",
    "Contrast",
    "Group",
    "Kind",
    "Language",
    "Place",
    "Scene",
    "Size",
    "Split",
    "Swap",
    "caption",
    "draw_dataset",
    "draw_pairs",
    "draw_scene",
    "other_kinds",
    "sample_pairs",
    "sample_scenes",
    "scene_set",
    "swapped",
]
