"""Indexes that find about the best without looking at all: kinds, what they cost, and how they are made and searched.

Works on arrays alone. What is on disk, and which row is whose, is the store's.
"""

from __future__ import annotations

from twinspire.index.ann.approximate import Ann
from twinspire.index.ann.kinds import EXACT_BELOW, Code, Family, Kind, Scheme
from twinspire.index.ann.predict import Prediction, Speed, choose, measured_speed, predict
from twinspire.index.ann.selection import Selection

__all__ = [
    "EXACT_BELOW",
    "Ann",
    "Code",
    "Family",
    "Kind",
    "Prediction",
    "Scheme",
    "Selection",
    "Speed",
    "choose",
    "measured_speed",
    "predict",
]
