"""Scenes: a data set of pictures with captions in two languages that can be drawn anywhere."""

from __future__ import annotations

from twinspire_bench.scenes.captions import caption
from twinspire_bench.scenes.dataset import CaptionedScene, draw_dataset, draw_swap_dataset, scene_set
from twinspire_bench.scenes.description import (
    Group,
    Scene,
    Split,
    sample_scenes,
    sample_swap_pairs,
    swap_twin,
)
from twinspire_bench.scenes.drawing import SIDE, draw_scene
from twinspire_bench.scenes.vocabulary import Axis, Background, Colour, Kind, Language, Place, Size

__all__ = [
    "SIDE",
    "Axis",
    "Background",
    "CaptionedScene",
    "Colour",
    "Group",
    "Kind",
    "Language",
    "Place",
    "Scene",
    "Size",
    "Split",
    "caption",
    "draw_dataset",
    "draw_scene",
    "draw_swap_dataset",
    "sample_scenes",
    "sample_swap_pairs",
    "scene_set",
    "swap_twin",
]
