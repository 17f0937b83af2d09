"""The training pictures: drawn once, passed through JPEG and the client's own preprocessing, kept as uint8."""

from __future__ import annotations

import io
import random
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from twinspire.images import Preprocessor
from twinspire_eval.scenes.captions import caption
from twinspire_eval.scenes.description import Scene, Split, Swap, other_kinds, sample_scenes, swapped
from twinspire_eval.scenes.drawing import draw_scene
from twinspire_eval.scenes.vocabulary import Language
from twinspire_export.sample.settings import IMAGE_SETTINGS, JPEG_QUALITY, TrainingSettings


@dataclass(frozen=True)
class TrainingSet:
    """Scenes in units: a unit is a scene and its siblings, and stays together in a batch.

    `images` is (N, S, S, 3) uint8, in the order of `scenes`; `units` holds the positions.
    """

    scenes: list[Scene]
    images: npt.NDArray[np.uint8]
    units: list[tuple[int, ...]]

    def batches(self, batch: int, rng: random.Random) -> Iterator[list[int]]:
        """Yield positions of `batch` scenes at a time, for ever, every scene once an epoch."""
        pending: list[int] = []
        while True:
            for unit in rng.sample(self.units, len(self.units)):
                pending.extend(unit)
                if len(pending) >= batch:
                    yield pending[:batch]
                    pending = pending[batch:]


def training_scenes(settings: TrainingSettings) -> tuple[list[Scene], list[tuple[int, ...]]]:
    """Return the scenes of a training run and their units."""
    rng = random.Random(settings.seed)
    scenes: list[Scene] = []
    units: list[tuple[int, ...]] = []
    for scene in sample_scenes(settings.scenes, seed=settings.seed, split=Split.TRAIN):
        siblings = _siblings(scene, rng)
        units.append(tuple(range(len(scenes), len(scenes) + len(siblings))))
        scenes.extend(siblings)
    return scenes, units


def _siblings(scene: Scene, rng: random.Random) -> list[Scene]:
    """A scene and three that are hard to tell from it: each differs in one respect, which the loss must then learn.

    Random scenes alone teach colours, sides and backgrounds, and leave out what the objects are: those suffice.
    """
    if len(scene.groups) == 1:
        siblings = [other_kinds(scene, rng) for _ in range(3)]
    else:
        binding = swapped(scene, rng.choice((Swap.COLOURS, Swap.SIDES)), rng)
        siblings = [binding, swapped(scene, Swap.KINDS, rng), other_kinds(scene, rng)]
    return [scene, *(sibling for sibling in siblings if sibling is not None)]


def load_training_set(settings: TrainingSettings, cache: Path, *, processes: int) -> TrainingSet:
    """Draw the training pictures, or read them from `cache` where they were drawn before."""
    scenes, units = training_scenes(settings)
    size = IMAGE_SETTINGS.size
    file = cache / f"scenes-{settings.seed}-{settings.scenes}-{size}.npy"
    if not file.exists():
        cache.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(".part")
        images: np.memmap[Any, np.dtype[np.uint8]] = np.lib.format.open_memmap(  # type: ignore[no-untyped-call]
            part, mode="w+", dtype=np.uint8, shape=(len(scenes), size, size, 3)
        )
        with get_context("spawn").Pool(processes) as pool:
            jobs = ((scene, settings.seed, position) for position, scene in enumerate(scenes))
            for position, image in enumerate(pool.imap(_drawn, jobs, chunksize=64)):
                images[position] = image
        images.flush()
        part.rename(file)
    return TrainingSet(scenes, np.load(file, mmap_mode="r"), units)


def _drawn(job: tuple[Scene, int, int]) -> npt.NDArray[np.uint8]:
    """One picture as the image tower will see it, (S, S, 3) uint8."""
    scene, seed, position = job
    encoded = io.BytesIO()
    picture = draw_scene(scene, random.Random(f"picture/train/{seed}/{position}"))
    picture.save(encoded, "JPEG", quality=JPEG_QUALITY)
    return Preprocessor(IMAGE_SETTINGS, threads=1).one(encoded.getvalue())


def training_captions(scenes: list[Scene], rng: random.Random, *, partial: float) -> Iterator[str]:
    """Yield one caption a scene and language, for the tokenizer."""
    for scene in scenes:
        for language in Language:
            yield caption(scene, language, rng, partial=rng.random() < partial)
