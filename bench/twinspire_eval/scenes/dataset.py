"""Data sets of scenes in a folder: JPEG files and a COCO captions file, written whole or not at all."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from twinspire._arguments import file_errors
from twinspire._atomic import atomic_folder
from twinspire.errors import InputError
from twinspire_eval.scenes.captions import caption
from twinspire_eval.scenes.description import Contrast, Scene, Split, sample_pairs, sample_scenes
from twinspire_eval.scenes.drawing import SIDE, draw_scene
from twinspire_eval.scenes.vocabulary import Language

CAPTIONS_FILE = "captions.json"
JPEG_QUALITY = 90


@dataclass(frozen=True)
class CaptionedScene:
    """Scene with one caption a language, and the seed key of its image."""

    scene: Scene
    captions: dict[Language, str]
    key: str

    def draw(self, side: int = SIDE) -> Image.Image:
        """Draw the image, RGB, `side` by `side` pixels; the same at every call."""
        return draw_scene(self.scene, random.Random(f"picture/{self.key}"), side)


def scene_set(count: int, *, seed: int, split: Split) -> list[CaptionedScene]:
    """Return `count` scenes of a split with captions that all differ, within each language."""
    rng = random.Random(f"captions/{split}/{seed}")
    taken: set[str] = set()
    captioned = []
    for position, scene in enumerate(sample_scenes(count, seed=seed, split=split)):
        captions = {}
        for language in Language:
            captions[language] = next(text for text in _wordings(scene, language, rng) if text not in taken)
            taken.add(captions[language])
        captioned.append(CaptionedScene(scene, captions, f"{split}/{seed}/{position}"))
    return captioned


def pair_set(pairs: int, contrast: Contrast, *, seed: int, split: Split) -> list[CaptionedScene]:
    """Return pairs of scenes, one after the other, that differ in one respect only.

    Both captions of a pair use the same wording, so that they differ only in the contrast.
    """
    rng = random.Random(f"{contrast} captions/{split}/{seed}")
    captioned: list[CaptionedScene] = []
    for position, pair in enumerate(sample_pairs(pairs, contrast, seed=seed, split=split)):
        wording = rng.random()
        for member, scene in enumerate(pair):
            captions = {language: caption(scene, language, _ConstantRandom(wording)) for language in Language}
            captioned.append(CaptionedScene(scene, captions, f"{contrast}/{split}/{seed}/{position}/{member}"))
    return captioned


class _ConstantRandom(random.Random):
    """Generator that always returns the same number, so that two captions get the same wording."""

    def __init__(self, share: float) -> None:
        super().__init__(0)
        self._share = share

    def random(self) -> float:
        return self._share


def draw_dataset(
    folder: Path,
    count: int,
    *,
    seed: int,
    split: Split,
    on_progress: Callable[[int], None] | None = None,
) -> list[CaptionedScene]:
    """Draw `count` scenes into `folder`, with `captions.json`; return them in the order of the file names.

    Raises InputError where the folder is not empty, so that data sets never mix.
    """
    return _write(folder, scene_set(count, seed=seed, split=split), f"{split} scenes, seed {seed}", on_progress)


def draw_pairs(
    folder: Path,
    pairs: int,
    contrast: Contrast,
    *,
    seed: int,
    split: Split,
    on_progress: Callable[[int], None] | None = None,
) -> list[CaptionedScene]:
    """Draw pairs of scenes that differ in one respect only; files 2i and 2i + 1 are a pair. Else as `draw_dataset`."""
    captioned = pair_set(pairs, contrast, seed=seed, split=split)
    return _write(folder, captioned, f"{split} {contrast} pairs, seed {seed}", on_progress)


def _wordings(scene: Scene, language: Language, rng: random.Random) -> Iterator[str]:
    # A full caption names everything that differs between scenes, so this ends.
    while True:
        yield caption(scene, language, rng)


def _write(
    folder: Path, captioned: list[CaptionedScene], description: str, on_progress: Callable[[int], None] | None
) -> list[CaptionedScene]:
    with file_errors(f"the scenes cannot be written to {folder}", folder):
        if folder.exists() and any(folder.iterdir()):
            raise InputError(f"{folder} is not empty: expected a new or an empty folder for the scenes")
        with atomic_folder(folder) as draft:
            _fill(draft, captioned, description, on_progress)
    return captioned


def _fill(
    folder: Path, captioned: list[CaptionedScene], description: str, on_progress: Callable[[int], None] | None
) -> None:
    """Write the images and captions.json into an empty folder."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for position, entry in enumerate(captioned):
        name = f"{position:06d}.jpg"
        encoded = io.BytesIO()  # Pillow does not report a file that a full disk truncated
        entry.draw().save(encoded, "JPEG", quality=JPEG_QUALITY)
        (folder / name).write_bytes(encoded.getvalue())
        images.append({"id": position, "file_name": name, "width": SIDE, "height": SIDE, "license": 1})
        for language, words in entry.captions.items():
            number = len(annotations)
            annotations.append({"id": number, "image_id": position, "caption": words, "language": language.value})
        if on_progress is not None:
            on_progress(position + 1)
    document = {
        "info": {"description": description, "version": "1"},
        "licenses": [{"id": 1, "name": "CC0-1.0", "url": "https://creativecommons.org/publicdomain/zero/1.0/"}],
        "images": images,
        "annotations": annotations,
    }
    (folder / CAPTIONS_FILE).write_text(json.dumps(document, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
