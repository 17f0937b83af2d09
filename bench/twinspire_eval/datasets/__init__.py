"""Data sets of captioned images: captions files that others publish, tables, and generated scenes.

`open_dataset` opens one by name or path; `register_dataset` adds one.
"""

from __future__ import annotations

from twinspire_eval.datasets.captioned import Caption, CaptionedImages, CaptionTexts, DatasetOptions
from twinspire_eval.datasets.registry import DATASETS, Dataset, open_dataset, register_dataset

__all__ = [
    "DATASETS",
    "Caption",
    "CaptionTexts",
    "CaptionedImages",
    "Dataset",
    "DatasetOptions",
    "open_dataset",
    "register_dataset",
]
