"""Approximate nearest-neighbour indexes over arrays: families, specs, predicted cost, building and searching.

Which row of a vector file belongs to which item, and what is stored on disk, is not known here.
"""

from __future__ import annotations

from twinspire.index.ann.ann_index import AnnIndex
from twinspire.index.ann.binary_family import Binary
from twinspire.index.ann.codes import Cost
from twinspire.index.ann.cost_model import EXACT_BELOW, Prediction, Speed, choose, measured_speed, predict
from twinspire.index.ann.faiss_families import Ivf
from twinspire.index.ann.family import (
    IndexFamily,
    IndexSpec,
    Option,
    SearchParameters,
    Selection,
    Sink,
    parse_choice,
    register,
    registered_families,
)
from twinspire.index.ann.gpu_families import OnGpu

__all__ = [
    "EXACT_BELOW",
    "AnnIndex",
    "Binary",
    "Cost",
    "IndexFamily",
    "IndexSpec",
    "Ivf",
    "OnGpu",
    "Option",
    "Prediction",
    "SearchParameters",
    "Selection",
    "Sink",
    "Speed",
    "choose",
    "measured_speed",
    "parse_choice",
    "predict",
    "register",
    "registered_families",
]
