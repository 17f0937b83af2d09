"""Data sets of captioned images: captions files and test sets that others publish, tables, and generated scenes.

`open_dataset` opens one by name or path; `register_dataset` adds one.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol

from twinspire.errors import InputError
from twinspire_eval.datasets.caption_files import CAPTION_FILE_DATASETS, CaptionsAlone, open_captions
from twinspire_eval.datasets.captioned import Caption, CaptionedImages, CaptionTexts, DatasetOptions, LabelledQuery
from twinspire_eval.datasets.published_forms import PUBLISHED_DATASETS, recognise
from twinspire_eval.datasets.scenes import SceneDataset

__all__ = [
    "DATASETS",
    "Caption",
    "CaptionTexts",
    "CaptionedImages",
    "Dataset",
    "DatasetOptions",
    "LabelledQuery",
    "open_dataset",
    "register_dataset",
]


class Dataset(Protocol):
    """A way to open data sets, written `NAME:ARGUMENT`. Add one with `register_dataset`."""

    @property
    def name(self) -> str:
        """The word before the colon."""

    @property
    def usage(self) -> str:
        """How it is written and what it is, for help and errors: "coco:PATH, captions in COCO's form"."""

    def open(self, argument: str, options: DatasetOptions) -> CaptionedImages:
        """Open the data set that `argument` names, empty where nothing was given. Raises `InputError`."""


_BUILT_IN: tuple[Dataset, ...] = (SceneDataset(), *CAPTION_FILE_DATASETS.values(), CaptionsAlone(), *PUBLISHED_DATASETS)
DATASETS = {dataset.name: dataset for dataset in _BUILT_IN}
"""The registered data sets by name."""


def register_dataset(dataset: Dataset) -> None:
    """Let `open_dataset` open a data set by its name."""
    DATASETS[dataset.name] = dataset


def open_dataset(
    spec: str | os.PathLike[str],
    *,
    images: Path | None = None,
    split: str | None = None,
    limit: int | None = None,
    seed: int = 0,
    published_split: bool = False,
) -> CaptionedImages:
    """Open a data set: `NAME:ARGUMENT` of `DATASETS`, or the path of a captions file of any form or of its folder.

    `images` is the folder of the images, by default searched for beside the captions. `split` takes one part of a data
    set that names parts: `test` of Karpathy's, `train` of the scenes, which are held-out ones by default; `all` takes
    every image. With `published_split` it is by default the one on which results are published, also of Karpathy's.
    `limit` samples so many images with `seed`. All images' files must exist; they are read when they are accessed.

    Raises InputError for anything else, naming what was expected.
    """
    options = DatasetOptions(images=images, split=split, limit=limit, seed=seed, published_split=published_split)
    text = os.fspath(spec)
    name, colon, argument = text.partition(":")
    exists = os.path.exists(text)  # noqa: PTH110 - Path.exists raises for names that no file can have
    if name in DATASETS and (colon or not exists):
        return DATASETS[name].open(argument, options)
    if not exists:
        known = "; ".join(dataset.usage for dataset in DATASETS.values())
        raise InputError(f"no file, folder or generated data set {text!r}: expected a path, or one of {known}")
    published = recognise(Path(text))
    return open_captions(Path(text), None, options) if published is None else published.open(text, options)
