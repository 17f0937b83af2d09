"""Synthetic scenes: a data set of images with captions in two languages, generated from a seed."""

from __future__ import annotations

from twinspire_eval.scenes.captions import caption, in_template, query_text, some_details
from twinspire_eval.scenes.dataset import CaptionedScene, draw_dataset, draw_pairs, scene_set
from twinspire_eval.scenes.description import (
    Contrast,
    Detail,
    Group,
    Query,
    Scene,
    Split,
    Swap,
    other_kinds,
    sample_pairs,
    sample_scenes,
    swapped,
)
from twinspire_eval.scenes.drawing import SIDE, draw_scene
from twinspire_eval.scenes.queries import ShortQuery, short_queries
from twinspire_eval.scenes.vocabulary import Axis, Background, Colour, Language, ObjectType, Place, Size

__all__ = [
    "SIDE",
    "Axis",
    "Background",
    "CaptionedScene",
    "Colour",
    "Contrast",
    "Detail",
    "Group",
    "Language",
    "ObjectType",
    "Place",
    "Query",
    "Scene",
    "ShortQuery",
    "Size",
    "Split",
    "Swap",
    "caption",
    "draw_dataset",
    "draw_pairs",
    "draw_scene",
    "in_template",
    "other_kinds",
    "query_text",
    "sample_pairs",
    "sample_scenes",
    "scene_set",
    "short_queries",
    "some_details",
    "swapped",
]
