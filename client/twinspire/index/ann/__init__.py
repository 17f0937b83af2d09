"""Indexes that find about the best without looking at all: kinds, what they cost, and how they are made and searched.

Works on arrays alone. What is on disk, and which row is whose, is the store's.
"""

from __future__ import annotations

from twinspire.index.ann.ann_index import AnnIndex
from twinspire.index.ann.cost_model import Prediction, Speed, choose, measured_speed, predict
from twinspire.index.ann.selection import Selection
from twinspire.index.ann.spec import EXACT_BELOW, Code, Family, IndexSpec, Scheme

__all__ = [
    "EXACT_BELOW",
    "AnnIndex",
    "Code",
    "Family",
    "IndexSpec",
    "Prediction",
    "Scheme",
    "Selection",
    "Speed",
    "choose",
    "measured_speed",
    "predict",
]
